"""What a report computes from runs: curves, sparsity, overlap of masks, kept inputs, operations, speeds."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.special import gammaln

from engine.sparse import masks as mask_functions
from fastcollect.envs.registry import METAWORLD_TASKS
from trainers.report.repetitions import Repetitions
from trainers.store.layout import NETWORKS
from trainers.store.reader import SavedRun

_FRAME = (
    *("hand x", "hand y", "hand z", "gripper opening", "object x", "object y", "object z"),
    *(f"object quaternion {axis}" for axis in "xyzw"),
    *(f"padding or 2nd object {i}" for i in range(1, 8)),
)
METAWORLD_INPUTS = (*_FRAME, *(f"previous {name}" for name in _FRAME), "goal x", "goal y", "goal z")


class Spread(NamedTuple):
    """Of one number over runs."""

    mean: float
    low: float
    high: float
    values: tuple[float, ...]


class Curve(NamedTuple):
    """One measure over environment steps.

    lines: (steps, values, whether it is finished) of each run. steps, mean, low, high: over the finished
    ones, interpolated linearly, where all of them have values.
    """

    lines: list[tuple[np.ndarray, np.ndarray, bool]]
    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Family:
    """Tickets that differ only in their seed, and what they are held against.

    label: the environment, and where there are several families of it the settings. rounds: by number.
    controls: of any round. dense: summaries of the dense runs they come from, by seed.
    """

    env: str
    label: str
    rounds: dict[int, Repetitions]
    controls: list[Repetitions]
    dense: dict[int, Mapping[str, Any]]

    def finished(self) -> dict[int, list[SavedRun]]:
        """Round -> its finished runs, without rounds that have none."""
        return {k: group.finished for k, group in self.rounds.items() if group.finished}


def families(groups: Sequence[Repetitions]) -> list[Family]:
    """The tickets among the groups, each with its controls."""
    found: dict[tuple[str, str], Family] = {}
    chosen = [group for group in groups if group.kind in ("round", "control")]
    keys = {(group.env, group.settings) for group in chosen}
    for group in chosen:
        several = sum(env == group.env for env, _ in keys) > 1
        label = f"{group.env} [{group.settings}]" if several else group.env
        family = found.setdefault((group.env, group.settings), Family(group.env, label, {}, [], {}))
        if group.kind == "round":
            family.rounds[group.first.round] = group
        else:
            family.controls.append(group)
        family.dense.update({run.seed: run.dense for run in group.runs if run.dense is not None})
    return list(found.values())


def spread(values: Sequence[float]) -> Spread | None:
    """None of nothing."""
    if not values:
        return None
    return Spread(float(np.mean(values)), min(values), max(values), tuple(values))


def of_summaries(runs: Sequence[SavedRun], key: str, part: str | None = None) -> Spread | None:
    """A result of finished runs; part: of the summary, for instance "best"."""
    return spread([(run.summary[part] if part else run.summary)[key] for run in runs])


def curve(runs: Sequence[SavedRun], key: str) -> Curve | None:
    """One measure of all evaluations; None where there are none."""
    lines = []
    for run in runs:
        rows = [row for row in run.evaluations if row.get(key) is not None]
        steps, values = (np.array([row[name] for row in rows], np.float64) for name in ("env_steps", key))
        if len(rows):
            lines.append((steps, values, run.summary is not None))
    finished = [(steps, values) for steps, values, done in lines if done]
    if not lines:
        return None
    if not finished:
        return Curve(lines, *([np.zeros(0)] * 4))
    begin, end = max(steps[0] for steps, _ in finished), min(steps[-1] for steps, _ in finished)
    grid = np.unique(np.concatenate([steps for steps, _ in finished]))
    grid = grid[(grid >= begin) & (grid <= end)]
    values = np.array([np.interp(grid, *line) for line in finished])
    return Curve(lines, grid, values.mean(0), values.min(0), values.max(0))


# Masks.


def layer_name(kind: str, leaf: str) -> str:
    """ "actor layer 1", "critic q0 layer 3"."""
    prefix, _, own = leaf.rpartition("/")
    number = int(own.rpartition("_")[2]) + 1
    return " ".join(part for part in (kind, prefix, f"layer {number}") if part)


def layers(run: SavedRun) -> dict[str, np.ndarray]:
    """Layer's name -> its mask, of pruned networks only."""
    return {
        layer_name(kind, leaf): np.asarray(run.masks[kind][leaf])
        for kind in NETWORKS
        for leaf in mask_functions.kernels(run.masks[kind])
    }


def expected_jaccard(size: int, first: int, second: int) -> float:
    """Mean of |A and B| / |A or B| over uniformly random sets of these sizes among ``size`` places.

    Exact but for rounding: what the two share is hypergeometric.
    """
    if not first + second:
        return 1.0
    shared = np.arange(max(0, first + second - size), min(first, second) + 1)
    # By logarithms of factorials, as scipy.stats takes a thousand times longer for sizes of real layers.
    log_chance = -_log_factorial(shared, first - shared, second - shared, size - first - second + shared)
    chance = np.exp(log_chance - log_chance.max())
    return float((chance * shared / (first + second - shared)).sum() / chance.sum())


def _log_factorial(*counts: np.ndarray) -> np.ndarray:
    return sum(gammaln(each + 1.0) for each in counts)


def overlaps(runs: Sequence[SavedRun]) -> dict[str, tuple[Spread, float]]:
    """Layer -> (Jaccard index over all pairs of runs, what random masks of their densities would have)."""
    found = [layers(run) for run in runs]
    out = {}
    for name in found[0] if len(found) > 1 else ():
        pairs = list(itertools.combinations([masks[name] for masks in found], 2))
        measured = [mask_functions.overlap({"kernel_0": a}, {"kernel_0": b})[1].jaccard for a, b in pairs]
        expected = [expected_jaccard(a.size, int(a.sum()), int(b.sum())) for a, b in pairs]
        out[name] = spread(measured), float(np.mean(expected))
    return out


def nested(family: Family) -> dict[int, dict[int, bool]]:
    """Seed -> round -> whether its mask keeps only what the round before keeps."""
    masks = {(run.seed, k): run.masks for k, runs in family.finished().items() for run in runs}
    out: dict[int, dict[int, bool]] = {}
    for (seed, k), inner in masks.items():
        if (outer := masks.get((seed, k - 1))) is not None:
            out.setdefault(seed, {})[k] = all(
                mask_functions.nested(inner[kind], outer[kind]) for kind in NETWORKS if outer[kind]
            )
    return out


# Inputs.


def input_names(env: str, count: int, observations: int) -> list[str]:
    """Of a network's inputs, of which the first are observations and the others actions."""
    known = env in METAWORLD_TASKS and observations == len(METAWORLD_INPUTS)
    names = METAWORLD_INPUTS if known else [f"observation {i}" for i in range(observations)]
    return [*names, *(f"action {i + 1}" for i in range(count - observations))]


def first_layers(run: SavedRun) -> dict[str, np.ndarray]:
    """Network's name -> share of the first layer's weights that each input keeps; pruned networks only."""
    return {
        f"{kind} {leaf.rpartition('/')[0]}".strip(): np.asarray(run.masks[kind][leaf]).mean(1)
        for kind in NETWORKS
        for leaf in mask_functions.kept_inputs(run.masks[kind])
    }


def constant_inputs(run: SavedRun) -> np.ndarray:
    """(o,) bool: observations that never changed, so that they are zero once normalised."""
    return run.moments.squares == 0


def sparsity_without_constants(run: SavedRun, kind: str) -> tuple[float, int]:
    """Sparsity over the weights that do not lie on constant inputs, and how many kept ones lie on them."""
    constant = constant_inputs(run)
    size = kept = idle = 0
    for leaf, mask in run.masks[kind].items():
        mask = np.asarray(mask)
        if leaf.endswith("kernel_0"):
            on_constants = np.zeros(len(mask), bool)
            on_constants[: len(constant)] = constant
            idle += int(mask[on_constants].sum())
            mask = mask[~on_constants]
        size, kept = size + mask.size, kept + int(mask.sum())
    return ((size - kept) / size if size else 0.0), idle


# Costs.


def progress_made(run: SavedRun) -> tuple[int, int]:
    """(environment steps, updates) that this run made itself, without those before its rewind point."""
    first = run.evaluations[0] if run.evaluations else {"env_steps": 0, "updates": 0}
    last = run.summary or (run.evaluations[-1] if run.evaluations else first)
    return last["env_steps"] - first["env_steps"], last["updates"] - first["updates"]


def kept_counts(run: SavedRun, kind: str) -> tuple[int, int, list[int]]:
    """(kept weights, prunable weights, kept ones of each layer) of a finished run's "actor" or "critic"."""
    size = mask_functions.counts(mask_functions.full(run.parameters[kind]))[1]
    if not run.masks[kind]:
        return size, size, []
    leaves, total = mask_functions.counts(run.masks[kind])
    return total, size, list(leaves.values())
