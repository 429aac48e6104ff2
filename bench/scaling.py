"""How the collector's speed changes with N, n, the policy's width and M, and where the time goes.

    python -m bench.scaling --env reach-v3 --json FILE

One axis is varied at a time, from the middle of the others; a point that lies on several axes is measured
once. N and M go up to the processors there are. On the axis "learner" the process that takes the blocks
learns from them, an update for 16 steps. Where there is a GPU, each M and the learner are measured on it.
The action latency is the time from a group's observations written to its actions read by its env worker,
what it waits for another group's step included.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.table import Table

from bench.harness.command import Output, Problems, Turns, document, main, save
from bench.harness.results import panels, png, rate_table, show
from bench.plan import Case, Options, default_setting, make_plan, measure_cases, require_any
from fastcollect.policies.choice import parse_policy
from fastcollect.support.cpu import cpu_count
from fastcollect.support.files import write_file
from fastcollect.tuning.report import STATES

POLICIES = ("16,16", "64,64", "256,256", "512,512")
_GPU = Path("/dev/nvidiactl")
_SHARES = {
    "stepping": ("stepping",),
    "inferring": ("inferring",),
    "waiting": ("waiting_actions", "waiting_learner"),
}
_LATENCIES = {"action ms": "median", "p99 ms": "p99"}


@dataclass(frozen=True, kw_only=True)
class ScalingArguments(Output, Turns):
    """What ``python -m bench.scaling`` takes; a picture goes beside the JSON file."""

    env: str = "reach-v3"
    """Environment."""
    policy: str | None = None
    """Of the axes N, n and M: hidden widths, "cnn" or "random". Default: what suits the environment."""
    num_envs: Annotated[int | None, tyro.conf.arg(name="n")] = None
    """Environments of each env worker on the axes N, policy, M and learner. Default: the collector's."""


Axes = dict[str, dict[str, str]]
"""By the axis's name: what its points are called, and the label of the row that measures each."""


def points_to(most: int) -> list[int]:
    """1, 2, 4, ... and ``most`` itself."""
    return sorted({most, *(2**k for k in range(most.bit_length()))})


def make_cases(arguments: ScalingArguments) -> tuple[list[Case], Axes]:
    """Cases and the axes on which they lie. Raises ConfigError with everything that is wrong."""
    problems = Problems(arguments)
    cores, own, cases = cpu_count(), arguments.policy, {}
    middle = default_setting(arguments.env).n if arguments.num_envs is None else arguments.num_envs
    whole = Options(
        env=arguments.env, num_envs=middle, num_env_workers=cores, num_model_workers=0, policy=own
    )

    def point(method: str = "ours", **changes: Any) -> str:
        (case,) = make_plan(replace(whole, methods=(method,), **changes), problems)
        size = case.request.parallelism
        label = f"n={size.n} N={size.N} M={size.M} {case.policy_name}{method.removeprefix('ours')}"
        cases.setdefault(label, replace(case, label=label))
        return label

    axes: Axes = {
        "N": {str(N): point(num_env_workers=N) for N in points_to(cores)},
        "n": {str(n): point(num_envs=n) for n in points_to(middle * 4)[::2]},
        "policy": {},
        "M": {str(M): point(num_model_workers=M) for M in (0, *points_to(cores))},
    }
    gpu = _GPU.exists()
    if parse_policy(own, arguments.env).name.startswith("mlp"):
        axes["policy"] = {policy: point(policy=policy) for policy in POLICIES}
        axes["learner"] = {"none": point(), "CPU": point("ours-learner")}
        if gpu:
            axes["learner"] |= {"GPU": point("ours-learner-gpu")}
            axes["learner"] |= {"GPU, M=1": point("ours-learner-gpu", num_model_workers=1)}
    if gpu:
        axes["M"] |= {f"{M} GPU": point("ours-gpu", num_model_workers=M) for M in points_to(cores)}
    return list(cases.values()), {name: points for name, points in axes.items() if points}


def measure(arguments: ScalingArguments, command: str) -> None:
    """Measure, write, show. Raises WorkerError if nothing could be measured."""
    cases, axes = make_cases(arguments)
    rows = measure_cases(cases, arguments.seconds, arguments.rounds)
    result = document(command, seconds=arguments.seconds, rounds=arguments.rounds, rows=rows, axes=axes)
    require_any(rows)
    save(arguments.json, result)
    if arguments.json is not None:
        write_file(arguments.json.with_suffix(".png"), picture(result))
    show(result, *(_table(axis, result) for axis in axes))


def _points(axis: str, result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    rows = {row["label"]: row for row in result["rows"]}
    return {name: rows[label] for name, label in result["axes"][axis].items()}


def _table(axis: str, result: Mapping[str, Any]) -> Table:
    points = _points(axis, result)
    first, names = next(iter(points.values())), {row["label"]: name for name, row in points.items()}
    fixed = ", ".join(f"{key}={first[key]}" for key in ("n", "N", "M", "policy") if key != axis)
    tail = {
        name: lambda row, states=states: f"{sum(row['shares']['env_worker'][s] for s in states):.0%}"
        for name, states in _SHARES.items()
    } | {
        name: lambda row, quantile=quantile: f"{row['action_latency_seconds'][quantile] * 1e3:.2f}"
        for name, quantile in _LATENCIES.items()
    }
    return rate_table(
        f"{first['env']} along {axis}, with {fixed}",
        list(points.values()),
        "fps",
        against=[first["label"]],
        head={axis: lambda row: names[row["label"]]},
        tail=tail,
    )


def picture(result: Mapping[str, Any]) -> bytes:
    """Above, steps per second along each axis; below, what the env workers' time went into."""
    axes, machine = result["axes"], result["machine"]
    figure, drawn = panels(2, len(axes), (3.6 * len(axes), 6.5), sharex="col")
    for axis, speeds, shares in zip(axes, *drawn, strict=True):
        found = {name: row for name, row in _points(axis, result).items() if row["fps"]}
        places, fps = range(len(found)), [row["fps"] for row in found.values()]
        below, above = [f["median"] - f["min"] for f in fps], [f["max"] - f["median"] for f in fps]
        speeds.errorbar(places, [f["median"] for f in fps], (below, above), fmt="-o", ms=4, lw=1, capsize=3)
        speeds.set_ylim(bottom=0)
        base = [0.0] * len(found)
        for state, colour in STATES.items():
            values = [row["shares"]["env_worker"][state] for row in found.values()]
            shares.bar(places, values, 0.7, base, color=colour, label=state.replace("_", " "))
            base = [a + b for a, b in zip(base, values, strict=True)]
        shares.set_xticks(places, list(found), fontsize=8)
        shares.set_xlabel(axis)
    drawn[0][0].set_ylabel("steps per second")
    drawn[1][0].set_ylabel("share of the env workers' time")
    drawn[1][-1].legend(fontsize=7, loc="lower right")
    title = f"{result['rows'][0]['env']} on {machine['cpus']} processors ({machine['cpu']})"
    figure.suptitle(title, fontsize=10)
    return png(figure)


if __name__ == "__main__":
    main(ScalingArguments, measure, "bench.scaling", __doc__)
