"""Stage all: dense run, ticket and transfers for every task and seed, one after the other.

Each is a run folder of its own with the configuration it would have alone, so what is finished is skipped by
its hash, and what was interrupted goes on where it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fastcollect.errors import ConfigError
from trainers import command, stages
from trainers.config import TrainConfig, check_prune, plain
from trainers.progress import Progress
from trainers.rewind import Source, open_source
from trainers.run_folder import RunFolder, read_summary

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
                results += _one(arguments, progress, argv, root / task / f"seed-{seed}", task, seed, rounds)
        folder.write_summary({"stage": "all", "results": results} | _mean(results))
    progress.say(f"run folder: {root}")


def _one(
    arguments: TrainArguments,
    progress: Progress,
    argv: Sequence[str],
    base: Any,
    task: str,
    seed: int,
    rounds: Sequence[int],
) -> list[dict[str, Any]]:
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
        _result("dense", task, seed, read_summary(base / "dense")),
        _result("ticket", task, seed, read_summary(base / "ticket")),
    ]
    for target in (each for each in arguments.targets if each != task):
        results += _transfer(arguments, argv, context, base, target, seed, ticket, dense)
    return results


def _transfer(
    arguments: TrainArguments,
    argv: Sequence[str],
    context: Any,
    base: Any,
    target: str,
    seed: int,
    ticket: Source,
    dense: Source,
) -> list[dict[str, Any]]:
    """The transfer's variants, and the target's own dense run to hold them against."""
    config = _for_task(argv, target, seed)
    identity = command.dense_identity(config)
    own = base / f"{target}-dense"
    stages.dense(context("dense", identity, target), own, config)
    identity = command.transfer_identity(config, arguments, ticket)
    path = base / f"transfer-{target}"
    stages.transfer(context("transfer", identity, target), path, config, arguments.rewind, ticket, dense)
    return [
        _result("dense", target, seed, read_summary(own)),
        _result("transfer", target, seed, read_summary(path)),
    ]


def _for_task(argv: Sequence[str], task: str, seed: int) -> TrainConfig:
    """The configuration of one run: what the user said, over the task's own settings."""
    return command.train_config(command.parse([*argv, "--env", task, "--seed", str(seed)]))


def _result(stage: str, task: str, seed: int, summary: Mapping[str, Any]) -> dict[str, Any]:
    chosen = ("success_any", "success_last", "return_mean", "env_steps", "updates", "wall_seconds", "density")
    return {"stage": stage, "env": task, "seed": seed, **{key: summary[key] for key in chosen}}


def _mean(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    seconds = sum(row["wall_seconds"] for row in results)
    return {"wall_seconds": seconds, "env_steps": sum(row["env_steps"] for row in results)}
