"""Runs that differ in nothing but their seed, together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trainers.store.reader import SavedRun

_ORDER = ("dense", "round", "control", "variant")


@dataclass(frozen=True)
class Repetitions:
    """Repetitions of one run with several seeds, one run of each.

    repeated: further runs of those seeds, which count for nothing.
    """

    env: str
    kind: str
    label: str
    settings: str
    runs: tuple[SavedRun, ...]
    repeated: tuple[SavedRun, ...] = ()

    @property
    def finished(self) -> list[SavedRun]:
        """Those that have their results."""
        return [run for run in self.runs if run.summary is not None]

    @property
    def first(self) -> SavedRun:
        """Any of them, for what they have in common."""
        return self.runs[0]

    def seeds(self, runs: Sequence[SavedRun] | None = None) -> str:
        """How many, in words."""
        count = len(self.runs if runs is None else runs)
        return f"{count} seed" + "s" * (count != 1)


def repetitions(runs: Sequence[SavedRun]) -> list[Repetitions]:
    """Runs that differ in nothing but their seed, together, in the order of a study.

    Of several runs of one seed the first finished one is taken: the others are no further seeds.
    """
    envs = list(dict.fromkeys(run.env for run in runs))
    found: dict[tuple, list[SavedRun]] = {}
    for run in sorted(runs, key=lambda r: (envs.index(r.env), _ORDER.index(r.kind), r.round, r.seed)):
        found.setdefault((run.env, run.kind, run.label, run.settings), []).append(run)
    labels = [(env, label) for env, _, label, _ in found]
    return [
        Repetitions(
            *(env, kind, label + f" [{settings}]" * (labels.count((env, label)) > 1), settings),
            *_seeds(members),
        )
        for (env, kind, label, settings), members in found.items()
    ]


def _seeds(runs: Sequence[SavedRun]) -> tuple[tuple[SavedRun, ...], tuple[SavedRun, ...]]:
    """One run of each seed, and the others."""
    chosen: dict[int, SavedRun] = {}
    for run in runs:
        if run.seed not in chosen or (chosen[run.seed].summary is None and run.summary is not None):
            chosen[run.seed] = run
    taken = {id(run) for run in chosen.values()}
    return tuple(chosen.values()), tuple(run for run in runs if id(run) not in taken)
