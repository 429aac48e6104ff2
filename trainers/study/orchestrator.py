"""Stage all: dense run, ticket and transfers for every task and seed, one after the other.

Each is a run folder of its own with the configuration it would have alone, so what is finished is skipped by
its hash, and what was interrupted goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastcollect.support.errors import ConfigError
from trainers.config.training import StudyConfig, TrainConfig
from trainers.run.progress import Progress
from trainers.store.folder import RunFolder
from trainers.store.identity import Identity, dense_identity
from trainers.store.manifest import read_summary
from trainers.study import stages
from trainers.study.identities import study_identity, ticket_identity, transfer_identity
from trainers.study.rewind import Source, open_source
from trainers.study.transfer import transfer

Configure = Callable[[str, int], TrainConfig]
"""The configuration of a run by its environment and seed."""


def run_all(
    study: StudyConfig, configure: Configure, root: Path, command: Sequence[str], progress: Progress
) -> None:
    """The whole study in one folder. Raises as its stages do; starting it again goes on."""
    if problems := [f"{n} is empty" for n in ("tasks", "seeds") if not getattr(study, n)]:
        raise ConfigError(problems)
    if study.targets and study.rewind.parameters == "final":
        raise ConfigError(["rewind.parameters is final; allowed with targets: anchor, initial"])
    for task in (*study.tasks, *study.targets):
        # What is wrong with the last task is said before hours of work on the first.
        stages.collectable(configure(task, study.seeds[0]))
    with RunFolder.create(root, study_identity(study), command, resume=True) as folder:
        if folder.finished():
            progress.say(f"{str(root)!r} is finished already")
            return
        runs = _Runs(study, configure, folder, command, progress)
        results: list[dict[str, Any]] = []
        for task in study.tasks:
            for seed in study.seeds:
                # A target may be a task too.
                results += [row for row in runs.one(task, seed) if row not in results]
        seconds = sum(row["wall_seconds"] for row in results)
        folder.write_summary({"stage": "all", "results": results, "wall_seconds": seconds})
    progress.say(f"run folder: {root}")


@dataclass(frozen=True)
class _Runs:
    """What all runs of a study have in common."""

    study: StudyConfig
    configure: Configure
    folder: RunFolder
    command: Sequence[str]
    progress: Progress

    def one(self, task: str, seed: int) -> list[dict[str, Any]]:
        """One seed of one task, with its transfers: what the summary says of each."""
        config, path = self.configure(task, seed), self._path(task, seed)
        dense = self._dense(config)
        prune, matrix = self.study.prune, self.study.rewind
        identity = ticket_identity(config, prune, matrix, dense, self.folder.path)
        rounds = stages.control_rounds(self.study)
        context = self._context(identity)
        stages.ticket(context, path / "ticket", config, prune, matrix, dense, rounds)
        ticket = open_source(str(path / "ticket"))
        results = [self._result(identity, path / "ticket")]
        for target in (each for each in self.study.targets if each != task):
            results += self._transfer(path, target, seed, ticket, dense)
        return [self._result(dense_identity(config), path / "dense"), *results]

    def _transfer(
        self, path: Path, target: str, seed: int, ticket: Source, dense: Source
    ) -> list[dict[str, Any]]:
        """The transfer's variants, and the target's own dense run to hold them against."""
        config, matrix = self.configure(target, seed), self.study.rewind
        own = self._dense(config)
        identity = transfer_identity(config, matrix, ticket, dense, self.folder.path)
        path = path / f"transfer-{target}"
        transfer(self._context(identity), path, config, matrix, ticket, dense)
        return [self._result(dense_identity(config), Path(own.path)), self._result(identity, path)]

    def _dense(self, config: TrainConfig) -> Source:
        path = self._path(config.env, config.seed) / "dense"
        stages.dense(self._context(dense_identity(config)), path, config)
        return open_source(str(path))

    def _path(self, env: str, seed: int) -> Path:
        return self.folder.path / env / f"seed-{seed}"

    def _context(self, identity: Identity) -> stages.Context:
        title = f"{identity.env} seed {identity.seed} {identity.kind}"
        return stages.Context(identity, self.command, self.progress, True, title, self.folder)

    def _result(self, identity: Identity, path: Path) -> dict[str, Any]:
        chosen = [*stages.RESULTS, "density"]
        summary = read_summary(path, chosen)
        what = {"stage": identity.kind, "env": identity.env, "seed": identity.seed}
        return {**what, **{key: summary[key] for key in chosen}}
