"""Wall clock of a whole study of one seed: dense run and every round of a ticket, ours and the original's.

python -m bench.pipeline --env reach-v3 --json FILE

Ours is run whole, by train.py. The original's protocol makes the same numbers of environment steps and
updates with the same networks and batches; at its rate that takes hours, so it runs for --seconds, half of
them before and half after ours, and its wall clock is projected from that rate. Evaluations are left out of
its account. Controls, if --flags asks for them, are part of the study and of both accounts.
"""

import contextlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.harness.command import Output, Problems, main, save
from bench.harness.measure import MeasurementError, started
from bench.harness.results import plain_table, show
from bench.methods.original_protocol import StudyRequest, stock_arguments
from bench.product import TrainArguments, study
from fastcollect import ConfigError
from fastcollect.envs.registry import METAWORLD_TASKS
from fastcollect.support.command import check_folder

STAGES = ("dense", "ticket")
_ROOT = Path(__file__).resolve().parent.parent
_OURS = ("--stage", "--env", "--seed", "--from", "--run", "--runs", "--resume")
"""Flags of train.py that this command gives itself."""


@dataclass(frozen=True, kw_only=True)
class PipelineArguments(Output):
    """What ``python -m bench.pipeline`` takes."""

    env: str = "reach-v3"
    """Meta-World task."""
    seed: int = 0
    """Of our runs."""
    seconds: float = 60.0
    """How long the original's protocol is measured, half before ours and half after."""
    flags: str = ""
    """More flags of train.py for both of our stages, in one text: --flags="--controls"."""
    runs: Path | None = None
    """Keep our run folders here, in new folders dense and ticket; default: they are removed."""


def check(arguments: PipelineArguments) -> TrainArguments:
    """What train.py makes of the dense stage's flags. Raises ConfigError naming every value that cannot work.

    Exits with 2 for --flags that do not exist or fit, as train.py does.
    """
    problems = Problems(arguments)
    problems.positive("seconds", arguments.seconds)
    task = "a Meta-World task such as 'reach-v3'"
    problems.require(arguments.env in METAWORLD_TASKS, "env", arguments.env, task)
    if (runs := arguments.runs) is not None:
        with problems.kept("--runs: "):
            check_folder(runs)
        # Of a finished run train.py only says that it is: that would be measured.
        problems.found += [
            f"--runs: {str(runs / stage)!r} exists; allowed: a folder without it"
            for stage in STAGES
            if os.path.lexists(runs / stage)
        ]
    with problems.kept("--flags: "):
        chosen, refused = study(_flags(arguments, "--stage", "dense"))
        problems.found += refused
        with problems.kept():
            stock_arguments(chosen.env_kwargs)
    problems.raise_any()
    return chosen


def _flags(arguments: PipelineArguments, *own: str) -> list[str]:
    """Of train.py, for a stage with flags of its own. Raises ConfigError."""
    try:
        words = shlex.split(arguments.flags)
    except ValueError as error:
        raise ConfigError([f"{arguments.flags!r} cannot be read: {error}"]) from None
    if twice := [word for word in words if word.partition("=")[0] in _OURS]:
        raise ConfigError([f"{word} is given by this command itself" for word in twice])
    return [*own, "--env", arguments.env, "--seed", str(arguments.seed), *words]


def trained(dense: Mapping[str, Any], ticket: Mapping[str, Any], *, from_zero: bool) -> dict[str, int]:
    """Environment steps and updates that a study made, and its rounds.

    dense, ticket: the stages' summaries. from_zero: whether rounds began at step 0, not at the anchor's.
    """
    made = {key: dense[key] for key in ("env_steps", "updates")}
    for run in ticket["rounds"]:  # and controls
        # What a run goes on from it did not make itself; a random mask goes on from nothing.
        fresh = from_zero or run["name"] == "random-mask"
        for key in made:
            made[key] += run[key] - (0 if fresh else ticket["anchor"][key])
    return {**made, "rounds": sum(run["name"] == "ticket" for run in ticket["rounds"])}


def accounts(
    made: Mapping[str, int], stages: Mapping[str, float], pace: Sequence[float]
) -> list[dict[str, Any]]:
    """Rows of ours and of the original's protocol, whose wall clock is projected.

    made: see ``trained``. stages: seconds of each of ours. pace: the original's environment steps per second
    in each measurement.
    """
    work = {key: made[key] for key in ("env_steps", "updates")}
    ours = {"wall_seconds": sum(stages.values()), "stages": stages, "rounds": made["rounds"]}
    original = {"wall_seconds": made["env_steps"] * len(pace) / sum(pace), "env_steps_per_second": pace}
    return [
        {"method": "ours", **work, **ours, "projected": False},
        {"method": "original protocol", **work, **original, "projected": True},
    ]


def pipeline(arguments: PipelineArguments) -> None:
    """Measure, write, show. Raises ConfigError for wrong values, before anything is started."""
    chosen = check(arguments)
    with tempfile.TemporaryDirectory(prefix="fastcollect-pipeline-") as temporary:
        # The stages run in the project's folder, whatever ours is.
        runs = Path(temporary) if arguments.runs is None else arguments.runs.resolve()
        with _original(arguments) as pace:
            before, stages, after = pace(), _ours(arguments, runs), pace()
        dense, ticket = (json.loads((runs / stage / "summary.json").read_text()) for stage in STAGES)
    made = trained(dense, ticket, from_zero=chosen.rewind.step == "zero")
    rows = accounts(made, stages, [before, after])
    speedup = rows[1]["wall_seconds"] / rows[0]["wall_seconds"]
    summary = {key: dense[key] for key in ("success_any", "success_last", "return_mean")}
    results = [{"stage": "dense", **summary}, *ticket["rounds"]]
    result = save(arguments, arguments.json, rows=rows, speedup=speedup, results=results)
    lines = []
    for row in rows:
        how, minutes = "projected from its rate" if row["projected"] else "measured", row["wall_seconds"] / 60
        numbers = (f"{row['env_steps']:,}", f"{row['updates']:,}", f"{minutes:.1f}")
        lines.append([row["method"], how, *numbers])
    names = ("method", "how", "env steps", "updates", "minutes")
    table = plain_table("one seed: dense and ticket", names, lines, left=2)
    show(result, table, f"{speedup:.1f} times faster")


def _ours(arguments: PipelineArguments, runs: Path) -> dict[str, float]:
    """Seconds of each stage, from the command's start to its end."""
    own = {"dense": (), "ticket": ("--from", str(runs / "dense"))}
    seconds = {}
    for stage in STAGES:
        flags = _flags(arguments, "--stage", stage, *own[stage], "--run", str(runs / stage))
        command, began = [sys.executable, "train.py", *flags], time.perf_counter()
        done = subprocess.run(command, cwd=_ROOT, check=False)
        if done.returncode:
            raise ConfigError([f"train.py ended with {done.returncode}: {shlex.join(command)}"])
        seconds[stage] = time.perf_counter() - began
    return seconds


@contextlib.contextmanager
def _original(arguments: PipelineArguments) -> Iterator[Callable[[], float]]:
    """What measures the original's environment steps per second, over half of the time asked for.

    Its process stands still between two measurements.
    """
    request = StudyRequest(method="original-protocol", flags=tuple(_flags(arguments, "--stage", "dense")))
    try:
        with started([request]) as measure_slice:
            yield lambda: measure_slice(arguments.seconds / 8, arguments.seconds / 2)["rate"]
    except MeasurementError as error:
        raise ConfigError([f"the original's protocol failed: {error}"]) from error


if __name__ == "__main__":
    main(PipelineArguments, pipeline, __doc__)
