"""Does memory stay flat? Resident memory of every process while many steps are collected.

python -m bench.soak --env CartPole-v1 --steps 10000000 --json FILE
"""

import time
from dataclasses import dataclass

import psutil

from bench.harness.command import Output, Problems, main, save
from bench.harness.results import console, plain_table, show
from fastcollect import Collector, CollectorConfig, EnvConfig, Parallelism
from fastcollect.policies.choice import parse_policy


@dataclass(frozen=True, kw_only=True)
class SoakArguments(Output):
    """What ``python -m bench.soak`` takes."""

    env: str = "CartPole-v1"
    """Environment."""
    steps: int = 10_000_000
    """Environment steps to collect."""
    n: int = 256
    """Environments of each env worker."""
    N: int = 2
    """Env workers."""
    M: int = 1
    """Model workers."""
    checkpoints: int = 10
    """How often memory is read."""


def soak(arguments: SoakArguments) -> None:
    """Collect, and read memory at even distances. Raises ConfigError before anything is started."""
    problems, size = Problems(arguments), Parallelism(arguments.n, arguments.N, arguments.M)
    count, least = arguments.checkpoints, "at least 2, and a step for each"
    problems.require(2 <= count <= arguments.steps, "checkpoints", count, least)
    env = EnvConfig(id=arguments.env)
    with problems.kept():
        config = CollectorConfig(env=env, policy=parse_policy(None, arguments.env)).with_parallelism(size)
    problems.raise_any()
    rows, taken, start = [], 0, time.monotonic()
    with Collector(config) as collector, console(stderr=True).status("collecting") as status:
        for number in range(1, count + 1):
            while taken < arguments.steps * number // count:
                taken += len(collector.take())
            seconds = time.monotonic() - start
            left = seconds * (count - number) / number
            rows.append({"steps": taken, **memory(collector)})
            status.update(f"{taken:,} of {arguments.steps:,} steps, {left:.0f} s left")
    growth = {kind: rows[-1][kind] / rows[0][kind] - 1 for kind in rows[0] if kind != "steps"}
    result = save(arguments, arguments.json, rows=rows, growth=growth)
    lines = [[f"{row['steps']:,}", *(f"{row[kind]:.1f}" for kind in growth)] for row in rows]
    lines.append(["growth", *(f"{value:+.1%}" for value in growth.values())])
    show(result, plain_table(f"resident MiB, {taken / seconds:,.0f} steps/s", list(rows[0]), lines, left=0))


def memory(collector: Collector) -> dict[str, float]:
    """MiB resident, the largest process of each kind."""
    pids = {"collector": [psutil.Process().pid], **collector.pids()}
    return {
        kind: max(psutil.Process(pid).memory_info().rss for pid in of_kind) / 2**20
        for kind, of_kind in pids.items()
        if of_kind
    }


if __name__ == "__main__":
    main(SoakArguments, soak, __doc__)
