"""What the two carriers of tokens cost, and what a killed writer leaves to those who live.

Asked of kernel pipes and of faster-fifo as the engine uses them: how long a token takes there and back
between two processes, how many come through in a second when the reader takes all that wait at once, and
whether tokens arrive whole and in order when the process that sends them is killed.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import mmap
import multiprocessing
import os
import random
import shlex
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Annotated, Any, get_args

import tyro
from rich.table import Table

from bench.harness.results import console, machine_line, ratios, summary
from fastcollect.memory.tokens import EnvWorkerEnds, Exchange, Inbox, Kind, Line, TokenChannel, exchange
from fastcollect.support.command import check_writable, run
from fastcollect.support.errors import ConfigError
from fastcollect.support.files import write_file
from fastcollect.support.machine import machine

_WARM_UP = 0.1
_LONGEST_LIFE = 0.01  # seconds of a writer, once its tokens come
_PATIENCE = 1.0  # seconds that a survivor may take
OUTCOMES = {
    "whole": "every token that was sent arrived",
    "lost": "tokens that waited went with it",
    "corrupt": "one arrived that was not sent, or out of order",
    "hung": f"its reader was not done within {_PATIENCE:g} s",
}
_NOTE = (
    "A writer that does nothing but write is killed on purpose: it is inside a queue far more often than an "
    "env worker is. What is lost the engine makes up for: see fastcollect/memory/tokens/fifo.py."
)
_fork = multiprocessing.get_context("fork")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compare the two carriers of tokens."""

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


def _start(target: Callable[..., None], *arguments: Any) -> ForkProcess:
    """Another process. Ctrl-C ends it without a word; its parent reports."""

    def be_partner() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        target(*arguments)

    process = _fork.Process(target=be_partner, daemon=True)
    process.start()
    return process


@contextlib.contextmanager
def _channels(kind: type[Exchange]) -> Iterator[tuple[Inbox, Line]]:
    """The collector's side: what it reads, and where it writes to one worker."""
    held = kind(0)
    line = held.connect()
    try:
        yield held.inbox(), line
    finally:
        line.close()
        held.close()


@contextlib.contextmanager
def _worker(kind: type[Exchange], line: Line, work: Callable[[EnvWorkerEnds], None]) -> Iterator[None]:
    """The worker at the other end, for as long as this lasts."""
    process = _start(lambda: work(kind.env_worker(line.worker_fds())))
    try:
        yield
    finally:
        process.kill()
        process.join()
        process.close()


def _echo(ends: EnvWorkerEnds) -> None:
    while True:
        ends.inbox.wait(None)
        for token in ends.inbox.read():
            ends.reports.send(*token)


def _produce(ends: EnvWorkerEnds) -> None:
    while True:
        ends.reports.send(Kind.PUBLISHED, 1)


def round_trip(kind: type[Exchange], seconds: float) -> dict[str, float]:
    """Microseconds there and back: "round_trip_us" (median) and "round_trip_p99_us"."""
    times: list[float] = []
    with _channels(kind) as (inbox, line), _worker(kind, line, _echo):
        begin = time.perf_counter() + _WARM_UP
        end = begin + seconds
        while (start := time.perf_counter()) < end or not times:
            line.send(Kind.FREED, 1)
            while not list(inbox.read()):
                if not inbox.wait(5.0):
                    raise RuntimeError("a token did not come back within 5 s")
            if start >= begin:
                times.append(time.perf_counter() - start)
    times.sort()
    middle, late = times[len(times) // 2], times[int(len(times) * 0.99)]
    return {"round_trip_us": middle * 1e6, "round_trip_p99_us": late * 1e6}


def throughput(kind: type[Exchange], seconds: float) -> dict[str, float]:
    """ "tokens_per_second" from one writer of single tokens, and "batch": how many a read brought."""
    with _channels(kind) as (inbox, line), _worker(kind, line, _produce):
        warm = time.perf_counter() + _WARM_UP
        count = reads = 0
        start = warm
        while (elapsed := time.perf_counter() - start) < seconds:
            inbox.wait(1.0)
            found = len(list(inbox.read()))
            if elapsed >= 0:
                count += found
                reads += 1
    return {"tokens_per_second": count / elapsed, "batch": count / max(1, reads)}


def kill_writer(kind: type[Exchange], after: float) -> str:
    """Kill a writer ``after`` so many seconds of its tokens; one of OUTCOMES, as its reader sees it."""
    sent = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("q")  # how many calls of send came back

    def write(ends: EnvWorkerEnds) -> None:
        for number in itertools.count():
            ends.reports.send(Kind.PUBLISHED, 1, 2, number)
            sent[0] = number + 1

    told_read, told_write = os.pipe()
    with _channels(kind) as (inbox, line):
        survivor = _start(_survive, inbox, told_read, told_write, sent)
        try:
            with _worker(kind, line, write):
                until = time.monotonic() + _PATIENCE
                while not sent[0] and time.monotonic() < until:
                    time.sleep(0.0005)
                time.sleep(after)
            os.write(told_write, b"!")
            survivor.join(_PATIENCE)
            code = survivor.exitcode
            return "hung" if code is None else list(OUTCOMES)[code]
        finally:
            survivor.kill()
            survivor.join()
            survivor.close()
            os.close(told_read)
            os.close(told_write)


def _survive(inbox: Inbox, told_read: int, told_write: int, sent: Sequence[int]) -> None:
    os.close(told_write)
    os.set_blocking(told_read, False)
    names, arrived, told = list(OUTCOMES), 0, False
    while True:
        for token in inbox.read():
            if tuple(token) != (Kind.PUBLISHED, 1, 2, arrived):
                os._exit(names.index("corrupt"))
            arrived += 1
        if told:
            os._exit(names.index("whole" if arrived >= sent[0] else "lost"))
        inbox.wait(0.001)
        with contextlib.suppress(BlockingIOError):
            told = bool(os.read(told_read, 1))


def count_outcomes(kind: type[Exchange], kills: int, seed: int = 0) -> Counter[str]:
    """How often each of OUTCOMES happened."""
    moments = random.Random(seed)
    return Counter(kill_writer(kind, moments.uniform(0, _LONGEST_LIFE)) for _ in range(kills))


def _available() -> dict[str, type[Exchange] | str]:
    """By name: what carries tokens, or why it cannot here."""
    found: dict[str, type[Exchange] | str] = {}
    for name in get_args(TokenChannel):
        try:
            found[name] = exchange(name)
        except ConfigError as error:
            found[name] = str(error)
    return found


def measure(options: Options, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """One row for each carrier. ``say`` is told how it goes."""
    rows = [
        {"mechanism": name, "error": kind} if isinstance(kind, str) else {"mechanism": name, "kind": kind}
        for name, kind in _available().items()
    ]
    measured = [row for row in rows if "kind" in row]
    rounds: dict[str, list[dict[str, float]]] = {row["mechanism"]: [] for row in measured}
    each = 2 * (options.seconds + _WARM_UP) * len(measured)
    for number in range(options.rounds):
        left = each * (options.rounds - number)
        say(f"round {number + 1}/{options.rounds}  (about {left:.0f} s left, and then the kills)")
        for row in measured if number % 2 == 0 else reversed(measured):
            one = round_trip(row["kind"], options.seconds) | throughput(row["kind"], options.seconds)
            rounds[row["mechanism"]].append(one)
    for row in measured:
        say(f"killing {options.kills} writers into {row['mechanism']}")
        counts = count_outcomes(row.pop("kind"), options.kills)
        row["rounds"] = found = rounds[row["mechanism"]]
        row |= {key: summary([one[key] for one in found]) for key in found[0]}
        row["kills"] = {name: counts[name] for name in OUTCOMES}
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
    title = f"tokens: medians of {result['rounds']} rounds of {result['seconds']:g} s"
    table = Table(title=title, title_justify="left")
    for name in ("", *(row["mechanism"] for row in rows)):
        table.add_column(name, justify="right" if name else "left")

    def line(name: str, text: Callable[[dict[str, Any]], str]) -> None:
        table.add_row(name, *("none" if "error" in row else text(row) for row in rows))

    line("round trip, µs", lambda row: f"{row['round_trip_us']['median']:.1f}")
    line("its 99th percentile, µs", lambda row: f"{row['round_trip_p99_us']['median']:.1f}")
    line("tokens/s, one writer, many at once", lambda row: f"{row['tokens_per_second']['median']:,.0f}")
    line("tokens a read", lambda row: f"{row['batch']['median']:.1f}")
    line("writers killed", lambda row: f"{sum(row['kills'].values())}")
    for outcome, meaning in OUTCOMES.items():
        line(f"{outcome}: {meaning}", lambda row, outcome=outcome: f"{row['kills'][outcome]}")
    screen = console()
    screen.print(table)
    for row in rows:
        if "error" in row:
            screen.print(row["error"], markup=False)
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
