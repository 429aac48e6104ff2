"""The training command: flags, files of flags, and which stage they ask for."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import tyro

from fastcollect.support.command import check_folder
from fastcollect.support.errors import ConfigError
from trainers.config.build import build, with_algorithm
from trainers.config.merge import Layer, combine
from trainers.config.training import (
    ALGORITHM,
    Stage,
    StudyConfig,
    TrainConfig,
    problems_of,
    prune_problems,
    train_config,
)
from trainers.run.observers import InterruptedRunError
from trainers.run.progress import Progress
from trainers.store.identity import Identity, dense_identity
from trainers.store.manifest import read_config
from trainers.study import stages
from trainers.study.identities import (
    default_path,
    drawn_from,
    open_kind,
    study_identity,
    study_root,
    ticket_identity,
    transfer_identity,
)
from trainers.study.orchestrator import run_all
from trainers.study.rewind import Source

_DESCRIPTION = "Train a dense policy, draw lottery tickets from it, transfer them."
_FLAGS = "the command line"


@dataclass(frozen=True, kw_only=True)
class TrainArguments(StudyConfig):
    """What ``python train.py`` takes."""

    stage: Stage
    """dense: a run of its own. ticket: prune, rewind and retrain one. transfer: a ticket's mask on another
    task. all: every one of them, for tasks and seeds."""
    source: Annotated[Path | None, tyro.conf.arg(name="from", metavar="RUN")] = None
    """Run folder to begin from: a dense run for a ticket, a ticket for a transfer. Its settings are the
    defaults of this run's."""
    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """YAML file, or run folder, with values for any of these flags; flags on the command line win."""
    run: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """The run's folder; default: RUNS/ENV/STAGE-seedSEED-HASH."""
    runs: Path = Path("runs")
    """Where run folders are made."""
    resume: bool = False
    """Go on with an unfinished run of the same configuration."""


@dataclass(frozen=True)
class Given:
    """What the user gave, place by place, and the class of arguments for the algorithm that was chosen."""

    arguments_class: type
    flags: Layer
    file: Layer | None
    source: Layer | None

    def built(self, **changes: Any) -> tuple[TrainArguments, list[str]]:
        """All settings together, with these in place of the flags', and what is out of range in them.

        Raises ConfigError for names that are no setting's and values of another type.
        """
        flags = Layer(self.flags.origin, {**self.flags.settings, **changes})
        merged = combine(flags=flags, file=self.file, source=self.source)
        arguments = build(self.arguments_class, merged)
        problems = problems_of(arguments)
        if arguments.stage in ("ticket", "all"):
            problems += prune_problems(arguments.prune) or stages.control_problems(arguments)
        return arguments, merged.explained(problems)

    def arguments(self, **changes: Any) -> TrainArguments:
        """As ``built``; raises ConfigError naming every value that cannot work, and where it was given."""
        arguments, problems = self.built(**changes)
        if problems:
            raise ConfigError(problems)
        return arguments

    def configure(self, env: str, seed: int) -> TrainConfig:
        """The configuration of one run of a study: what the user gave, over the environment's own."""
        return train_config(self.arguments(env=env, seed=seed))


def read(argv: Sequence[str]) -> Given:
    """What the command line gives, and the files that it names.

    Raises ConfigError for files that cannot be read; exits with 2 for flags that do not exist or fit.
    """
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("config", "from", "env", "algo"):
        early.add_argument(f"--{name}")
    known = vars(early.parse_known_args(argv)[0])
    file = source = None
    if known["config"] is not None:
        settings = read_config(known["config"])
        if "from" in settings:
            settings["source"] = settings.pop("from")
        file = Layer(f"the file {known['config']!r}", settings)
    path = known["from"] or (file.settings.get("source") if file else None)
    if path is not None:
        source = Layer(f"the run {path!r}", read_config(path))
    chosen = {name: known[name] for name in ("env", "algo") if known[name] is not None}
    lower = combine(flags=Layer(_FLAGS, chosen), file=file, source=source)
    cls = with_algorithm(TrainArguments, str(lower.settings.get("algo", ALGORITHM)))
    default = build(cls, lower, stage=tyro.MISSING)
    parsed = tyro.cli(cls, args=argv, default=default, description=_DESCRIPTION, prog="train.py")
    return Given(cls, Layer(_FLAGS, _given(argv, parsed)), file, source)


def parse(argv: Sequence[str]) -> TrainArguments:
    """Arguments from the command line, over ``--config``'s, over the source's and the task's settings.

    Raises as ``read``, and as ``Given.arguments``.
    """
    return read(argv).arguments()


def _given(argv: Sequence[str], parsed: Any) -> dict[str, Any]:
    """The settings that flags of the command line name, with the values that were parsed."""
    words = {word[2:].partition("=")[0].replace("_", "-") for word in argv if word.startswith("--")}
    found: dict[str, Any] = {}
    for path in _paths(type(parsed)):
        flag = ".".join(path).replace("_", "-") if path != ("source",) else "from"
        head, dot, last = flag.rpartition(".")
        if not words & {flag, f"{head}{dot}no-{last}"}:
            continue
        into, value = found, parsed
        for name in path[:-1]:
            into = into.setdefault(name, {})
        for name in path:
            value = getattr(value, name)
        into[path[-1]] = str(value) if isinstance(value, Path) else value
    return found


def _paths(cls: type) -> Iterator[tuple[str, ...]]:
    hints = get_type_hints(cls)
    for each in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[each.name]):
            yield from ((each.name, *path) for path in _paths(hints[each.name]))
        else:
            yield (each.name,)


def main(argv: Sequence[str]) -> None:
    """Carry out the stage that the command line asks for. Raises ConfigError before anything is written."""
    given = read(argv)
    arguments = given.arguments()
    check_folder(arguments.run or arguments.runs)
    command = ["python", "train.py", *argv]
    try:
        with Progress() as progress:
            if arguments.stage == "all":
                study = train_config(arguments, StudyConfig)
                path = arguments.run or default_path(arguments.runs, study_identity(study), "study")
                run_all(study, given.configure, path, command, progress)
            else:
                _STAGES[arguments.stage](arguments, command, progress)
    except InterruptedRunError as stop:
        print(f"{stop}; go on with --resume", file=sys.stderr)
        sys.exit(128 + stop.signum)


def _dense(arguments: TrainArguments, command: Sequence[str], progress: Progress) -> None:
    config = stages.collectable(train_config(arguments))
    path, context = _place(arguments, lambda _: dense_identity(config), command, progress)
    _report(progress, path, stages.dense(context, path, config))


def _ticket(arguments: TrainArguments, command: Sequence[str], progress: Progress) -> None:
    config = stages.collectable(train_config(arguments))
    source, prune, matrix = _source(arguments, "dense"), arguments.prune, arguments.rewind
    path, context = _place(
        arguments, lambda root: ticket_identity(config, prune, matrix, source, root), command, progress
    )
    rounds = stages.control_rounds(arguments)
    _report(progress, path, stages.ticket(context, path, config, prune, matrix, source, rounds))


def _transfer(arguments: TrainArguments, command: Sequence[str], progress: Progress) -> None:
    config = stages.collectable(train_config(arguments))
    source, matrix = _source(arguments, "ticket"), arguments.rewind
    dense = drawn_from(source)
    path, context = _place(
        arguments, lambda root: transfer_identity(config, matrix, source, dense, root), command, progress
    )
    _report(progress, path, stages.transfer(context, path, config, matrix, source, dense))


_STAGES = {"dense": _dense, "ticket": _ticket, "transfer": _transfer}


def _source(arguments: TrainArguments, kind: str) -> Source:
    if arguments.source is None:
        raise ConfigError([f"--stage {arguments.stage} needs --from RUN, a finished {kind} run"])
    return open_kind(arguments.source, kind)


def _place(
    arguments: TrainArguments,
    identify: Callable[[Path], Identity],
    command: Sequence[str],
    progress: Progress,
) -> tuple[Path, stages.Context]:
    """The folder of a stage, and what it carries along. identify: the root of its study -> its identity."""
    path = arguments.run or default_path(arguments.runs, identify(arguments.runs))
    identity = identify(study_root(path))
    title = f"{identity.env} seed {identity.seed} {identity.kind}"
    return path, stages.Context(identity, command, progress, arguments.resume, title)


def _report(progress: Progress, path: Path, summary: Mapping[str, Any]) -> None:
    progress.say(
        f"success any {summary['success_any']:.2f}  last {summary['success_last']:.2f}  "
        f"return {summary['return_mean']:,.0f}  {summary['env_steps']:,} steps  "
        f"{summary['updates']:,} updates  {summary['wall_seconds']:.0f} s"
    )
    progress.say(f"run folder: {path}")
