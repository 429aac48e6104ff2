"""How the engine's speed changes with N, n, the policy's width and M, and where the time goes.

    python -m bench.scaling --env reach-v3 --json FILE

One axis is varied at a time, from the middle of the others; a point that lies on several axes is measured
once. N and M go up to the processors there are. On the axis "learner" the process that takes the blocks
learns from them, an update for 16 steps. Where there is a GPU, each M and the learner are measured on it.
The action latency is the time from a group's observations written to its actions read by its env worker,
what it waits for another group's step included.
"""

from __future__ import annotations

import fastcollect.support.project_environment  # noqa: F401  (first: it may change the interpreter)

# isort: split
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.table import Table

from bench import scaling_picture
from bench.fps import Progress, measure_rows, report
from bench.plan import Options, Row, default_setting, make_plan
from bench.table import console, machine_line
from fastcollect.policies.choice import parse_policy
from fastcollect.support.command import check_writable, run
from fastcollect.support.cpu import cpu_count
from fastcollect.support.errors import WorkerError
from fastcollect.support.files import write_file

POLICIES = ("16,16", "64,64", "256,256", "512,512")
_GPU = Path("/dev/nvidiactl")
_SHARES = {
    "stepping": ("stepping",),
    "inferring": ("inferring",),
    "waiting": ("waiting_actions", "waiting_learner"),
}
_ADDED = {
    "engine": "",
    "engine-gpu": ", GPU",
    "engine-learner": ", learner",
    "engine-learner-gpu": ", learner, GPU",
}
"""To a row's label, by its method."""
_LATENCIES = {"action ms": "median", "p99 ms": "p99"}


@dataclass(frozen=True, kw_only=True)
class ScalingArguments:
    """What ``python -m bench.scaling`` takes."""

    env: str = "reach-v3"
    """Environment."""
    policy: str | None = None
    """Of the axes N, n and M: hidden widths, "cnn" or "random". Default: what suits the environment."""
    num_envs: Annotated[int | None, tyro.conf.arg(name="n")] = None
    """Environments of each env worker on the axes N, policy, M and learner. Default: the engine's."""
    seconds: float = 3.0
    """Seconds on the clock for each point in each round."""
    rounds: int = 3
    """Rounds; medians are shown."""
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Also write the result here, and the picture beside it, with the ending .png."""


Axes = dict[str, dict[str, str]]
"""By the axis's name: what its points are called, and the label of the row that measures each."""


def points_to(most: int) -> list[int]:
    """1, 2, 4, ... and ``most`` itself."""
    return sorted({most, *(2**k for k in range(most.bit_length()))})


def make_rows(arguments: ScalingArguments) -> tuple[list[Row], Axes]:
    """Rows and the axes on which they lie. Raises ConfigError with everything that is wrong."""
    check_writable(arguments.json)
    cores, middle = cpu_count(), arguments.num_envs
    if middle is None:
        middle = default_setting(arguments.env)[0]
    rows: dict[str, Row] = {}

    def point(n: int, workers: int, models: int, policy: str | None, method: str = "engine") -> str:
        options = Options(
            env=arguments.env,
            methods=method,
            seconds=arguments.seconds,
            rounds=arguments.rounds,
            num_envs=n,
            num_env_workers=workers,
            num_model_workers=models,
            policy=policy,
        )
        (row,) = make_plan(options)
        label = f"n={n} N={workers} M={models} {row.policy_name}{_ADDED[method]}"
        rows.setdefault(label, replace(row, label=label))
        return label

    own = arguments.policy
    axes: Axes = {
        "N": {str(N): point(middle, N, 0, own) for N in points_to(cores)},
        "n": {str(n): point(n, cores, 0, own) for n in points_to(middle * 4)[::2]},
        "policy": {},
        "M": {str(M): point(middle, cores, M, own) for M in (0, *points_to(cores))},
    }
    gpu = _GPU.exists()
    if parse_policy(own, arguments.env).name.startswith("mlp"):
        axes["policy"] = {policy: point(middle, cores, 0, policy) for policy in POLICIES}
        axes["learner"] = {
            "none": point(middle, cores, 0, own),
            "CPU": point(middle, cores, 0, own, "engine-learner"),
        }
        if gpu:
            axes["learner"] |= {
                name: point(middle, cores, models, own, "engine-learner-gpu")
                for name, models in (("GPU", 0), ("GPU, M=1", 1))
            }
    if gpu:
        axes["M"] |= {f"{M} GPU": point(middle, cores, M, own, "engine-gpu") for M in points_to(cores)}
    return list(rows.values()), {name: points for name, points in axes.items() if points}


def measure(arguments: ScalingArguments, command: str) -> None:
    """Measure, write, show. Raises WorkerError if nothing could be measured."""
    rows, axes = make_rows(arguments)
    with Progress(console(stderr=True), rows, arguments.rounds) as progress:
        results = measure_rows(rows, arguments.rounds, progress)
    options = Options(env=arguments.env, seconds=arguments.seconds, rounds=arguments.rounds)
    result = report(rows, results, options, command) | {"axes": axes}
    if not any(row["fps"] for row in result["rows"]):
        raise WorkerError("none of the points could be measured here")
    if arguments.json is not None:
        write_file(arguments.json, json.dumps(result, indent=2) + "\n")
        scaling_picture.draw(result, arguments.json.with_suffix(".png"))
    show(result)


def show(result: Mapping[str, Any]) -> None:
    """Print a table for each axis, and where it was measured."""
    rows, screen = {row["label"]: row for row in result["rows"]}, console()
    for axis, points in result["axes"].items():
        screen.print(_table(axis, [(name, rows[label]) for name, label in points.items()], result))
    screen.print(machine_line(result["machine"]), markup=False)


def _table(axis: str, points: Sequence[tuple[str, Mapping[str, Any]]], result: Mapping[str, Any]) -> Table:
    first = points[0][1]
    fixed = ", ".join(f"{key}={first[key]}" for key in ("n", "N", "M", "policy") if key != axis)
    out = Table(title=f"{first['env']} along {axis}, with {fixed}", title_justify="left")
    for name in (axis, "steps/s", "min", "max", f"\u00d7 {axis}={points[0][0]}", *_SHARES, *_LATENCIES):
        out.add_column(name, justify="right")
    for name, row in points:
        if row["fps"] is None:
            out.add_row(name, row["error"])
            continue
        worker, latency = row["shares"]["env_worker"], row["action_latency_seconds"]
        ratio = result["ratios"][row["label"]].get(first["label"], 1.0)
        out.add_row(
            name,
            *(f"{row['fps'][key]:,.0f}" for key in ("median", "min", "max")),
            f"{ratio:.2f}",
            *(f"{sum(worker[state] for state in states):.0%}" for states in _SHARES.values()),
            *(f"{latency[quantile] * 1e3:.2f}" for quantile in _LATENCIES.values()),
        )
    return out


if __name__ == "__main__":
    chosen = tyro.cli(ScalingArguments, prog="python -m bench.scaling", description=__doc__)
    run(lambda: measure(chosen, f"python -m bench.scaling {shlex.join(sys.argv[1:])}"))
