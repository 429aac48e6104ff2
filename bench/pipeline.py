"""Wall clock of a whole study of one seed: dense run and every round of a ticket, ours and the original's.

python -m bench.pipeline --env reach-v3 --json FILE

Ours is run whole, by train.py. The original's protocol makes the same numbers of environment steps and
updates with the same networks and batches; at its rate that takes hours, so it runs for --seconds, half of
them before and half after ours, and its wall clock is projected from that rate. Evaluations are left out of
its account. Controls, if --flags asks for them, are part of the study and of both accounts.
"""

from __future__ import annotations

import fastcollect.support.project_environment  # noqa: F401  (first: it may change the interpreter)

# isort: split
import json
import math
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.table import Table

from bench.original_protocol import stock_arguments
from bench.table import console, machine_line
from fastcollect.envs.registry import METAWORLD_TASKS
from fastcollect.support.command import check_folder, check_writable, run
from fastcollect.support.errors import ConfigError
from fastcollect.support.files import write_file
from fastcollect.support.machine import machine
from trainers.command import TrainArguments, read

STAGES = ("dense", "ticket")
_ROOT = Path(__file__).resolve().parent.parent
_OURS = ("--stage", "--env", "--seed", "--from", "--run", "--runs", "--resume")
"""Flags of train.py that this command gives itself."""


@dataclass(frozen=True, kw_only=True)
class PipelineArguments:
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
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Also write the result here."""


def check(arguments: PipelineArguments) -> TrainArguments:
    """What train.py makes of the dense stage's flags. Raises ConfigError naming every value that cannot work.

    Exits with 2 for --flags that do not exist or fit, as train.py does.
    """
    problems = []
    if not 0 < arguments.seconds < math.inf:
        problems.append(f"--seconds is {arguments.seconds}; allowed: above 0")
    if arguments.env not in METAWORLD_TASKS:
        problems.append(f"--env is {arguments.env!r}; allowed: a Meta-World task such as 'reach-v3'")
    problems += _problems(lambda: check_writable(arguments.json), "--json: ")
    if (runs := arguments.runs) is not None:
        problems += _problems(lambda: check_folder(runs), "--runs: ")
        # Of a finished run train.py only says that it is: that would be measured.
        problems += [
            f"--runs: {str(runs / stage)!r} exists; allowed: a folder without it"
            for stage in STAGES
            if os.path.lexists(runs / stage)
        ]
    try:
        chosen, found = read(_flags(arguments, "--stage", "ticket")).built()
    except ConfigError as error:
        raise ConfigError([*problems, *(f"--flags: {each}" for each in error.problems)]) from None
    problems += found + _problems(lambda: stock_arguments(chosen.env_kwargs))
    if problems:
        raise ConfigError(problems)
    return chosen


def _problems(check: Callable[[], object], prefix: str = "") -> list[str]:
    """What a check finds wrong."""
    try:
        check()
    except ConfigError as error:
        return [f"{prefix}{problem}" for problem in error.problems]
    return []


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
    for row in ticket["rounds"]:  # and controls
        # What a run goes on from it did not make itself; a random mask goes on from nothing.
        fresh = from_zero or row["name"] == "random-mask"
        for key in made:
            made[key] += row[key] - (0 if fresh else ticket["anchor"][key])
    return {**made, "rounds": sum(row["name"] == "ticket" for row in ticket["rounds"])}


def accounts(
    made: Mapping[str, int], stages: Mapping[str, float], measured: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Rows of ours and of the original's protocol, whose wall clock is projected.

    made: see ``trained``. stages: seconds of each of ours. measured: stretches of the original's.
    """
    work = {key: made[key] for key in ("env_steps", "updates")}
    pace = [part["env_steps"] / part["seconds"] for part in measured]
    ours = {
        "method": "ours",
        **work,
        "wall_seconds": sum(stages.values()),
        "stages": dict(stages),
        "rounds": made["rounds"],
        "projected": False,
    }
    original = {
        "method": "original protocol",
        **work,
        "wall_seconds": made["env_steps"] * len(pace) / sum(pace),
        "env_steps_per_second": pace,
        "measured": list(measured),
        "projected": True,
    }
    return [ours, original]


def pipeline(arguments: PipelineArguments) -> None:
    """Measure, print, write. Raises ConfigError for wrong values, before anything is started."""
    chosen = check(arguments)
    with tempfile.TemporaryDirectory(prefix="fastcollect-pipeline-") as temporary:
        # The stages run in the project's folder, whatever ours is.
        runs = Path(temporary) if arguments.runs is None else arguments.runs.resolve()
        before = _original(arguments)
        stages = _ours(arguments, runs)
        after = _original(arguments)
        dense, ticket = (json.loads((runs / stage / "summary.json").read_text()) for stage in STAGES)
    made = trained(dense, ticket, from_zero=chosen.rewind.step == "zero")
    rows = accounts(made, stages, [before, after])
    _print(rows)
    if arguments.json is not None:
        result = {
            "machine": machine(),
            "command": shlex.join(["python", "-m", "bench.pipeline", *sys.argv[1:]]),
            "env": arguments.env,
            "seed": arguments.seed,
            "rows": rows,
            "speedup": rows[1]["wall_seconds"] / rows[0]["wall_seconds"],
            "results": [
                {"stage": "dense", **{k: dense[k] for k in ("success_any", "success_last", "return_mean")}},
                *ticket["rounds"],
            ],
        }
        write_file(arguments.json, json.dumps(result, indent=2) + "\n")


def _ours(arguments: PipelineArguments, runs: Path) -> dict[str, float]:
    """Seconds of each stage, from the command's start to its end."""
    own = {"dense": (), "ticket": ("--from", str(runs / "dense"))}
    seconds = {}
    for stage in STAGES:
        began = time.perf_counter()
        flags = _flags(arguments, "--stage", stage, *own[stage], "--run", str(runs / stage))
        command = [sys.executable, "train.py", *flags]
        done = subprocess.run(command, cwd=_ROOT, check=False)
        if done.returncode:
            raise ConfigError([f"train.py ended with {done.returncode}: {shlex.join(command)}"])
        seconds[stage] = time.perf_counter() - began
    return seconds


def _original(arguments: PipelineArguments) -> dict[str, Any]:
    """Half of the time for the original's protocol, in a process of its own."""
    code = (
        "import json, sys; from bench.original_protocol import OriginalProtocol; "
        "from trainers.command import parse; a = parse(json.loads(sys.argv[1])); "
        "p = OriginalProtocol(a.env, a.algorithm, a.updates_per_step, a.env_kwargs); "
        "p.run(float(sys.argv[2]) / 4); print(json.dumps(p.run(float(sys.argv[2])))); p.close()"
    )
    flags = json.dumps(_flags(arguments, "--stage", "dense"))
    command = [sys.executable, "-c", code, flags, str(arguments.seconds / 2)]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError([f"the original's protocol failed: {done.stderr[-2000:]}"])
    return json.loads(done.stdout.splitlines()[-1])


def _print(rows: list[dict[str, Any]]) -> None:
    table = Table(title="one seed: dense and ticket", title_justify="left")
    for name in ("method", "env steps", "updates", "minutes", "how"):
        table.add_column(name, justify="left" if name in ("method", "how") else "right")
    for row in rows:
        table.add_row(
            row["method"],
            f"{row['env_steps']:,}",
            f"{row['updates']:,}",
            f"{row['wall_seconds'] / 60:.1f}",
            "projected from its rate" if row["projected"] else "measured",
        )
    out = console()
    out.print(table)
    out.print(f"{rows[1]['wall_seconds'] / rows[0]['wall_seconds']:.1f} times faster")
    out.print(machine_line(machine()))


if __name__ == "__main__":
    chosen = tyro.cli(PipelineArguments, description=__doc__, prog="python -m bench.pipeline")
    run(lambda: pipeline(chosen))
