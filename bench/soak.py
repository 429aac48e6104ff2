"""Does memory stay flat? Resident memory of every process while many steps are collected.

python -m bench.soak --env CartPole-v1 --steps 10000000 --json FILE
"""

from __future__ import annotations

import fastcollect.support.project_environment  # noqa: F401  (first: it may change the interpreter)

# isort: split
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import psutil
import tyro
from rich.console import Console
from rich.table import Table

from fastcollect.control.collector import Collector
from fastcollect.control.config import CollectorConfig
from fastcollect.envs.registry import EnvConfig
from fastcollect.policies.choice import parse_policy
from fastcollect.support.command import check_writable, run
from fastcollect.support.errors import ConfigError
from fastcollect.support.files import write_file
from fastcollect.support.machine import machine


@dataclass(frozen=True, kw_only=True)
class SoakArguments:
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
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Also write the result here."""


def soak(arguments: SoakArguments) -> None:
    """Collect, reading memory at even distances; the first checkpoint comes after a tenth of the steps."""
    check_writable(arguments.json)
    if arguments.steps < arguments.checkpoints or arguments.checkpoints < 2:
        raise ConfigError(["steps and checkpoints: allowed are at least 2 checkpoints and a step for each"])
    config = CollectorConfig(
        env=EnvConfig(id=arguments.env),
        policy=parse_policy(None, arguments.env),
        num_envs=arguments.n,
        num_env_workers=arguments.N,
        num_model_workers=arguments.M,
    )
    rows: list[dict[str, Any]] = []
    console = Console(stderr=True)
    with Collector(config) as collector, console.status("collecting") as status:
        start = time.monotonic()
        taken = 0
        for k in range(1, arguments.checkpoints + 1):
            while taken < arguments.steps * k // arguments.checkpoints:
                taken += len(collector.take())
            rows.append({"steps": taken, **_memory(collector)})
            left = (time.monotonic() - start) * (arguments.checkpoints - k) / k
            status.update(f"{taken:,} of {arguments.steps:,} steps, {left:.0f} s left")
        seconds = time.monotonic() - start
    growth = {kind: rows[-1][kind] / rows[0][kind] - 1 for kind in rows[0] if kind != "steps"}
    _print(rows, growth, taken / seconds)
    if arguments.json is not None:
        result = {"machine": machine(), "env": arguments.env, "rows": rows, "growth": growth}
        write_file(arguments.json, json.dumps(result, indent=2) + "\n")


def _memory(collector: Collector) -> dict[str, float]:
    """MiB resident, the largest process of each kind."""
    pids = {"collector": [psutil.Process().pid], **collector.pids()}
    return {
        kind: max(psutil.Process(pid).memory_info().rss for pid in of_kind) / 2**20
        for kind, of_kind in pids.items()
        if of_kind
    }


def _print(rows: list[dict[str, Any]], growth: dict[str, float], fps: float) -> None:
    table = Table(title=f"resident MiB, {fps:,.0f} steps/s")
    for name in rows[0]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(f"{row['steps']:,}", *(f"{row[k]:.1f}" for k in row if k != "steps"))
    table.add_row("growth", *(f"{value:+.1%}" for value in growth.values()), style="bold")
    Console().print(table)


if __name__ == "__main__":
    arguments = tyro.cli(SoakArguments, description=__doc__, prog="python -m bench.soak")
    run(lambda: soak(arguments))
