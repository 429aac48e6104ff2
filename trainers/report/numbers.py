"""What a report computes from runs: results, curves, sparsity, overlap of masks, kept inputs."""

import itertools
from collections.abc import Sequence

import numpy as np
from scipy.special import gammaln, softmax

from engine.sparse import masks as mask_functions
from fastcollect.envs.registry import METAWORLD_TASKS
from trainers.report.repetitions import Family
from trainers.store.layout import NETWORKS
from trainers.store.reader import SavedRun

MEASURES = {
    "success_any": ("success at any step", ".2f"),
    "success_last": ("success at the last step", ".2f"),
    "return_mean": ("mean return of an episode", ",.0f"),
}
"""Results of an evaluation: their names in figures, and how they are written."""
_FRAME = (
    *("hand x", "hand y", "hand z", "gripper opening", "object x", "object y", "object z"),
    *(f"object quaternion {axis}" for axis in "xyzw"),
    *(f"padding or 2nd object {i}" for i in range(1, 8)),
)
METAWORLD_INPUTS = (*_FRAME, *(f"previous {name}" for name in _FRAME), "goal x", "goal y", "goal z")


Line = tuple[np.ndarray, np.ndarray, bool]
"""Environment steps (t,) and one measure at them (t,) of a run, and whether it is finished."""


def of_summaries(runs: Sequence[SavedRun], key: str, part: str | None = None) -> list[float]:
    """A result of each finished run. part: where the summary has it, for instance "best"."""
    summaries = [run.summary for run in runs if run.summary is not None]
    return [(summary[part] if part else summary)[key] for summary in summaries]


def text(values: Sequence[float], form: str) -> str:
    """Their mean and, where they differ, the least and the greatest; empty without values."""
    if not values:
        return ""
    mean, low, high = (format(each, form) for each in (np.mean(values), min(values), max(values)))
    return mean if low == high else f"{mean} ({low} to {high})"


def results(runs: Sequence[SavedRun], part: str | None = None) -> list[str]:
    """Every measure of the finished runs as ``text``. part: where summaries have it."""
    return [text(of_summaries(runs, key, part), form) for key, (_, form) in MEASURES.items()]


def lines(runs: Sequence[SavedRun], key: str) -> list[Line]:
    """One measure in all evaluations of each run that has some."""
    found = []
    for run in runs:
        rows = [(row["env_steps"], row[key]) for row in run.evaluations if row.get(key) is not None]
        if rows:
            steps, values = np.array(rows, np.float64).T
            found.append((steps, values, run.summary is not None))
    return found


def band(lines: Sequence[Line]) -> tuple[np.ndarray, np.ndarray]:
    """Steps (t,), and the values (runs, t) of the finished lines, interpolated, where all have some."""
    finished = [(steps, values) for steps, values, done in lines if done]
    if not finished:
        return np.zeros(0), np.zeros((1, 0))
    grid = np.unique(np.concatenate([steps for steps, _ in finished]))
    values = np.array([np.interp(grid, *line, left=np.nan, right=np.nan) for line in finished])
    there = np.isfinite(values).all(0)
    return grid[there], values[:, there]


# Masks.


def layers(run: SavedRun) -> dict[str, np.ndarray]:
    """The mask of each layer of the pruned networks by a name like "actor layer 1", "critic q0 layer 3"."""
    found = {}
    for kind in NETWORKS:
        for leaf in mask_functions.kernels(run.masks[kind]):
            prefix, _, number = leaf.rpartition("kernel_")
            name = f"{kind} {prefix.replace('/', ' ')}layer {int(number) + 1}"
            found[name] = run.masks[kind][leaf]
    return found


def first_layers(run: SavedRun) -> dict[str, np.ndarray]:
    """Share of the first layer's weights that each input (in,) keeps, by the name of the pruned network."""
    end = " layer 1"
    found = layers(run)
    return {name.removesuffix(end): found[name].mean(1) for name in found if name.endswith(end)}


def expected_jaccard(size: int, first: int, second: int) -> float:
    """Mean of |A and B| / |A or B| over uniformly random sets of these sizes among ``size`` places.

    Exact but for rounding: what the two share is hypergeometric.
    """
    if not first + second:
        return 1.0
    shared = np.arange(max(0, first + second - size), min(first, second) + 1)
    counts = np.array([shared, first - shared, second - shared, size - first - second + shared])
    # By logarithms of factorials, as scipy.stats takes a thousand times longer for sizes of real layers.
    chance = softmax(-gammaln(counts + 1.0).sum(0))
    return float((chance * shared / (first + second - shared)).sum())


def overlaps(runs: Sequence[SavedRun]) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Layer -> Jaccard index of each pair of runs; and layer -> its mean for random masks as dense."""
    found = [layers(run) for run in runs]
    measured, expected = {}, {}
    for name in found[0]:
        pairs = list(itertools.combinations([masks[name] for masks in found], 2))
        both = [mask_functions.overlap({"kernel_0": a}, {"kernel_0": b})[1] for a, b in pairs]
        measured[name] = [each.jaccard for each in both]
        chances = [expected_jaccard(a.size, int(a.sum()), int(b.sum())) for a, b in pairs]
        expected[name] = float(np.mean(chances))
    return measured, expected


def nested(family: Family) -> dict[tuple[int, int], bool]:
    """(Seed, round) -> whether its mask keeps only what the round before keeps."""
    masks = {(run.seed, k): run.masks for k, runs in family.rounds.items() for run in runs}
    return {
        (seed, k): all(mask_functions.nested(inner[kind], outer[kind]) for kind in NETWORKS if outer[kind])
        for (seed, k), inner in masks.items()
        if (outer := masks.get((seed, k - 1))) is not None
    }


# Inputs.


def input_names(env: str, count: int, observations: int) -> list[str]:
    """Names of a network's inputs, of which the first are observations and the others actions."""
    known = env in METAWORLD_TASKS and observations == len(METAWORLD_INPUTS)
    names = METAWORLD_INPUTS if known else [f"observation {i}" for i in range(observations)]
    return [*names, *(f"action {i + 1}" for i in range(count - observations))]


def constant_inputs(run: SavedRun) -> np.ndarray:
    """(o,) bool: observations that never changed, so that they are zero once normalised."""
    return run.moments.squares == 0


def sparsity_without_constants(run: SavedRun, kind: str) -> tuple[float, int]:
    """Sparsity over the weights that are not on constant inputs, and how many kept ones are on them."""
    constant, idle, others = constant_inputs(run), 0, {}
    for leaf, mask in run.masks[kind].items():
        if leaf.endswith("kernel_0"):
            there = np.pad(constant, (0, len(mask) - len(constant)))
            idle += int(mask[there].sum())
            mask = mask[~there]
        others[leaf] = mask
    return mask_functions.sparsity(others), idle
