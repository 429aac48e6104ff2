"""Stage all: dense run, ticket and transfers for every task and seed, one after the other.

Each is a run folder of its own with the configuration it would have alone, so what is finished is skipped by
its hash, and what was interrupted goes on where it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastcollect.support.errors import ConfigError
from trainers import command
from trainers.config.training import TrainConfig, check_prune, plain
from trainers.run.progress import Progress
from trainers.store.folder import RunFolder, read_summary
from trainers.study import stages
from trainers.study.rewind import Source, open_source
from trainers.study.transfer import transfer

if TYPE_CHECKING:
    from trainers.command import TrainArguments


def run_all(arguments: TrainArguments, progress: Progress, argv: Sequence[str]) -> None:
    """The whole study in one folder. Raises as its stages do; starting it again goes on.

    argv: what the user typed after the command's name.
    """
    check_prune(arguments.prune)
    rounds = command.control_rounds(arguments)
    if problems := [f"{n} is empty" for n in ("tasks", "seeds") if not getattr(arguments, n)]:
        raise ConfigError(problems)
    if arguments.targets and arguments.rewind.parameters == "final":
        raise ConfigError(["rewind.parameters is final; allowed with targets: anchor, initial"])
    for task in (*arguments.tasks, *arguments.targets):
        # What is wrong with the last task is said before hours of work on the first.
        command.collectable(_for_task(argv, task, arguments.seeds[0]))
    identity = {
        "stage": "all",
        **plain(command.train_config(arguments)),
        **{name: plain(getattr(arguments, name)) for name in ("prune", "rewind")},
        "controls": arguments.controls,
        "control_rounds": list(arguments.control_rounds),
        **{name: list(getattr(arguments, name)) for name in ("tasks", "seeds", "targets")},
    }
    root = arguments.run or command.default_path(arguments.runs, "study", arguments.seed, identity)
    with RunFolder.create(root, identity, command.written(argv), resume=True) as folder:
        if folder.finished():
            progress.say(f"{str(root)!r} is finished already")
            return
        folder.annotate(stage="all")
        results: list[dict[str, Any]] = []
        for task in arguments.tasks:
            for seed in arguments.seeds:
                found = _one(arguments, progress, argv, root, task, seed, rounds)
                results += [row for row in found if row not in results]  # a target may be a task too
        seconds = sum(row["wall_seconds"] for row in results)
        folder.write_summary({"stage": "all", "results": results, "wall_seconds": seconds})
    progress.say(f"run folder: {root}")


def _one(
    arguments: TrainArguments,
    progress: Progress,
    argv: Sequence[str],
    root: Path,
    task: str,
    seed: int,
    rounds: Sequence[int],
) -> list[dict[str, Any]]:
    base = root / task / f"seed-{seed}"

    def context(stage: str, identity: Mapping[str, Any], env: str) -> stages.Context:
        return stages.Context(identity, command.written(argv), progress, True, f"{env} seed {seed} {stage}")

    config = _for_task(argv, task, seed)
    identity = command.dense_identity(config)
    stages.dense(context("dense", identity, task), base / "dense", config)
    dense = open_source(str(base / "dense"))

    identity = command.ticket_identity(config, arguments, dense)
    stages.ticket(
        context("ticket", identity, task),
        base / "ticket",
        config,
        arguments.prune,
        arguments.rewind,
        dense,
        rounds,
    )
    ticket = open_source(str(base / "ticket"))
    results = [
        _result("dense", task, seed, base / "dense"),
        _result("ticket", task, seed, base / "ticket"),
    ]
    for target in (each for each in arguments.targets if each != task):
        results += _transfer(arguments, argv, context, root, task, target, seed, ticket, dense)
    return results


def _transfer(
    arguments: TrainArguments,
    argv: Sequence[str],
    context: Any,
    root: Path,
    task: str,
    target: str,
    seed: int,
    ticket: Source,
    dense: Source,
) -> list[dict[str, Any]]:
    """The transfer's variants, and the target's own dense run to hold them against."""
    config = _for_task(argv, target, seed)
    identity = command.dense_identity(config)
    own = root / target / f"seed-{seed}" / "dense"
    stages.dense(context("dense", identity, target), own, config)
    identity = command.transfer_identity(config, arguments, ticket)
    path = root / task / f"seed-{seed}" / f"transfer-{target}"
    transfer(context("transfer", identity, target), path, config, arguments.rewind, ticket, dense)
    return [
        _result("dense", target, seed, own),
        _result("transfer", target, seed, path),
    ]


def _for_task(argv: Sequence[str], task: str, seed: int) -> TrainConfig:
    """The configuration of one run: what the user said, over the task's own settings."""
    return command.train_config(command.parse([*argv, "--env", task, "--seed", str(seed)]))


def _result(stage: str, task: str, seed: int, path: Path) -> dict[str, Any]:
    chosen = [*stages.RESULTS, "density"]
    summary = read_summary(path, chosen)
    return {"stage": stage, "env": task, "seed": seed, **{key: summary[key] for key in chosen}}
