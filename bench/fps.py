"""Environment steps per second of the engine, its peers and the physics below them, in interleaved rounds.

Each method runs in fresh processes in every round, start-up and warm-up outside the clock, the order
rotating from round to round. Ratios are taken within a round, so that a machine that drifts cancels out.

Methods: engine (whole path with its policy), engine-fast (physics="fast"), engine-serial (one process),
env-only and env-only-fast (the batched environment alone, one process, random actions), gymnasium-single,
gymnasium-sync and gymnasium-async (with the same policy), naive (queues and pipes, the same policy),
sb3-dummy, sb3-subproc and pufferlib (their vector environments, the same policy), sample-factory (its own
sampler and policy), envpool (random actions, no policy), physics-limit (the bare simulation loop).
"""

from __future__ import annotations

import fastcollect.support.project_environment  # noqa: F401  (first: it may change the interpreter)

# isort: split
import json
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import tyro
from rich.console import Console

from bench.isolated import MeasurementError, measure
from bench.methods import METHODS
from bench.plan import ENVPOOL_CANDIDATES, Options, Row, is_cheap, make_plan
from bench.table import console, fps_table, machine_line, ratios, summary
from fastcollect.support.command import run
from fastcollect.support.errors import WorkerError
from fastcollect.support.files import write_file
from fastcollect.support.machine import machine

Results = dict[str, list[dict[str, Any]] | str]
"""By label: the results of every round, or the text of the first error."""

_GUESSED_START = 4.0  # seconds, until the first round tells


class Progress:
    """Says on standard error what is running and how long it will take."""

    def __init__(self, screen: Console, rows: Sequence[Row], rounds: int) -> None:
        self._screen, self._rounds = screen, rounds
        guess = rows[0].seconds + _GUESSED_START
        self._cost = {row.label: guess for row in rows}
        self._remaining = {row.label: rounds for row in rows}
        # Twice a second: drawing takes time from what is measured.
        self._status = screen.status("starting", refresh_per_second=2)

    def __enter__(self) -> Progress:
        self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()

    def begin(self, round_number: int, label: str) -> None:
        """A measurement begins."""
        left = sum(self._cost[each] * count for each, count in self._remaining.items())
        self._head = f"round {round_number}/{self._rounds}  {label}"
        self._status.update(f"{self._head}  (about {left:.0f} s left)")

    def end(self, label: str, seconds: float, text: str) -> None:
        """It ended; the next ones of its kind will take as long."""
        self._cost[label] = seconds
        self._remaining[label] = max(0, self._remaining[label] - 1)
        self._screen.print(f"{self._head}: {text}", markup=False)

    def drop(self, label: str, text: str) -> None:
        """It failed, and there will be no more of this row."""
        self._remaining[label] = 0
        self._screen.print(f"{self._head}: {text}", markup=False)

    def trial(self, label: str, text: str) -> None:
        """Something that belongs to no round begins."""
        self._head = f"{label}, trying {text}"
        self._status.update(self._head)


def measure_rows(rows: Sequence[Row], rounds: int, progress: Progress) -> Results:
    """Every row in every round; after its first error a row is left out."""
    results: Results = {row.label: [] for row in rows}
    for number in range(rounds):
        first = number % len(rows)
        for row in [*rows[first:], *rows[:first]]:
            done = results[row.label]
            if isinstance(done, str):
                continue
            progress.begin(number + 1, row.label)
            start = time.monotonic()
            try:
                result = measure(row.requests())
            except MeasurementError as error:
                results[row.label] = str(error)
                progress.drop(row.label, str(error))
                continue
            done.append(result)
            progress.end(row.label, time.monotonic() - start, f"{result['fps']:,.0f} steps/s")
    return results


def fit_envpool(row: Row, progress: Progress) -> Row:
    """EnvPool at its best size, where one size does not suit all environments; short trials decide."""
    if row.method != "envpool" or not is_cheap(row.env):
        return row
    trials: dict[int, float] = {}
    for size in ENVPOOL_CANDIDATES:
        progress.trial(row.label, f"{size} environments")
        try:
            trial = replace(row, n=size, seconds=min(0.5, row.seconds))
            trials[size] = measure(trial.requests())["fps"]
        except MeasurementError:
            return row  # its own round says why
    return replace(row, n=max(trials, key=trials.get))


def report(rows: Sequence[Row], results: Results, options: Options, command: str) -> dict[str, Any]:
    """The JSON document."""
    found = []
    for row in rows:
        line = {
            "env": row.env,
            "method": row.method,
            "n": row.n,
            "N": row.N,
            "M": row.M,
            "fps": None,
            "label": row.label,
            "policy": row.policy_name,
            "settings": row.origin,
            "note": METHODS[row.method].note,
        }
        result = results[row.label]
        if isinstance(result, str):
            line["error"] = result
        else:
            rates = [each["fps"] for each in result]
            line["fps"] = summary(rates)
            line["fps_rounds"] = rates
            line["start_seconds"] = statistics.median(each["start_seconds"] for each in result)
            line.update({k: v for k, v in result[-1].items() if k not in ("fps", "start_seconds")})
        found.append(line)
    return {
        "machine": machine(),
        "command": command,
        "seconds": options.seconds,
        "rounds": options.rounds,
        "rows": found,
        "ratios": ratios({line["label"]: line.get("fps_rounds") for line in found}),
    }


def show(result: dict[str, Any]) -> None:
    """Print the table, what each row means, and where it was measured."""
    rows, screen = result["rows"], console()
    policies = {row["policy"] for row in rows if row["policy"]}
    policy = f", policy {policies.pop()}" if policies else ""
    rounds = f"{result['rounds']} round{'s' * (result['rounds'] > 1)} of {result['seconds']:g} s"
    title = f"{rows[0]['env']}: environment steps per second, {rounds}{policy}"
    screen.print(fps_table(rows, result["ratios"], title))
    for row in {row["method"]: row for row in rows if row["fps"]}.values():
        screen.print(f"{row['method']}: {row['note']}", markup=False)
    for row in rows:
        if row["fps"] is None:
            screen.print(f"{row['label']} was not measured: {row['error']}", markup=False)
    screen.print(machine_line(result["machine"]), markup=False)


def compare(options: Options, command: str) -> None:
    """Measure, write, show. Raises ConfigError before anything is started, WorkerError if nothing ran."""
    rows = make_plan(options)
    with Progress(console(stderr=True), rows, options.rounds) as progress:
        rows = [fit_envpool(row, progress) for row in rows]
        results = measure_rows(rows, options.rounds, progress)
    result = report(rows, results, options, command)
    if options.json is not None:
        write_file(options.json, json.dumps(result, indent=2) + "\n")
    show(result)
    if not any(row["fps"] for row in result["rows"]):
        raise WorkerError("none of the methods could be measured here")


if __name__ == "__main__":
    chosen = tyro.cli(Options, prog="python -m bench.fps", description=__doc__)
    run(lambda: compare(chosen, f"python -m bench.fps {shlex.join(sys.argv[1:])}"))
