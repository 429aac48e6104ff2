"""Runs that differ in nothing but their seed, together."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainers.store.reader import SavedRun

_ORDER = ("dense", "sparse", "round", "control", "variant")


@dataclass(frozen=True)
class Repetitions:
    """One run with several seeds. repeated: further runs of those seeds, which count for nothing."""

    env: str
    kind: str
    label: str
    settings: str
    runs: list[SavedRun]
    repeated: list[SavedRun]

    @property
    def finished(self) -> list[SavedRun]:
        """The runs that have their results."""
        return [run for run in self.runs if run.summary is not None]


@dataclass(frozen=True)
class Family:
    """Tickets that differ only in their seed, and what they are compared with.

    label: the environment, followed by the settings where it has several families. rounds: the finished runs
    of each round that has some. controls: of any round. dense: summaries of the dense runs that the tickets
    come from, by seed.
    """

    env: str
    label: str
    rounds: dict[int, list[SavedRun]]
    controls: list[Repetitions]
    dense: dict[int, Mapping[str, Any]]


def seeds(*counts: int) -> str:
    """The range of these numbers of seeds in words, for instance "1 seed" or "2 to 3 seeds"."""
    words = " to ".join(map(str, sorted({min(counts), max(counts)})))
    return f"{words} seed{'s' * (words != '1')}"


def repetitions(runs: Sequence[SavedRun]) -> list[Repetitions]:
    """Runs that differ in nothing but their seed, together, in the order of a study.

    Of several runs of one seed the first finished one is taken: the others are no further seeds.
    """
    envs = list(dict.fromkeys(run.env for run in runs))
    found: dict[tuple[str, str, str, str], list[SavedRun]] = {}
    for run in sorted(runs, key=lambda r: (envs.index(r.env), _ORDER.index(r.kind), r.round, r.seed)):
        found.setdefault((run.env, run.kind, run.label, run.settings()), []).append(run)
    labels = Counter((env, label) for env, _, label, _ in found)
    groups = []
    for (env, kind, label, settings), members in found.items():
        chosen: dict[int, SavedRun] = {}
        for run in members:
            if run.seed not in chosen or (chosen[run.seed].summary is None and run.summary is not None):
                chosen[run.seed] = run
        repeated = [run for run in members if run is not chosen[run.seed]]
        label += f" [{settings}]" if labels[env, label] > 1 else ""
        groups.append(Repetitions(env, kind, label, settings, list(chosen.values()), repeated))
    return groups


def families(groups: Sequence[Repetitions]) -> list[Family]:
    """The tickets among the groups, each with its controls."""
    found: dict[tuple[str, str], list[Repetitions]] = {}
    for group in groups:
        if group.kind in ("round", "control"):
            found.setdefault((group.env, group.settings), []).append(group)
    several = Counter(env for env, _ in found)
    return [
        Family(
            env=env,
            label=f"{env} [{settings}]" if several[env] > 1 else env,
            rounds={g.runs[0].round: g.finished for g in members if g.kind == "round" and g.finished},
            controls=[group for group in members if group.kind == "control"],
            dense={run.seed: run.dense for group in members for run in group.runs if run.dense is not None},
        )
        for (env, settings), members in found.items()
    ]
