"""Masks of sparse networks: which weights are kept, how masks compare, and random ones as controls.

A mask is a dict of kernel names -> bool array of the kernel's shape, True where a weight is kept; the empty
dict is a dense network. Biases are never pruned, and sparsity is pruned over prunable weights: kernels only.
All but ``apply`` is NumPy.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Mask = dict[str, np.ndarray]
MaskLike = Mapping[str, np.ndarray | jax.Array]
Inputs = Mapping[str, np.ndarray]
"""Kernel name -> (in,) bool: inputs of that layer; of kernels that are left out, all."""

_KERNEL = re.compile(r"(.*/)?kernel_(\d+)")


class Overlap(NamedTuple):
    """How far two masks keep the same weights.

    shared: weights that both keep. jaccard: shared over kept by either. fraction: shared over kept by the
    first. Both shares are 1 where there is nothing to compare.
    """

    shared: int
    jaccard: float
    fraction: float


def kernels(names: Iterable[str]) -> list[str]:
    """The kernels among the names, by prefix and then layer, because JAX sorts the keys of every dict."""
    matches = [match for name in names if (match := _KERNEL.fullmatch(name))]
    return [match[0] for match in sorted(matches, key=lambda match: (match[1] or "", int(match[2])))]


def networks(tree: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Prefix ("" for an actor, "q0/" and "q1/" for a critic) -> parameters or masks without the prefix."""
    parts: dict[str, dict[str, Any]] = {}
    for name, leaf in tree.items():
        prefix, slash, own = name.rpartition("/")
        parts.setdefault(prefix + slash, {})[own] = leaf
    return parts


def full(parameters: Mapping[str, Any]) -> Mask:
    """The mask that keeps every weight, written out."""
    return {name: np.ones(np.shape(parameters[name]), bool) for name in kernels(parameters)}


def apply(mask: Mapping[str, Any], tree: Mapping[str, Any]) -> dict[str, Any]:
    """The tree (parameters, gradients or moments) with pruned entries +0.0; other leaves are left alone.

    For NumPy and JAX, inside ``jit`` too. Raises ValueError as ``check_matches`` does, except that leaves may
    lack a mask.
    """
    check_matches(mask, tree, partly=True)
    out = dict(tree)
    for name, kept in mask.items():
        leaf = tree[name]
        # Chosen, not multiplied: 0 * nan and 0 * -1 are no zeros.
        where = jnp.where if isinstance(leaf, jax.Array) or isinstance(kept, jax.Array) else np.where
        out[name] = where(kept, leaf, np.zeros((), leaf.dtype))
    return out


def check_matches(mask: Mapping[str, Any], parameters: Mapping[str, Any], *, partly: bool = False) -> None:
    """Raise ValueError with every leaf at fault, and both shapes, unless the mask is one of these parameters.

    At fault are kernels without a mask (unless all lack one, or ``partly``), masks without a kernel, other
    shapes, and masks that are not bool.
    """
    missing = [] if partly or not mask else [name for name in kernels(parameters) if name not in mask]
    problems = [f"{name}: no mask, parameters {np.shape(parameters[name])}" for name in missing]
    for name, kept in mask.items():
        if not _KERNEL.fullmatch(name):
            problems.append(f"{name}: mask {np.shape(kept)} of what is no kernel")
        elif name not in parameters:
            problems.append(f"{name}: mask {np.shape(kept)}, no such parameters")
        elif np.shape(kept) != np.shape(parameters[name]):
            problems.append(f"{name}: mask {np.shape(kept)}, parameters {np.shape(parameters[name])}")
        if getattr(kept, "dtype", None) != np.bool_:
            problems.append(f"{name}: mask of {getattr(kept, 'dtype', type(kept).__name__)}, not bool")
    if problems:
        raise ValueError("the mask does not match the parameters: " + "; ".join(problems))


def counts(mask: MaskLike) -> tuple[dict[str, int], int]:
    """Kept weights of each leaf, and of all."""
    kept = {name: int(np.count_nonzero(mask[name])) for name in kernels(mask)}
    return kept, sum(kept.values())


def sparsity(mask: MaskLike) -> float:
    """Pruned over prunable weights; 0 for the empty mask."""
    size = sum(np.size(kept) for kept in mask.values())
    return (size - counts(mask)[1]) / size if size else 0.0


def overlap(first: MaskLike, second: MaskLike) -> tuple[dict[str, Overlap], Overlap]:
    """The overlap in each leaf, and in all. Raises ValueError if leaves or shapes differ."""
    leaves, sums = {}, np.zeros(3, int)
    for name, a, b in _pairs(first, second):
        kept = np.array([np.count_nonzero(a & b), np.count_nonzero(a | b), np.count_nonzero(a)])
        leaves[name] = _overlap(*kept.tolist())
        sums += kept
    return leaves, _overlap(*sums.tolist())


def _overlap(shared: int, either: int, first: int) -> Overlap:
    return Overlap(shared, shared / either if either else 1.0, shared / first if first else 1.0)


def nested(inner: MaskLike, outer: MaskLike) -> bool:
    """Whether outer keeps all that inner keeps. Raises ValueError as ``overlap`` does."""
    return not any((a & ~b).any() for _, a, b in _pairs(inner, outer))


def _pairs(first: MaskLike, second: MaskLike) -> list[tuple[str, np.ndarray, np.ndarray]]:
    first, second = first or full(second), second or full(first)
    check_matches(first, second)
    check_matches(second, first)
    return [(name, np.asarray(first[name]), np.asarray(second[name])) for name in kernels(first)]


def live_inputs(parameters: Mapping[str, Any], constant: np.ndarray) -> Inputs:
    """First kernel's name -> (in,) bool: inputs that ever changed.

    constant: (o,) bool, observations that never did, so that they are zero once normalised and their weights
    do nothing. What a network reads after its observations, a critic's actions, is never constant.
    """
    firsts = [name for name in kernels(parameters) if name.endswith("kernel_0")]
    return {name: ~np.pad(constant, (0, len(parameters[name]) - len(constant))) for name in firsts}


def random_like(rng: np.random.Generator, mask: MaskLike, live: Inputs | None = None) -> Mask:
    """The mask permuted within each leaf: uniformly random, and it keeps as many weights in each.

    live: inputs whose weights take part; the others' are pruned. Those that the mask keeps must be live.
    It serves both the "permuted" and the "random" mask of Vischer, Lange and Sprekeler 2022
    (arXiv:2105.01648, figure 1), with the ticket's weights (see ``permute_weights``) or with fresh ones.
    """
    found = {}
    for name in kernels(mask):
        rows = (live or {}).get(name, slice(None))
        part = np.asarray(mask[name])[rows]
        found[name] = np.zeros(mask[name].shape, bool)
        found[name][rows] = rng.permutation(part.ravel()).reshape(part.shape)
    return found


def rescaled(parameters: Mapping[str, Any], mask: MaskLike, live: Inputs | None = None) -> dict[str, Any]:
    """The parameters with each kernel times 1 / sqrt(density): kept over all weights, of ``live`` inputs.

    What a unit sums of fresh weights then varies under the mask as it does without (compare Evci et al. 2022,
    arXiv:2010.03533, who take each unit's own count). The empty mask, and a layer of which nothing is kept,
    change nothing.
    """
    out = dict(parameters)
    for name in kernels(mask):
        kept = np.asarray(mask[name])[(live or {}).get(name, slice(None))]
        if kept.any():
            out[name] = out[name] * np.float32(kept.mean() ** -0.5)
    return out


def permute_weights(
    rng: np.random.Generator, parameters: Mapping[str, Any], mask: MaskLike, onto: MaskLike | None = None
) -> dict[str, np.ndarray]:
    """The weights that ``mask`` keeps, in random order within each kernel, at the places that ``onto`` keeps.

    onto: by default ``mask``, the control "mask/permuted" of Vischer, Lange and Sprekeler 2022; a mask of
    ``random_like`` gives "permuted/permuted". Every other weight is 0. Biases stay where they are: the paper
    permutes the remaining weights only, so that control and ticket differ in nothing but their order.
    Raises ValueError if a mask does not match the parameters, or if the two keep different numbers in a leaf.
    """
    source = mask or full(parameters)
    onto = source if onto is None else onto or full(parameters)
    for one in (source, onto):
        check_matches(one, parameters)
    before, after = counts(source)[0], counts(onto)[0]
    unequal = [f"{name}: {kept} and {after[name]}" for name, kept in before.items() if kept != after[name]]
    if unequal:
        raise ValueError("the masks keep different numbers of weights: " + "; ".join(unequal))
    permuted = {name: np.array(value) for name, value in parameters.items()}
    for name in kernels(parameters):
        weights = rng.permutation(permuted[name][np.asarray(source[name])])
        permuted[name] = np.zeros_like(permuted[name])
        permuted[name][np.asarray(onto[name])] = weights
    return permuted


def kept_inputs(mask: MaskLike) -> dict[str, np.ndarray]:
    """First kernel's name (one for an actor, one for each critic) -> (in,) bool, inputs that keep a weight.

    A kept weight may lead nowhere; ``engine.sparse.compact`` says which inputs reach the output.
    """
    return {name: np.any(np.asarray(mask[name]), 1) for name in kernels(mask) if name.endswith("kernel_0")}
