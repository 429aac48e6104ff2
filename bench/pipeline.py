"""Wall clock of a whole study of one seed: dense run and every round of a ticket, ours and the original's.

python -m bench.pipeline --env reach-v3 --json FILE

Ours is run whole, by train.py. The original's protocol makes the same numbers of environment steps and
updates with the same networks and batches; at its rate that takes hours, so it runs for --seconds before and
after ours and its wall clock is projected from that rate. Evaluations are left out of its account.
"""

from __future__ import annotations

import fastcollect.project_environment  # noqa: F401  (first: it may change the interpreter)

# isort: split
import json
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.table import Table

from bench.table import console, machine_line
from fastcollect.command import check_writable, run, write_atomically
from fastcollect.errors import ConfigError
from fastcollect.machine import machine

_ROOT = Path(__file__).resolve().parent.parent


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
    """More flags of train.py for both of our stages, in one text."""
    runs: Path | None = None
    """Keep our run folders here; default: they are removed."""
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Also write the result here."""


def pipeline(arguments: PipelineArguments) -> None:
    """Measure, print, write."""
    check_writable(arguments.json)
    with tempfile.TemporaryDirectory(prefix="fastcollect-pipeline-") as temporary:
        runs = arguments.runs or Path(temporary)
        before = _original(arguments, runs)
        stages = _ours(arguments, runs)
        after = _original(arguments, runs)
        summaries = {stage: json.loads((runs / stage / "summary.json").read_text()) for stage in stages}
    ticket = summaries["ticket"]
    trained = [summaries["dense"], *ticket["rounds"]]
    # A round goes on from the anchor; what it did not do itself is not counted.
    first = trained[0]
    anchor = ticket["anchor"]
    steps = first["env_steps"] + sum(row["env_steps"] - anchor["env_steps"] for row in trained[1:])
    updates = first["updates"] + sum(row["updates"] - anchor["updates"] for row in trained[1:])
    pace = [part["env_steps"] / part["seconds"] for part in (before, after)]
    rows = [
        {
            "method": "ours",
            "env_steps": steps,
            "updates": updates,
            "wall_seconds": sum(stages.values()),
            "stages": stages,
            "rounds": len(trained) - 1,
            "projected": False,
        },
        {
            "method": "original protocol",
            "env_steps": steps,
            "updates": updates,
            "wall_seconds": 2 * steps / sum(pace),
            "env_steps_per_second": pace,
            "measured": [before, after],
            "projected": True,
        },
    ]
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
                {"stage": "dense", **{k: first[k] for k in ("success_any", "success_last", "return_mean")}},
                *ticket["rounds"],
            ],
        }
        write_atomically(arguments.json, json.dumps(result, indent=2) + "\n")


def _ours(arguments: PipelineArguments, runs: Path) -> dict[str, float]:
    """Seconds of each stage, from the command's start to its end."""
    common = ["--seed", str(arguments.seed), *shlex.split(arguments.flags)]
    commands = {
        "dense": ["--stage", "dense", "--env", arguments.env, *common],
        "ticket": ["--stage", "ticket", "--from", str(runs / "dense"), *common],
    }
    seconds = {}
    for stage, flags in commands.items():
        began = time.perf_counter()
        command = [sys.executable, "train.py", *flags, "--run", str(runs / stage)]
        done = subprocess.run(command, cwd=_ROOT, check=False)
        if done.returncode:
            raise ConfigError([f"train.py ended with {done.returncode}: {shlex.join(command)}"])
        seconds[stage] = time.perf_counter() - began
    return seconds


def _original(arguments: PipelineArguments, runs: Path) -> dict[str, Any]:
    """Half of the time for the original's protocol, in a process of its own."""
    code = (
        "import json, sys; from bench.original_protocol import OriginalProtocol; "
        "from trainers.command import parse; a = parse(json.loads(sys.argv[1])); "
        "p = OriginalProtocol(a.env, a.sac, a.updates_per_step); p.run(float(sys.argv[2]) / 4); "
        "print(json.dumps(p.run(float(sys.argv[2])))); p.close()"
    )
    flags = ["--stage", "dense", "--env", arguments.env, *shlex.split(arguments.flags)]
    command = [sys.executable, "-c", code, json.dumps(flags), str(arguments.seconds / 2)]
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
