"""Whole trainings side by side: environment steps a second and returns, ours, SBX's and Stable-Baselines3's.

python -m bench.training --algo sac --env HalfCheetah-v5 --json FILE    (the peers come with: make peers)

For every seed each method trains in a process of its own, with the same settings, steps and updates. They
take turns of --every steps; what others do in the meantime is not on the clock, nor are the first --every
steps, in which programs are compiled. After each turn the deterministic policy is tested, off the clock, on
--episodes episodes of the stock environment whose seeds are the same for all.
"""

import contextlib
import statistics
from dataclasses import dataclass
from functools import partial
from typing import Any

from rich.table import Table

from bench.fps import check_methods, require_any
from bench.harness.command import Output, Problems, main, save
from bench.harness.measure import MeasurementError, Outcome, Slice, started, take_turns
from bench.harness.results import Row, console, measured, plain_table, show
from bench.methods import METHODS, names
from bench.methods.learners import Algo
from bench.methods.training import TrainingRequest

RATE = "steps_per_second"
_POINT = ("env_steps", "updates", "return_mean", "return_std")


@dataclass(frozen=True, kw_only=True)
class TrainingArguments(Output):
    """What ``python -m bench.training`` takes."""

    methods: tuple[str, ...] = ("ours-training", "sbx-training")
    """Any of ours-training, sbx-training, sb3-training."""
    algo: Algo = "sac"
    """What they learn by."""
    env: str = "HalfCheetah-v5"
    """A gymnasium id with a bounded box of actions."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """A training of every method for each."""
    steps: int = 100_000
    """Environment steps of a training."""
    every: int = 2_500
    """Environment steps of a turn, which must not take two minutes."""
    start_steps: int = 5_000
    """Steps of random actions before the first update."""
    episodes: int = 10
    """Episodes of each test."""


def check(arguments: TrainingArguments) -> None:
    """Raises ConfigError naming every value that cannot work."""
    problems = Problems(arguments)
    check_methods(arguments.methods, names(TrainingRequest), problems)
    problems.require(min(arguments.seeds, default=-1) >= 0, "seeds", list(arguments.seeds), "0 and more")
    for name in ("every", "start_steps", "episodes"):
        value = getattr(arguments, name)
        problems.require(value >= 1, name.replace("_", "-"), value, "1 and more")
    least = 2 * max(1, arguments.every)
    problems.require(arguments.steps >= least, "steps", arguments.steps, f"2 turns = {least} and more")
    problems.raise_any()


def train_seed(arguments: TrainingArguments, seed: int) -> list[Row]:
    """A row for each method with its "curve", or with an "error"."""
    ready: dict[str, Slice] = {}
    outcomes: dict[str, Outcome] = {}
    fields = {name: getattr(arguments, name) for name in ("algo", "env", "every", "start_steps", "episodes")}
    with contextlib.ExitStack() as stack:
        for name in arguments.methods:
            console(stderr=True).print(f"seed {seed}: starting {name}", markup=False)
            try:
                request = TrainingRequest(method=name, seed=seed, **fields)
                ready[name] = stack.enter_context(started([request]))
            except MeasurementError as error:
                outcomes[name] = f"{name}: {error}"
        turns = {name: partial(part, 0.0, 0.0) for name, part in ready.items()}
        outcomes |= take_turns(turns, arguments.steps // arguments.every - 1, 30.0, "steps/s")
    rows = measured([{"label": n, "method": n, "seed": seed} for n in arguments.methods], outcomes, RATE)
    for row in rows:
        turns_of = outcomes[row["label"]]
        if not isinstance(turns_of, str):
            row["curve"] = [{name: point[name] for name in _POINT} for point in turns_of]
    return rows


def table(arguments: TrainingArguments, rows: list[Row]) -> Table:
    """A line for each method: its last returns over the seeds, and its speed beside the peers'."""
    peers, lines = [name for name in arguments.methods if METHODS[name].role == "peer"], []
    for name in arguments.methods:
        own = [row for row in rows if row["method"] == name and row[RATE]]
        if not own:
            lines.append([name, "none"])
            continue
        last = [row["curve"][-1]["return_mean"] for row in own]
        speed = statistics.median(row[RATE]["median"] for row in own)
        line = [name, f"{statistics.median(last):,.0f}", ", ".join(f"{value:,.0f}" for value in last)]
        line += [f"{own[0]['curve'][-1]['updates']:,}", f"{speed:,.0f}"]
        lines.append([*line, *(_ratio(own, peer) for peer in peers)])
    title = f"{arguments.algo} on {arguments.env} after {arguments.steps:,} steps"
    head = ["method", "return, median", "by seed", "updates", "steps/s"]
    return plain_table(title, head + [f"\u00d7 {peer}" for peer in peers], lines)


def _ratio(rows: list[Row], peer: str) -> str:
    """Median over the seeds of the speed by a peer's, each a median of the ratios within a round."""
    found = [row["ratios"][peer] for row in rows if peer in row["ratios"]]
    return f"{statistics.median(found):.2f}" if found else ""


def compare(arguments: TrainingArguments) -> None:
    """Train, write, show. Raises ConfigError for wrong values, WorkerError if nothing ran."""
    check(arguments)
    rows: list[dict[str, Any]] = []
    for seed in arguments.seeds:
        rows += train_seed(arguments, seed)
        result = save(arguments, arguments.json, rows=rows)  # what there is outlives an interruption
    show(result, table(arguments, rows))
    require_any(rows, RATE)


if __name__ == "__main__":
    main(TrainingArguments, compare, __doc__)
