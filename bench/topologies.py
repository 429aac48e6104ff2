"""Sparse training beside dense: returns of every topology, over algorithms, robots and seeds.

python -m bench.topologies --json bench/results/topologies/results.json [--minutes 140]

Each run is one of train.py with trainers/settings/mujoco-ALGO.yaml, on a processor of its own, as many at
once as there are. What the file holds already is not run again, so that a comparison of days can be made in
parts; beside it lies its picture. --minutes ends a part: no run begins that would end later than that, if it
took as long as the longest so far.
"""

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import tyro

from bench.harness.command import Problems, main, save
from bench.harness.results import console, panels, plain_table, png, show
from bench.methods.learners import Algo
from fastcollect import ConfigError
from fastcollect.support.command import check_writable
from fastcollect.support.files import write_file
from fastcollect.support.machine import machine

TOPOLOGIES = ("dense", "static", "rlx2", "gmp", "set", "rigl", "small")
SPARSITIES = {
    ("sac", "HalfCheetah-v5"): (0.9, 0.8),
    ("sac", "Hopper-v5"): (0.98, 0.95),
    ("sac", "Walker2d-v5"): (0.9, 0.9),
    ("sac", "Ant-v5"): (0.9, 0.75),
    ("td3", "HalfCheetah-v5"): (0.9, 0.85),
    ("td3", "Hopper-v5"): (0.98, 0.95),
    ("td3", "Walker2d-v5"): (0.97, 0.95),
    ("td3", "Ant-v5"): (0.96, 0.88),
}
"""Of actor and critic, as in table 2 of Tan et al. 2023, arXiv:2205.15043."""
PUBLISHED = {
    ("sac", "HalfCheetah-v5"): {"static": 75.4, "set": 94.8, "rigl": 89.8, "rlx2": 102.2},
    ("sac", "Hopper-v5"): {"static": 81.6, "set": 103.9, "rigl": 110.0, "rlx2": 109.7},
    ("sac", "Walker2d-v5"): {"static": 83.4, "set": 95.8, "rigl": 81.9, "rlx2": 103.2},
    ("sac", "Ant-v5"): {"static": 49.3, "set": 79.8, "rigl": 90.9, "rlx2": 105.6},
    ("td3", "HalfCheetah-v5"): {"static": 77.1, "set": 92.6, "rigl": 90.8, "rlx2": 99.8},
    ("td3", "Hopper-v5"): {"static": 67.7, "set": 66.5, "rigl": 90.6, "rlx2": 97.0},
    ("td3", "Walker2d-v5"): {"static": 42.9, "set": 39.3, "rigl": 35.7, "rlx2": 98.1},
    ("td3", "Ant-v5"): {"static": 49.6, "set": 62.5, "rigl": 68.5, "rlx2": 103.9},
}
"""Percent of the dense network's return after 3,000,000 steps over eight seeds, in the same table."""
_ROOT = Path(__file__).resolve().parent.parent
_BEGIN = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: it ends with what has begun it
os.sched_setaffinity(0, {int(sys.argv[1])})
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""
_LAST = 0.1
"""Share of a run over whose evaluations its return is averaged."""


@dataclass(frozen=True, kw_only=True)
class TopologyArguments:
    """What ``python -m bench.topologies`` takes."""

    json: Annotated[Path, tyro.conf.arg(metavar="FILE")]
    """What there is, and where what is added is written after every run."""
    envs: tuple[str, ...] = ("HalfCheetah-v5", "Hopper-v5")
    """Any of HalfCheetah-v5, Hopper-v5, Walker2d-v5, Ant-v5."""
    algos: tuple[Algo, ...] = ("sac", "td3")
    """What learns."""
    topologies: tuple[str, ...] = TOPOLOGIES
    """Any of dense, static, rlx2, gmp, set, rigl, small, in the order in which they run."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of each."""
    env_steps: int = 300_000
    """Of each run."""
    minutes: float | None = None
    """When to stop; default: when all is there."""
    flags: tuple[str, ...] = ()
    """More flags of train.py for every run."""


class Run(NamedTuple):
    """One run of the comparison."""

    env: str
    algo: str
    topology: str
    seed: int


def identity(row: Mapping[str, Any]) -> Run:
    """The run that a row is of."""
    return Run(*(row[name] for name in Run._fields))


def planned(arguments: TopologyArguments) -> list[Run]:
    """Every run in its order: all of a topology before the next, all of a robot before the next."""
    choices = arguments.envs, arguments.topologies, arguments.seeds, arguments.algos
    return [Run(env, algo, topology, seed) for env, topology, seed, algo in itertools.product(*choices)]


def check(arguments: TopologyArguments) -> list[dict[str, Any]]:
    """The rows that the file has already. Raises ConfigError naming every value that cannot work."""
    problems = Problems(arguments)
    known = {"envs": {env for _, env in SPARSITIES}, "topologies": set(TOPOLOGIES)}
    for name, allowed in known.items():
        wrong = [value for value in getattr(arguments, name) if value not in allowed]
        problems.require(not wrong, name, wrong, ", ".join(sorted(allowed)))
    problems.require(min(arguments.seeds, default=-1) >= 0, "seeds", list(arguments.seeds), "0 and more")
    problems.require(arguments.env_steps >= 1, "env-steps", arguments.env_steps, "1 and more")
    if arguments.minutes is not None:
        problems.positive("minutes", arguments.minutes)
    rows: list[dict[str, Any]] = []
    with problems.kept("--json: "):
        check_writable(arguments.json)
        rows = _rows(arguments.json)
    for row in rows:
        if row["env"] in arguments.envs and row["asked"] != asked(arguments):
            made = (
                f"{row['env']} of other lengths or flags, {row['asked']}; allowed: the same, or another file"
            )
            problems.found.append(f"--json: {str(arguments.json)!r} has runs on {made}")
    problems.raise_any()
    return rows


def _rows(file: Path) -> list[dict[str, Any]]:
    """Of an earlier part. Raises ConfigError where the file is not one of ours."""
    try:
        found = json.loads(file.read_text()) if file.exists() else {"rows": []}
        return [row for row in found["rows"] if row["asked"] and identity(row)]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ConfigError([f"{str(file)!r} has no rows of this command: {error}"]) from None


def train(run: Run, arguments: TopologyArguments, processor: int) -> dict[str, Any]:
    """The row of a run that is made now. Raises ConfigError where train.py refuses it or fails."""
    flags = ["--config", f"trainers/settings/mujoco-{run.algo}.yaml", "--env", run.env]
    flags += ["--seed", str(run.seed), "--env-steps", str(arguments.env_steps)]
    if run.topology == "dense":
        flags += ["--stage", "dense", "--anchor-steps", str(arguments.env_steps)]
    else:
        actor, critic = map(str, SPARSITIES[run.algo, run.env])
        flags += ["--stage", "sparse", "--topology", run.topology]
        flags += ["--actor-sparsity", actor, "--critic-sparsity", critic]
    with tempfile.TemporaryDirectory(prefix="fastcollect-topologies-") as temporary:
        folder = Path(temporary) / "run"
        flags += [*arguments.flags, "--run", str(folder)]
        command = [sys.executable, "-c", _BEGIN, str(processor), "train.py", *flags]
        done = subprocess.run(command, cwd=_ROOT, check=False, capture_output=True, text=True)
        if done.returncode:
            raise ConfigError([f"train.py ended with {done.returncode}: {done.stderr.strip()[-500:]}"])
        return run._asdict() | {"asked": asked(arguments)} | row_of(folder)


def asked(arguments: TopologyArguments) -> list[Any]:
    """What all runs on a robot must share to be compared."""
    return [arguments.env_steps, *arguments.flags]


def row_of(folder: Path) -> dict[str, Any]:
    """What the comparison keeps of a finished run folder."""
    summary = json.loads((folder / "summary.json").read_text())
    lines = (folder / "evaluations.jsonl").read_text().splitlines()
    curve = [[each["env_steps"], round(each["return_mean"], 1)] for each in map(json.loads, lines)]
    last = [value for steps, value in curve if steps >= (1 - _LAST) * summary["env_steps"]]
    where = machine()
    kept = {name: summary[name] for name in ("env_steps", "updates", "density", "flops", "wall_seconds")}
    return {**kept, "return": statistics.mean(last), "curve": curve, "commit": where["commit"]}


def train_all(
    runs: Sequence[Run], arguments: TopologyArguments, processors: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """Rows as they are finished, one run on each processor at a time; raises as ``train``."""
    began, longest, free, left = time.monotonic(), 0.0, list(processors), list(runs)
    going: dict[Future[dict[str, Any]], int] = {}
    with ThreadPoolExecutor(len(processors)) as pool:
        while going or left:
            limit = arguments.minutes and arguments.minutes * 60 - longest
            if limit is not None and time.monotonic() - began > limit:
                left.clear()
            while left and free:
                processor = free.pop()
                going[pool.submit(train, left.pop(0), arguments, processor)] = processor
            for each in wait(going, return_when=FIRST_COMPLETED).done:
                free.append(going.pop(each))
                row = each.result()
                longest = max(longest, row["wall_seconds"])
                yield row


def of(rows: Sequence[Mapping[str, Any]], *place: str) -> list[Mapping[str, Any]]:
    """The rows of an environment, an algorithm and, if it is named, a topology."""
    return [row for row in rows if (row["env"], row["algo"], row["topology"])[: len(place)] == place]


def lines_of(rows: Sequence[Mapping[str, Any]], env: str, algo: str) -> list[list[str]]:
    """A line for each topology that was run: returns by seed, percent of dense here and published, costs."""
    dense = [row["return"] for row in of(rows, env, algo, "dense")]
    lines = []
    for topology in TOPOLOGIES:
        if not (own := of(rows, env, algo, topology)):
            continue
        returns = [row["return"] for row in sorted(own, key=lambda row: row["seed"])]
        mean, seconds = statistics.mean(returns), statistics.median(row["wall_seconds"] for row in own)
        share = f"{100 * mean / statistics.mean(dense):.1f}" if dense else ""
        published = 100.0 if topology == "dense" else PUBLISHED[algo, env].get(topology)
        flops = statistics.mean(row["flops"]["training"]["masked"] / of_dense(row) for row in own)
        line = [env, algo, topology, f"{mean:,.0f}", ", ".join(f"{value:,.0f}" for value in returns)]
        line += [share, "" if published is None else f"{published:.1f}", f"{flops:.2f}"]
        lines.append([*line, f"{seconds / 60:.1f}"])
    return lines


def of_dense(row: Mapping[str, Any]) -> float:
    """Operations of training that the dense network would have taken."""
    return float(row["flops"]["training"]["dense"])


def picture(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Returns against steps: a panel for each robot and algorithm, mean and range over the seeds."""
    places = list(dict.fromkeys((row["env"], row["algo"]) for row in rows))
    figure, drawn = panels(1, len(places), (4.6 * len(places), 3.8))
    for panel, (env, algo) in zip(drawn[0], places, strict=True):
        for topology in TOPOLOGIES:
            if not (own := of(rows, env, algo, topology)):
                continue
            points = min(len(row["curve"]) for row in own)
            curves = np.array([row["curve"][:points] for row in own])
            steps, returns = curves[0, :, 0], curves[:, :, 1]
            (line,) = panel.plot(steps, returns.mean(0), lw=1.5, label=f"{topology} ({len(own)})")
            panel.fill_between(steps, returns.min(0), returns.max(0), color=line.get_color(), alpha=0.12)
        panel.set_title(f"{algo} on {env}", fontsize=10)
        panel.set_xlabel("environment steps")
        panel.legend(fontsize=7)
    drawn[0][0].set_ylabel("return")
    return png(figure)


def compare(arguments: TopologyArguments) -> None:
    """Run what is missing, write after every run, show. Raises ConfigError."""
    rows = check(arguments)
    there = set(map(identity, rows))
    missing = [run for run in planned(arguments) if run not in there]
    screen, result = console(stderr=True), save(arguments, None, rows=rows)
    screen.print(f"{len(missing)} runs to make, {len(rows)} are there", markup=False)
    for row in train_all(missing, arguments, sorted(os.sched_getaffinity(0))):
        rows.append(row)
        result = save(arguments, arguments.json, rows=rows)
        write_file(arguments.json.with_suffix(".png"), picture(rows))
        name = " ".join(str(row[each]) for each in Run._fields)
        screen.print(f"{name}: {row['return']:,.0f} in {row['wall_seconds'] / 60:.1f} min", markup=False)
    names = ("env", "algo", "topology", "return", "by seed", "% of dense", "published", "flops", "minutes")
    places = dict.fromkeys((row["env"], row["algo"]) for row in rows)
    lines = [line for place in places for line in lines_of(rows, *place)]
    show({**result, "rows": []}, plain_table("returns over the last tenth", names, lines, left=3))


if __name__ == "__main__":
    main(TopologyArguments, compare, __doc__)
