"""Environment steps per second of the collector, its peers and the physics below them, in interleaved rounds.

Each method runs in fresh processes in every round, start-up and 0.5 s of warm-up outside the clock, the order
changing from round to round. Ratios are taken within a round, so that a machine that drifts cancels out.

Methods: ours (whole path with its policy), ours-fast (physics="fast"), ours-gpu (model workers on the GPU),
ours-learner and ours-learner-gpu (the training loop), ours-serial (one process), env-only and env-only-fast
(the batched environment alone, one process, random actions), naive (queues and pipes, the same policy),
gymnasium-single, gymnasium-sync and gymnasium-async (with the same policy), sb3-dummy, sb3-subproc and
pufferlib (their vector environments, the same policy), sample-factory (its own sampler and policy), envpool
(random actions, no policy), physics-limit (the bare simulation loop).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from bench.harness.command import Output, Turns, document, main, save
from bench.harness.results import Row, rate_table, references, show
from bench.plan import Options, make_plan, measure_cases, require_any


@dataclass(frozen=True, kw_only=True)
class FpsArguments(Output, Turns, Options):
    """Compare environment steps per second."""

    seconds: float = 5.0
    """Seconds on the clock for each method in each round, after start-up and 0.5 s of warm-up."""


def fps_table(rows: Sequence[Row], title: str) -> Table:
    """The table of rows as they are in the file."""
    head = {"method": lambda row: row["method"], **{k: lambda row, k=k: str(row[k]) for k in ("n", "N", "M")}}
    tail = {
        "start s": lambda row: f"{row['start_seconds']:.1f}",
        "CPUs": lambda row: f"{row['cpus_busy']:.1f}",
        "MiB/env": lambda row: f"{row['memory_mib'] / row['num_envs']:.1f}",
    }
    return rate_table(title, rows, "fps", against=references(rows, "fps"), head=head, tail=tail)


def compare(arguments: FpsArguments, command: str) -> None:
    """Measure, write, show. Raises ConfigError before anything is started, WorkerError if nothing ran."""
    rows = measure_cases(make_plan(arguments), arguments.seconds, arguments.rounds)
    result = document(command, seconds=arguments.seconds, rounds=arguments.rounds, rows=rows)
    save(arguments.json, result)
    policies = [f", policy {row['policy']}" for row in rows if row["policy"]]
    rounds = f"{arguments.rounds} round{'s' * (arguments.rounds > 1)} of {arguments.seconds:g} s"
    title = f"{arguments.env}: environment steps per second, {rounds}{(policies or [''])[0]}"
    notes = {row["method"]: f"{row['method']}: {row['note']}" for row in rows if row["fps"]}
    show(result, fps_table(rows, title), *notes.values())
    require_any(rows)


if __name__ == "__main__":
    main(FpsArguments, compare, "bench.fps", __doc__)
