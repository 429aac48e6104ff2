"""The training command: flags, files of flags, and which stage they ask for."""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from fastcollect.support.command import check_folder
from fastcollect.support.errors import ConfigError
from trainers.config.build import Layer, build, combine, with_algorithm
from trainers.config.sparse import SparseConfig, sparse_problems
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
from trainers.study import sparse, stages
from trainers.study.identities import (
    default_path,
    drawn_from,
    open_kind,
    sparse_identity,
    study_identity,
    study_root,
    ticket_identity,
    transfer_identity,
)
from trainers.study.orchestrator import run_all

_FLAGS = "the command line"


@dataclass(frozen=True, kw_only=True)
class TrainArguments(StudyConfig):
    """Train a dense policy, draw lottery tickets from it, transfer them; or train sparse from the start."""

    stage: Stage
    """dense: a run of its own. ticket: prune, rewind and retrain one. transfer: a ticket's mask on another
    task. sparse: a run whose networks are sparse from the start. all: dense, ticket and transfer, for tasks
    and seeds."""
    sparse: Annotated[SparseConfig, tyro.conf.arg(name="")] = field(default_factory=SparseConfig)
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
        if arguments.stage == "sparse":
            problems += sparse_problems(arguments.sparse, arguments)
        return arguments, merged.explained(problems)

    def arguments(self, **changes: Any) -> TrainArguments:
        """As ``built``; raises ConfigError naming every value that cannot work, and where it was given."""
        arguments, problems = self.built(**changes)
        if problems:
            raise ConfigError(problems)
        return arguments


def read(argv: Sequence[str]) -> Given:
    """What the command line gives, and the files that it names.

    Raises ConfigError for files that cannot be read; exits with 2 for flags that do not exist or fit.
    """
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("config", "from", "env", "algo", "stage"):
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
    if known["stage"] == "sparse":  # whose topology brings defaults of its own
        chosen["stage"] = "sparse"
    lower = combine(flags=Layer(_FLAGS, chosen), file=file, source=source)
    cls = with_algorithm(TrainArguments, str(lower.settings.get("algo", ALGORITHM)))
    default = build(cls, lower, stage=tyro.MISSING)
    parsed = tyro.cli(cls, args=argv, default=default, prog="train.py")
    words = {word[2:].partition("=")[0].replace("_", "-") for word in argv if word.startswith("--")}
    return Given(cls, Layer(_FLAGS, _given(words, parsed)), file, source)


def _given(words: Set[str], parsed: Any, at: str = "") -> dict[str, Any]:
    """The settings that these flags name, with the values that were parsed. at: the flag of ``parsed``."""
    found: dict[str, Any] = {}
    for name in (each.name for each in dataclasses.fields(parsed)):
        value, word = getattr(parsed, name), "from" if name == "source" else name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            # The settings of a topology are flags without a prefix.
            if inner := _given(words, value, at if name == "sparse" else f"{at}{word}."):
                found[name] = inner
        elif words & {f"{at}{word}", f"{at}no-{word}"}:
            found[name] = str(value) if isinstance(value, Path) else value
    return found


def main(argv: Sequence[str]) -> None:
    """Carry out the stage that the command line asks for. Raises ConfigError before anything is written."""
    given = read(argv)
    arguments = given.arguments()
    check_folder(arguments.run or arguments.runs)
    command = ["python", "train.py", *argv]
    try:
        with Progress() as progress:
            if arguments.stage != "all":
                _carry_out(arguments, command, progress)
                return
            study = train_config(arguments, StudyConfig)
            path = arguments.run or default_path(arguments.runs, study_identity(study), "study")

            def configure(env: str, seed: int) -> TrainConfig:
                return train_config(given.arguments(env=env, seed=seed))

            run_all(study, configure, path, command, progress)
    except InterruptedRunError as stop:
        print(f"{stop}; go on with --resume", file=sys.stderr)
        sys.exit(128 + stop.signum)


def _carry_out(arguments: TrainArguments, command: Sequence[str], progress: Progress) -> None:
    """One stage in a folder of its own."""
    identify, work = _stage(arguments)
    path = arguments.run or default_path(arguments.runs, identify(arguments.runs))
    identity = identify(study_root(path))
    title = f"{identity.env} seed {identity.seed} {identity.kind}"
    summary = work(stages.Context(identity, command, progress, arguments.resume, title), path)
    progress.say(
        f"success any {summary['success_any']:.2f}  last {summary['success_last']:.2f}  "
        f"return {summary['return_mean']:,.0f}  {summary['env_steps']:,} steps  "
        f"{summary['updates']:,} updates  {summary['wall_seconds']:.0f} s"
    )
    progress.say(f"run folder: {path}")


def _stage(
    arguments: TrainArguments,
) -> tuple[Callable[[Path], Identity], Callable[[stages.Context, Path], dict[str, Any]]]:
    """Of the chosen stage: its identity in the study at a root, and what it does in its folder."""
    config = stages.collectable(train_config(arguments))
    prune, matrix = arguments.prune, arguments.rewind
    if arguments.stage == "dense":
        return lambda _: dense_identity(config), lambda context, path: stages.dense(context, path, config)
    if arguments.stage == "sparse":
        chosen = arguments.sparse
        return (
            lambda _: sparse_identity(config, chosen),
            lambda context, path: sparse.sparse(context, path, config, chosen),
        )
    kind = "dense" if arguments.stage == "ticket" else "ticket"
    if arguments.source is None:
        raise ConfigError([f"--stage {arguments.stage} needs --from RUN, a finished {kind} run"])
    source = open_kind(arguments.source, kind)
    if arguments.stage == "ticket":
        rounds = stages.control_rounds(arguments)
        return (
            lambda root: ticket_identity(config, prune, matrix, source, root),
            lambda context, path: stages.ticket(context, path, config, prune, matrix, source, rounds),
        )
    dense = drawn_from(source)
    return (
        lambda root: transfer_identity(config, matrix, source, dense, root),
        lambda context, path: stages.transfer(context, path, config, matrix, source, dense),
    )
