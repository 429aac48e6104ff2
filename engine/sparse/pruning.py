"""Which weights to prune: criteria, exact counts in three scopes, and the rounds of iterative pruning.

Masks are those of ``engine.sparse.masks``; the leaves of one call compete with each other, so a twin critic
is pruned in one call and the actor in another. Everything is NumPy in float64, and deterministic.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from engine.sparse import masks


class Criterion(NamedTuple):
    """What makes a weight worth keeping."""

    importance: Callable[[np.ndarray, Any, Any], np.ndarray]
    """Of |w| and |dL/dw| of one kernel, in float64, and a generator of random numbers."""
    needs: Literal["gradients", "rng"] | None = None
    """Which of the latter two it cannot do without."""


CRITERIA = {
    "magnitude": Criterion(lambda weight, slope, rng: weight),  # Han et al. 2015
    # The first-order change of the loss if the weight is cut (Molchanov et al. 2017).
    "taylor": Criterion(lambda weight, slope, rng: weight * slope, needs="gradients"),
    "gradient": Criterion(lambda weight, slope, rng: slope, needs="gradients"),
    "random": Criterion(lambda weight, slope, rng: rng.random(weight.shape), needs="rng"),
}
"""Every criterion, by the name that ``--prune.criterion`` takes."""
SCOPES = ("global", "layer", "erk")


def schedule(target: float, rate: float) -> list[float]:
    """Sparsity after each round of S <- S + (1 - S) rate, clipped at the target; none for a target of 0.

    Iterative pruning of Frankle and Carbin 2019: each round prunes a share ``rate`` of what is left.
    Raises ValueError for a target outside [0, 1) or a rate outside (0, 1]; rate 1 is one-shot pruning.
    """
    check_sparsity("target", target)
    if not 0 < rate <= 1:
        raise ValueError(f"rate is {rate}, must be in (0, 1]")
    rounds = [0.0]
    while rounds[-1] < target:
        sparsity = rounds[-1] + (1 - rounds[-1]) * rate
        # A target that the recurrence reaches exactly must not cost a round more for its rounding.
        rounds.append(sparsity if sparsity < target - 1e-9 else target)
    return rounds[1:]


def scores(
    criterion: str,
    parameters: Mapping[str, Any],
    *,
    gradients: Mapping[str, Any] | None = None,
    rng: np.random.Generator | None = None,
) -> dict[str, np.ndarray]:
    """Kernel name -> float64 importance of each weight by one of CRITERIA; the least important are pruned.

    gradients: dL/dw, averaged over batches by the caller.
    Raises ValueError for another criterion, for one that lacks its input, and for gradients of other shapes.
    """
    if criterion not in CRITERIA:
        raise ValueError(f"criterion is {criterion!r}, must be one of {', '.join(CRITERIA)}")
    importance, needs = CRITERIA[criterion]
    if needs and {"gradients": gradients, "rng": rng}[needs] is None:
        raise ValueError(f"criterion {criterion!r} needs {needs}")
    weights = {name: np.abs(np.asarray(parameters[name], np.float64)) for name in masks.kernels(parameters)}
    slopes = {n: np.abs(np.asarray(g, np.float64)) for n, g in (gradients or {}).items() if n in weights}
    wrong = [
        f"{name}: gradient {slopes[name].shape if name in slopes else None}, weight {weight.shape}"
        for name, weight in weights.items()
        if needs == "gradients" and (name not in slopes or slopes[name].shape != weight.shape)
    ]
    if wrong:
        raise ValueError("gradients do not match the parameters: " + "; ".join(wrong))
    return {name: importance(weight, slopes.get(name), rng) for name, weight in weights.items()}


def prune(
    mask: masks.MaskLike,
    scores: Mapping[str, np.ndarray],
    sparsity: float,
    scope: str,
    *,
    min_kept: int = 1,
    live: masks.Inputs | None = None,
) -> masks.Mask:
    """The mask of exactly ``sparsity``, nested in ``mask``, that keeps the highest scores its scope allows.

    mask: what is still kept, empty if all; what is pruned stays pruned.
    scores: one for each weight, of every kernel; those of pruned weights are ignored unless nan.
    sparsity: of all n prunable weights together, not of what is left: round(sparsity * n) are pruned, a half
        to the even number.
    scope: "global" ranks all leaves together; "layer" gives every leaf the same density; "erk" gives a leaf
        the Erdős-Rényi density eps (in + out) / (in out), at most 1 (Mocanu et al. 2018; Evci et al. 2020,
        section 3). Leaf counts of the latter two are rounded by largest remainder, and a leaf that keeps less
        than its share leaves the rest to the others.
    min_kept: no leaf is pruned below this count: an empty layer cuts the output off from the input.
    live: inputs whose weights can matter (``masks.live_inputs``). The others' are pruned before all, and the
        rest is as if there were no such inputs: they count neither in n nor in an Erdős-Rényi density.
    Ties: of equal scores, and of equal remainders, the lower index (leaf in ``masks.kernels`` order, then
        C-order position) is kept.
    Raises ValueError for a sparsity outside [0, 1), another scope, nan scores, a mask that does not match the
        scores, and for a sparsity below the mask's own or beyond what ``min_kept`` allows.
    """
    check_sparsity("sparsity", sparsity)
    if scope not in SCOPES:
        raise ValueError(f"scope is {scope!r}, must be one of {', '.join(SCOPES)}")
    if live:
        masks.check_matches(mask, scores)
        before, worth = _of_live(mask, live), _of_live(scores, live)
        found = prune(before, worth, sparsity, scope, min_kept=min_kept)
        return {name: _among_all(kept, scores[name], live.get(name)) for name, kept in found.items()}
    names = masks.kernels(scores)
    values = [np.asarray(scores[name], np.float64) for name in names]
    if nans := [name for name, value in zip(names, values, strict=True) if np.isnan(value).any()]:
        raise ValueError(f"nan scores in {', '.join(nans)}")
    masks.check_matches(mask, scores)
    present = [np.asarray(mask[name]) if mask else np.ones(np.shape(scores[name]), bool) for name in names]
    most = np.array([np.count_nonzero(kept) for kept in present], int)
    least = np.minimum(most, min_kept)
    size = sum(value.size for value in values)
    total = size - round(sparsity * size)
    if total > most.sum():
        raise ValueError(
            f"sparsity is {sparsity}, the mask is at {1 - most.sum() / size} and nothing is revived"
        )
    if total < least.sum():
        raise ValueError(
            f"sparsity is {sparsity}, which leaves {total} of {size} weights to {len(names)} leaves: "
            f"must leave at least {least.sum()}, {min_kept} for each leaf"
        )
    if scope == "global":
        shares = _ranked_shares(values, present, least, total)
    else:
        weights = np.array([sum(v.shape) if scope == "erk" else v.size for v in values], np.float64)
        shares = _shares(weights, least, most, total)
    return {name: best(*leaf) for name, *leaf in zip(names, values, present, shares, strict=True)}


def _of_live(tree: Mapping[str, Any], live: masks.Inputs) -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf)[live.get(name, slice(None))] for name, leaf in tree.items()}


def _among_all(kept: np.ndarray, like: np.ndarray, live: np.ndarray | None) -> np.ndarray:
    out = np.zeros(np.shape(like), bool)
    out[slice(None) if live is None else live] = kept
    return out


def check_sparsity(name: str, sparsity: float) -> None:
    """Raise ValueError, by this name, for a sparsity outside [0, 1)."""
    if not 0 <= sparsity < 1:
        raise ValueError(f"{name} is {sparsity}, must be in [0, 1)")


def best(values: np.ndarray, candidates: np.ndarray, count: int) -> np.ndarray:
    """Bool array of the ``count`` highest values among the candidates; the lower index of equal ones."""
    order = np.argsort(-values, axis=None, kind="stable")
    order = order[candidates.ravel()[order]]
    chosen = np.zeros(values.size, bool)
    chosen[order[:count]] = True
    return chosen.reshape(values.shape)


def _ranked_shares(
    values: list[np.ndarray], present: list[np.ndarray], least: np.ndarray, total: int
) -> np.ndarray:
    """How many of the ``total`` highest are in each leaf, of which its ``least`` highest are certain."""
    rest = [np.sort(-v[kept])[certain:] for v, kept, certain in zip(values, present, least, strict=True)]
    leaf = np.repeat(np.arange(len(rest)), [len(each) for each in rest])
    best = np.argsort(np.concatenate(rest), kind="stable")[: total - int(least.sum())]
    return least + np.bincount(leaf[best], minlength=len(rest))


def _shares(weights: np.ndarray, least: np.ndarray, most: np.ndarray, total: int) -> np.ndarray:
    """The integers nearest to ``proportional`` that sum to ``total``, by largest remainder."""
    ideal = proportional(weights, least, most, total)
    shares = np.floor(ideal).astype(int)
    # Rounded, so that remainders that differ by float noise are ties.
    order = np.argsort(np.round(shares - ideal, 6), kind="stable")
    shares[order[: total - int(shares.sum())]] += 1
    return shares


def proportional(weights: np.ndarray, least: np.ndarray, most: np.ndarray, total: float) -> np.ndarray:
    """Numbers that sum to ``total``, proportional to the weights as far as [least, most] allow."""

    def clipped(eps: float) -> np.ndarray:
        return np.clip(eps * weights, least, most)

    # The sum is piecewise linear in eps and bends where a leaf meets a bound: exact between two bends.
    bends = np.unique(np.concatenate([[0.0], least / weights, most / weights]))
    sums = np.array([clipped(eps).sum() for eps in bends])
    return clipped(float(np.interp(total, sums, bends)))
