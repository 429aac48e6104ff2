"""Why the engine's tokens travel through kernel pipes and not through faster_fifo's shared-memory queue.

Three questions, asked of both: how long a 16-byte token takes there and back between two processes, how
many tokens a second come through when the reader takes all that wait at once, and whether a process
that is killed in the middle of writing leaves something that the others can still use.
"""

from __future__ import annotations

import fastcollect.support.project_environment  # noqa: F401  (first: it may change the interpreter)

# isort: split
import contextlib
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.table import Table

from bench.channels import CHANNELS, Channel, fork_partner
from bench.harness.results import console, machine_line, ratios, summary
from bench.kills import USABLE_SECONDS, count_outcomes
from fastcollect.support.command import check_writable, run
from fastcollect.support.errors import ConfigError
from fastcollect.support.files import write_file
from fastcollect.support.machine import machine

_TOKEN = (1, 2, 3, 4)
_WARM_UP = 0.1
_NOTE = (
    "A writer that does nothing but write is killed on purpose: it is inside the queue's mutex far more "
    "often than an env worker is. The count says whether it can happen, not how often it would."
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compare kernel pipes with faster_fifo.Queue."""

    rounds: int = 5
    """Rounds of latency and throughput, interleaved; the table shows medians."""

    seconds: float = 0.5
    """Seconds of each of the four measurements of a round."""

    kills: int = 200
    """Writers to kill for each of the two."""

    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Where to write the result; whole or not at all."""


def check(options: Options) -> None:
    """Raises ConfigError naming every value that cannot work."""
    problems = [
        f"--{name} is {value!r}; allowed: {low} to {high}"
        for name, value, low, high in (
            ("rounds", options.rounds, 1, 1000),
            ("seconds", options.seconds, 0.01, 60),
            ("kills", options.kills, 0, 100_000),
        )
        if not low <= value <= high
    ]
    try:
        check_writable(options.json)
    except ConfigError as error:
        problems += [f"--json: {problem}" for problem in error.problems]
    if problems:
        raise ConfigError(problems)


@contextlib.contextmanager
def _partner(target: Callable[..., None], *channels: Channel) -> Iterator[None]:
    """Another process, for as long as this lasts."""
    process = fork_partner(target, *channels)
    try:
        yield
    finally:
        process.kill()
        process.join()
        process.close()
        for channel in channels:
            channel.close()


def _echo(there: Channel, back: Channel) -> None:
    while True:
        if (token := there.receive_one(1.0)) is not None:
            back.send(token)


def _produce(channel: Channel) -> None:
    while True:
        channel.send(_TOKEN)


def round_trip(make: Callable[[], Channel], seconds: float) -> dict[str, float]:
    """Microseconds there and back: "round_trip_us" (median) and "round_trip_p99_us"."""
    there, back = make(), make()
    times: list[float] = []
    with _partner(_echo, there, back):
        begin = time.perf_counter() + _WARM_UP
        end = begin + seconds
        while (start := time.perf_counter()) < end or not times:
            there.send(_TOKEN)
            if back.receive_one(5.0) is None:
                raise RuntimeError("a token did not come back within 5 s")
            if start >= begin:
                times.append(time.perf_counter() - start)
    times.sort()
    middle, late = times[len(times) // 2], times[int(len(times) * 0.99)]
    return {"round_trip_us": middle * 1e6, "round_trip_p99_us": late * 1e6}


def throughput(make: Callable[[], Channel], seconds: float) -> dict[str, float]:
    """ "tokens_per_second" from one writer of single tokens, and "batch": how many a read brought."""
    channel = make()
    with _partner(_produce, channel):
        warm = time.perf_counter() + _WARM_UP
        while time.perf_counter() < warm:
            channel.receive(1.0)
        count = reads = 0
        start = time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds:
            count += len(channel.receive(1.0))
            reads += 1
    return {"tokens_per_second": count / elapsed, "batch": count / reads}


def _available() -> dict[str, str | None]:
    """By mechanism: why it cannot be measured here, None if it can."""
    reasons: dict[str, str | None] = {}
    for name, make in CHANNELS.items():
        try:
            make().close()
            reasons[name] = None
        except ImportError as error:
            reasons[name] = f"cannot be imported: {error}"
    return reasons


def measure(options: Options, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """One row for each mechanism. ``say`` is told how it goes."""
    reasons = _available()
    names = [name for name, reason in reasons.items() if reason is None]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    each = 2 * (options.seconds + _WARM_UP) * len(names)
    for number in range(options.rounds):
        left = each * (options.rounds - number)
        say(f"round {number + 1}/{options.rounds}  (about {left:.0f} s left, and then the kills)")
        for name in names if number % 2 == 0 else reversed(names):
            make = CHANNELS[name]
            found[name].append(round_trip(make, options.seconds) | throughput(make, options.seconds))
    rows = []
    for name, reason in reasons.items():
        row: dict[str, Any] = {"mechanism": name}
        if reason is not None:
            rows.append(row | {"error": reason})
            continue
        row["rounds"] = found[name]
        row |= {key: summary([one[key] for one in found[name]]) for key in found[name][0]}
        say(f"killing {options.kills} writers into {name}")
        start = time.monotonic()
        outcomes = count_outcomes(CHANNELS[name], options.kills)
        row["kills"] = {key: outcomes[key] for key in ("usable", "unusable", "corrupt")}
        row["kills_seconds"] = time.monotonic() - start
        rows.append(row)
    return rows


def report(rows: list[dict[str, Any]], options: Options, command: str) -> dict[str, Any]:
    """The JSON document; ratios are taken within a round."""
    measured = [row for row in rows if "error" not in row]
    keys = ("round_trip_us", "round_trip_p99_us", "tokens_per_second")
    return {
        "machine": machine(),
        "command": command,
        "seconds": options.seconds,
        "rounds": options.rounds,
        "rows": rows,
        "ratios": {
            key: ratios({row["mechanism"]: [one[key] for one in row["rounds"]] for row in measured})
            for key in keys
        },
        "note": _NOTE,
    }


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    rows = result["rows"]
    table = Table(
        title=f"tokens: medians of {result['rounds']} rounds of {result['seconds']:g} s", title_justify="left"
    )
    table.add_column("")
    for row in rows:
        table.add_column(row["mechanism"], justify="right")

    def line(name: str, text: Callable[[dict[str, Any]], str]) -> None:
        table.add_row(name, *("none" if "error" in row else text(row) for row in rows))

    line("round trip, µs", lambda row: f"{row['round_trip_us']['median']:.1f}")
    line("its 99th percentile, µs", lambda row: f"{row['round_trip_p99_us']['median']:.1f}")
    line("tokens/s, one writer, many at once", lambda row: f"{row['tokens_per_second']['median']:,.0f}")
    line("tokens a read", lambda row: f"{row['batch']['median']:.1f}")
    line("writers killed", lambda row: f"{sum(row['kills'].values())}")
    line(f"unusable after {USABLE_SECONDS:g} s", lambda row: f"{row['kills']['unusable']}")
    line("corrupt", lambda row: f"{row['kills']['corrupt']}")
    screen = console()
    screen.print(table)
    for row in rows:
        if "error" in row:
            screen.print(f"{row['mechanism']} {row['error']}", markup=False)
    screen.print(result["note"], markup=False)
    screen.print(machine_line(result["machine"]), markup=False)


def compare(options: Options, command: str) -> None:
    """Measure, write, show. Raises ConfigError before anything is started."""
    check(options)
    # Lines instead of a live display, whose thread would be forked half-way through something.
    progress = console(stderr=True)
    rows = measure(options, lambda text: progress.print(text, markup=False))
    result = report(rows, options, command)
    if options.json is not None:
        write_file(options.json, json.dumps(result, indent=2) + "\n")
    show(result)


if __name__ == "__main__":
    chosen = tyro.cli(Options, prog="python -m bench.tokens", description=__doc__)
    run(lambda: compare(chosen, f"python -m bench.tokens {shlex.join(sys.argv[1:])}".rstrip()))
