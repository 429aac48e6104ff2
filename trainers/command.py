"""The training command: flags, files of flags, and which stage they ask for."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from fastcollect.control.config import resolve_env
from fastcollect.support.command import check_folder
from fastcollect.support.errors import ConfigError
from trainers.config.training import PruneConfig, RewindConfig, Stage, TrainConfig, check, check_prune, plain
from trainers.run.observers import InterruptedRunError
from trainers.run.progress import Progress
from trainers.run.training import collector_config
from trainers.store.folder import config_hash, read_config, read_manifest
from trainers.store.reader import find_source
from trainers.study import stages
from trainers.study.rewind import Source, open_source
from trainers.study.transfer import transfer

TASK_SETTINGS: dict[str, dict[str, Any]] = {
    # bench/results/study: after 200,000 steps seed 1 had 0.10 of the goals, 0.68 with episodes of 200 steps
    # (which TD-MPC2's curves have too), 0.94 with these rewards and this entropy besides.
    "push-v3": {
        "env_steps": 250_000,
        "env_kwargs": ("horizon=200",),
        "algorithm": {
            "n_step": 3,
            "reward_scale": 1.0,
            "initial_temperature": 0.1,
            "temperature_learning_rate": 3e-3,
            "target_entropy": 0.0,
        },
    },
    "pick-place-v3": {"env_steps": 2_000_000, "evaluation": {"every": 100_000}},
}
"""Defaults of single tasks, where they differ from TrainConfig's."""


@dataclass(frozen=True, kw_only=True)
class TrainArguments(TrainConfig):
    """What ``python train.py`` takes."""

    stage: Stage
    """dense: a run of its own. ticket: prune, rewind and retrain one. transfer: a ticket's mask on another
    task. all: every one of them, for tasks and seeds."""
    source: Annotated[Path | None, tyro.conf.arg(name="from", metavar="RUN")] = None
    """Run folder to begin from: a dense run for a ticket, a ticket for a transfer. Its settings are the
    defaults of this run's."""
    prune: PruneConfig = field(default_factory=PruneConfig)
    rewind: RewindConfig = field(default_factory=RewindConfig)
    controls: bool = False
    """Also train the matched controls of a ticket, at the same budget."""
    control_rounds: tuple[int, ...] = ()
    """Rounds that get controls; default: the last, where the one without a mask is trained in any case. A
    finished ticket can be given controls later."""
    tasks: tuple[str, ...] = ("reach-v3",)
    """Stage all: tasks to draw tickets on."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Stage all: seeds of each task."""
    targets: tuple[str, ...] = ("push-v3",)
    """Stage all: tasks to transfer each ticket to."""
    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """YAML file, or run folder, with values for any of these flags; flags on the command line win."""
    run: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """The run's folder; default: RUNS/ENV/STAGE-seedSEED-HASH."""
    runs: Path = Path("runs")
    """Where run folders are made."""
    resume: bool = False
    """Go on with an unfinished run of the same configuration."""


def parse(argv: Sequence[str]) -> TrainArguments:
    """Arguments from the command line, over ``--config``'s, over the source's and the task's settings.

    Raises ConfigError for files that cannot be read; exits with 2 for flags that do not exist or fit.
    """
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--config", "--from", "--env"):
        early.add_argument(name)
    early.add_argument("--env-kwargs", nargs="*", default=[])
    known, _ = early.parse_known_args(argv)
    given = read_config(known.config) if known.config else {}
    source = known.__dict__["from"] or given.get("from")
    base = _inherited(read_config(source)) if source is not None else {}
    env = known.env or given.get("env")
    task: Mapping[str, Any] = {}
    if env is not None and env != base.get("env"):
        base = _without(base, {"env_steps": None, "evaluation": None})
        base = _without(base, TASK_SETTINGS.get(base.get("env", ""), {}))
        task = TASK_SETTINGS.get(env, {})
    description = "Train a dense policy, draw lottery tickets from it, transfer them."
    flags = [*as_flags(base), *as_flags(task), *as_flags(given), *argv]
    if pairs := _env_kwargs(base, task, given, {"env_kwargs": known.env_kwargs}):
        flags += ["--env-kwargs", *pairs]
    return tyro.cli(TrainArguments, args=flags, description=description, prog="train.py")


def _inherited(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a run takes over from its source: all about training, and to what its weights are rewound."""
    names = {each.name for each in dataclasses.fields(TrainConfig)}
    rewind = config.get("rewind")
    kept = {"rewind": {"parameters": rewind["parameters"]}} if rewind else {}
    return {key: value for key, value in config.items() if key in names} | kept


def _env_kwargs(*layers: Mapping[str, Any]) -> list[str]:
    """Every layer's texts name=value, the last one of each name: one more does not take away the others."""
    found = {}
    for layer in layers:
        texts = layer.get("env_kwargs") or ()
        for text in map(str, texts if isinstance(texts, (list, tuple)) else (texts,)):
            found[text.partition("=")[0]] = text
    return list(found.values())


def _without(config: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without what the settings name, nested names and texts of lists too."""
    kept = dict(config)
    for key, value in settings.items():
        if isinstance(value, Mapping) and isinstance(kept.get(key), Mapping):
            kept[key] = _without(kept[key], value)
        elif isinstance(value, tuple) and isinstance(kept.get(key), list):
            kept[key] = [each for each in kept[key] if each not in value]
        else:
            kept.pop(key, None)
    return kept


def as_flags(config: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The command line that says the same as a mapping, nested ones by dotted names."""
    flags: list[str] = []
    for key, value in config.items():
        name = f"{prefix}{str(key).replace('_', '-')}"
        if isinstance(value, Mapping):
            flags += as_flags(value, f"{name}.")
        elif isinstance(value, bool):
            head, dot, tail = name.rpartition(".")
            flags.append(f"--{head}{dot}{'' if value else 'no-'}{tail}")
        elif isinstance(value, (list, tuple)):
            flags += [f"--{name}", *map(str, value)]
        else:
            flags += [f"--{name}", str(value)]
    return flags


def train_config(arguments: TrainArguments, **changes: Any) -> TrainConfig:
    """The training's own part of the arguments. Raises ConfigError for values out of range."""
    names = [each.name for each in dataclasses.fields(TrainConfig)]
    config = TrainConfig(**{name: getattr(arguments, name) for name in names} | changes)
    check(config)
    return config


def collectable(config: TrainConfig) -> TrainConfig:
    """The configuration. Raises ConfigError if what it names cannot be collected from."""
    collection = collector_config(config)
    resolve_env(collection)
    return config


def train(arguments: TrainArguments) -> None:
    """Carry out the stage. Raises ConfigError before anything is started or written."""
    check_folder(arguments.run or arguments.runs)
    try:
        with Progress() as progress:
            _STAGES[arguments.stage](arguments, progress)
    except InterruptedRunError as stop:
        print(f"{stop}; go on with --resume", file=sys.stderr)
        sys.exit(128 + stop.signum)


def _dense(arguments: TrainArguments, progress: Progress) -> None:
    config = collectable(train_config(arguments))
    identity = dense_identity(config)
    path = arguments.run or default_path(arguments.runs, config.env, config.seed, identity)
    context = stages.Context(identity, _command(), progress, arguments.resume, _title(config, "dense"))
    _report(progress, path, stages.dense(context, path, config))


def _ticket(arguments: TrainArguments, progress: Progress) -> None:
    config = collectable(train_config(arguments))
    check_prune(arguments.prune)
    source = _source(arguments, "dense")
    rounds = control_rounds(arguments)
    identity = ticket_identity(config, arguments, source)
    path = arguments.run or default_path(arguments.runs, config.env, config.seed, identity)
    context = stages.Context(identity, _command(), progress, arguments.resume, _title(config, "ticket"))
    summary = stages.ticket(context, path, config, arguments.prune, arguments.rewind, source, rounds)
    _report(progress, path, summary)


def _transfer(arguments: TrainArguments, progress: Progress) -> None:
    config = collectable(train_config(arguments))
    source = _source(arguments, "ticket")
    dense = _drawn_from(source)
    identity = transfer_identity(config, arguments, source)
    path = arguments.run or default_path(arguments.runs, config.env, config.seed, identity)
    context = stages.Context(identity, _command(), progress, arguments.resume, _title(config, "transfer"))
    _report(progress, path, transfer(context, path, config, arguments.rewind, source, dense))


def _all(arguments: TrainArguments, progress: Progress) -> None:
    from trainers.study.orchestrator import run_all

    run_all(arguments, progress, sys.argv[1:])


_STAGES = {"dense": _dense, "ticket": _ticket, "transfer": _transfer, "all": _all}


def _source(arguments: TrainArguments, stage: str) -> Source:
    if arguments.source is None:
        raise ConfigError([f"--stage {arguments.stage} needs --from RUN, a finished {stage} run"])
    found = read_manifest(arguments.source)["facts"].get("stage")
    if found != stage:
        raise ConfigError([f"--from {str(arguments.source)!r} is a {found} run; allowed: a {stage} run"])
    return open_source(str(arguments.source))


def _drawn_from(ticket: Source) -> Source:
    """The dense run of a ticket, also where both were moved together."""
    named = read_manifest(ticket.path)["facts"].get("source")
    if not isinstance(named, dict) or not {"path", "config_hash"} <= named.keys():
        raise ConfigError([f"the manifest of {ticket.path!r} does not name its dense run"])
    found = find_source(Path(ticket.path), named)
    if found is None:
        raise ConfigError(
            [f"the dense run {named['path']!r} of the ticket {ticket.path!r} is gone or another"]
        )
    return open_source(str(found))


def control_rounds(arguments: TrainArguments) -> tuple[int, ...]:
    """The rounds that get controls. Raises ConfigError for one that does not exist."""
    last = len(stages.rounds(arguments.prune))
    wrong = [number for number in arguments.control_rounds if not 1 <= number <= last]
    if wrong:
        raise ConfigError([f"control_rounds has {wrong}; allowed: 1 to {last}"])
    return (arguments.control_rounds or (last,)) if arguments.controls else ()


def dense_identity(config: TrainConfig) -> dict[str, Any]:
    """What a dense run's manifest has at its top."""
    return {"stage": "dense", **plain(config)}


def ticket_identity(config: TrainConfig, arguments: TrainArguments, source: Source) -> dict[str, Any]:
    """What a ticket's manifest has at its top."""
    return {
        "stage": "ticket",
        "from": source.path,
        **plain(config),
        "prune": plain(arguments.prune),
        "rewind": plain(arguments.rewind),
    }


def transfer_identity(config: TrainConfig, arguments: TrainArguments, source: Source) -> dict[str, Any]:
    """What a transfer's manifest has at its top."""
    rewind = {"parameters": arguments.rewind.parameters}
    return {"stage": "transfer", "from": source.path, **plain(config), "rewind": rewind}


def default_path(runs: Path, env: str, seed: int, identity: Mapping[str, Any]) -> Path:
    """Where a run lies whose folder was not named: the hash keeps other configurations apart."""
    name = "".join(c if c.isalnum() or c in "-_." else "_" for c in env)
    return runs / name / f"{identity['stage']}-seed{seed}-{config_hash(identity)[:8]}"


def _title(config: TrainConfig, stage: str) -> str:
    return f"{config.env} seed {config.seed} {stage}"


def written(argv: Sequence[str]) -> list[str]:
    """The whole command, for manifests."""
    return ["python", "train.py", *argv]


def _command() -> list[str]:
    return written(sys.argv[1:])


def _report(progress: Progress, path: Path, summary: Mapping[str, Any]) -> None:
    progress.say(
        f"success any {summary['success_any']:.2f}  last {summary['success_last']:.2f}  "
        f"return {summary['return_mean']:,.0f}  {summary['env_steps']:,} steps  "
        f"{summary['updates']:,} updates  {summary['wall_seconds']:.0f} s"
    )
    progress.say(f"run folder: {path}")
