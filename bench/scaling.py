"""How the collector's speed changes with N, n, the policy's width and M, and where the time goes.

    python -m bench.scaling --env reach-v3 --json FILE

One axis is varied at a time, from the middle of the others; a point that lies on several axes is measured
once. N and M go up to the processors there are. On the axis "learner" the process that takes the blocks
learns from them, an update for 16 steps. Where there is a GPU, each M and the learner are measured on it.
The action latency is the time from a group's observations written to its actions read by its env worker,
what it waits for another group's step included.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from bench.fps import Case, Options, default_setting, make_plan, measure_cases, require_any
from bench.harness.command import Output, Problems, Turns, main, save
from bench.harness.results import Row, panels, png, rate_table, show
from fastcollect.policies.choice import parse_policy
from fastcollect.support.files import write_file
from fastcollect.tuning.report import STATES

POLICIES = ("16,16", "64,64", "256,256", "512,512")
_GPU = Path("/dev/nvidiactl")


@dataclass(frozen=True, kw_only=True)
class ScalingArguments(Output, Turns):
    """What ``python -m bench.scaling`` takes; a picture goes beside the JSON file."""

    env: str = "reach-v3"
    """Environment."""
    policy: str | None = None
    """Of the axes N, n and M: hidden widths, "cnn" or "random". Default: what suits the environment."""
    n: int | None = None
    """Environments of each env worker on the axes N, policy, M and learner. Default: the collector's."""


Axes = dict[str, dict[str, str]]
"""By the axis's name: what its points are called, and the label of the row that measures each."""


def points_to(most: int) -> list[int]:
    """1, 2, 4, ... and ``most`` itself."""
    return sorted({most, *(2**k for k in range(most.bit_length()))})


def make_cases(arguments: ScalingArguments) -> tuple[list[Case], Axes]:
    """Cases and the axes on which they lie. Raises ConfigError with everything that is wrong."""
    problems = Problems(arguments)
    given = () if arguments.n is None else (arguments.n,)
    options = Options(env=arguments.env, methods=("ours",), policy=arguments.policy, num_envs=given)
    with problems.kept():
        make_plan(options)
    problems.raise_any()
    (middle,) = options.sizes(default_setting(arguments.env))
    cases: dict[str, Case] = {}

    def point(method: str = "ours", policy: str | None = arguments.policy, **sizes: int) -> str:
        (case,) = make_plan(Options(env=arguments.env, methods=(method,), policy=policy))
        size = replace(middle, **sizes)
        what = f"{case.row['policy']}{method.removeprefix('ours').replace('-', ', ')}"
        label = f"n={size.n} N={size.N} M={size.M} {what}"
        cases.setdefault(label, case.resized(size, label))
        return label

    counts, gpu = points_to(middle.N), _GPU.exists()
    axes: Axes = {
        "N": {str(N): point(N=N) for N in counts},
        "n": {str(n): point(n=n) for n in points_to(middle.n * 4)[::2]},
        "policy": {},
        "M": {str(M): point(M=M) for M in (0, *counts)},
    }
    if parse_policy(arguments.policy, arguments.env).name.startswith("mlp"):
        axes["policy"] = {policy: point(policy=policy) for policy in POLICIES}
        axes["learner"] = {"none": point(), "CPU": point("ours-learner")}
        if gpu:
            axes["learner"] |= {"GPU": point("ours-learner-gpu"), "GPU, M=1": point("ours-learner-gpu", M=1)}
    if gpu:
        axes["M"] |= {f"{M} GPU": point("ours-gpu", M=M) for M in counts}
    return list(cases.values()), {name: points for name, points in axes.items() if points}


def measure(arguments: ScalingArguments) -> None:
    """Measure, write, show. Raises WorkerError if nothing could be measured."""
    cases, axes = make_cases(arguments)
    rows = measure_cases(cases, arguments.seconds, arguments.rounds)
    result = save(arguments, arguments.json, rows=rows, axes=axes)
    require_any(rows)
    if arguments.json is not None:
        write_file(arguments.json.with_suffix(".png"), picture(result))
    show(result, *(_table(axis, result) for axis in axes))


def _points(axis: str, result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    rows = {row["label"]: row for row in result["rows"]}
    return {name: {**rows[label], axis: name} for name, label in result["axes"][axis].items()}


def _share(prefix: str, row: Row) -> str:
    """Of the states whose names begin so: waiting is for actions or for the learner."""
    shares = row["shares"]["env_worker"]
    return f"{sum(share for state, share in shares.items() if state.startswith(prefix)):.0%}"


def _latency(quantile: str, row: Row) -> str:
    return f"{row['action_latency_seconds'][quantile] * 1e3:.2f}"


def _table(axis: str, result: Mapping[str, Any]) -> Table:
    points = list(_points(axis, result).values())
    fixed = ", ".join(f"{key}={points[0][key]}" for key in ("n", "N", "M", "policy") if key != axis)
    shares = {name: partial(_share, name) for name in ("stepping", "inferring", "waiting")}
    tail = {**shares, "action ms": partial(_latency, "median"), "p99 ms": partial(_latency, "p99")}
    return rate_table(f"{points[0]['env']} along {axis}, with {fixed}", points, "fps", [axis], tail)


def picture(result: Mapping[str, Any]) -> bytes:
    """Above, steps per second along each axis; below, what the env workers' time went into."""
    axes, machine, env = result["axes"], result["machine"], result["rows"][0]["env"]
    figure, drawn = panels(2, len(axes), (3.6 * len(axes), 6.5), sharex="col")
    for axis, speeds, shares in zip(axes, *drawn, strict=True):
        found = {name: row for name, row in _points(axis, result).items() if row["fps"]}
        places, fps = range(len(found)), [row["fps"] for row in found.values()]
        below, above = [f["median"] - f["min"] for f in fps], [f["max"] - f["median"] for f in fps]
        speeds.errorbar(places, [f["median"] for f in fps], (below, above), fmt="-o", ms=4, lw=1, capsize=3)
        speeds.set_ylim(bottom=0)
        base = np.zeros(len(found))
        for state, colour in STATES.items():
            values = [row["shares"]["env_worker"][state] for row in found.values()]
            shares.bar(places, values, 0.7, base, color=colour, label=state.replace("_", " "))
            base = base + values
        shares.set_xticks(places, list(found), fontsize=8)
        shares.set_xlabel(axis)
    drawn[0][0].set_ylabel("steps per second")
    drawn[1][0].set_ylabel("share of the env workers' time")
    drawn[1][-1].legend(fontsize=7, loc="lower right")
    figure.suptitle(f"{env} on {machine['cpus']} processors ({machine['cpu']})", fontsize=10)
    return png(figure)


if __name__ == "__main__":
    main(ScalingArguments, measure, __doc__)
