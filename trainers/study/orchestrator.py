"""Stage all: dense run, ticket and transfers for every task and seed, one after the other.

Each is a run folder of its own with the configuration it would have alone, so what is finished is skipped by
its hash, and what was interrupted goes on where it was.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastcollect import ConfigError
from trainers.config.training import StudyConfig, TrainConfig
from trainers.run.progress import Progress
from trainers.store.folder import RunFolder
from trainers.store.identity import Identity, dense_identity
from trainers.store.manifest import read_summary
from trainers.study import stages
from trainers.study.identities import study_identity, ticket_identity, transfer_identity
from trainers.study.rewind import Source, open_source

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
        for task, seed in itertools.product(study.tasks, study.seeds):
            # A target may be a task too.
            results += [row for row in runs.one(task, seed) if row not in results]
        seconds = sum(row["wall_seconds"] for row in results)
        folder.write_summary({"stage": "all", "results": results, "wall_seconds": seconds})
    progress.say(f"run folder: {root}")


@dataclass(frozen=True)
class _Runs:
    """Carries out the stages of a study, each in a folder of its own below the study's."""

    study: StudyConfig
    configure: Configure
    folder: RunFolder
    command: Sequence[str]
    progress: Progress

    def one(self, task: str, seed: int) -> Iterator[dict[str, Any]]:
        """Carry out one seed of one task, with its transfers; yields what the summary says of each stage."""
        root, prune, matrix = self.folder.path, self.study.prune, self.study.rewind
        path = root / task / f"seed-{seed}"
        config, dense, row = self._dense(task, seed)
        yield row
        identity = ticket_identity(config, prune, matrix, dense, root)
        rounds = stages.control_rounds(self.study)
        yield self._run(identity, path / "ticket", stages.ticket, config, prune, matrix, dense, rounds)
        ticket = open_source(str(path / "ticket"))
        for target in (each for each in self.study.targets if each != task):
            # The target's own dense run, to hold the transfer's variants against.
            config, _, row = self._dense(target, seed)
            yield row
            identity, inside = transfer_identity(config, matrix, ticket, dense, root), f"transfer-{target}"
            yield self._run(identity, path / inside, stages.transfer, config, matrix, ticket, dense)

    def _dense(self, env: str, seed: int) -> tuple[TrainConfig, Source, dict[str, Any]]:
        config, path = self.configure(env, seed), self.folder.path / env / f"seed-{seed}" / "dense"
        row = self._run(dense_identity(config), path, stages.dense, config)
        return config, open_source(str(path)), row

    def _run(self, identity: Identity, path: Path, stage: Callable, *arguments: Any) -> dict[str, Any]:
        """Carry out a stage, unless it is finished; returns what the study's summary says of it."""
        title = f"{identity.env} seed {identity.seed} {identity.kind}"
        context = stages.Context(identity, self.command, self.progress, True, title, self.folder)
        stage(context, path, *arguments)
        chosen = [*stages.RESULTS, "density"]
        summary = read_summary(path, chosen)
        what = {"stage": identity.kind, "env": identity.env, "seed": identity.seed}
        return {**what, **{key: summary[key] for key in chosen}}
