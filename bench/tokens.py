"""What the two carriers of tokens cost, and what a killed writer leaves to those who live.

Asked of kernel pipes and of faster-fifo as the engine uses them: how long a token takes there and back
between two processes, how many come through in a second when the reader takes all that wait at once, and
whether tokens arrive whole and in order when the process that sends them is killed.
"""

import contextlib
import itertools
import mmap
import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.context import ForkProcess
from typing import get_args

from bench.harness.command import Output, Problems, Turns, main, save
from bench.harness.results import Row, console, plain_table, ratios, show, summary
from fastcollect import ConfigError
from fastcollect.memory.tokens import EnvWorkerEnds, Exchange, Inbox, Kind, Line, TokenChannel, exchange

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
_MEDIANS = {
    "round trip, µs": ("round_trip_us", ".1f"),
    "its 99th percentile, µs": ("round_trip_p99_us", ".1f"),
    "tokens/s, one writer, many at once": ("tokens_per_second", ",.0f"),
    "tokens a read": ("batch", ".1f"),
}
_NAMES = (*_MEDIANS, "writers killed", *(f"{name}: {meaning}" for name, meaning in OUTCOMES.items()))
_fork = multiprocessing.get_context("fork")


@dataclass(frozen=True, kw_only=True)
class TokensArguments(Output, Turns):
    """Compare the two carriers of tokens."""

    rounds: int = 5
    """Rounds of latency and throughput, interleaved; the table shows medians."""
    seconds: float = 0.5
    """Seconds of each of the four measurements of a round."""
    kills: int = 200
    """Writers to kill for each of the two."""


@contextlib.contextmanager
def _process(target: Callable[[], None]) -> Iterator[ForkProcess]:
    """Another process, for as long as this lasts. Ctrl-C ends it without a word; its parent reports."""

    def be_partner() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        target()

    process = _fork.Process(target=be_partner, daemon=True)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()
        process.close()


@contextlib.contextmanager
def _channels(kind: type[Exchange]) -> Iterator[tuple[Inbox, Line]]:
    """The collector's side: what it reads, and where it writes to one worker."""
    with contextlib.closing(kind(0)) as held, contextlib.closing(held.connect()) as line:
        yield held.inbox(), line


def _echo(ends: EnvWorkerEnds) -> None:
    while True:
        ends.inbox.wait(None)
        for _ in ends.inbox.read():
            ends.reports.send(Kind.FREED, 1)


def _produce(ends: EnvWorkerEnds) -> None:
    while True:
        ends.reports.send(Kind.PUBLISHED, 1)


def round_trip(kind: type[Exchange], seconds: float) -> dict[str, float]:
    """Microseconds there and back: "round_trip_us" (median) and "round_trip_p99_us"."""
    times: list[float] = []
    with _channels(kind) as (inbox, line), _process(lambda: _echo(kind.env_worker(line.worker_fds()))):
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
    with _channels(kind) as (inbox, line), _process(lambda: _produce(kind.env_worker(line.worker_fds()))):
        start, count, reads = time.perf_counter() + _WARM_UP, 0, 0
        while (elapsed := time.perf_counter() - start) < seconds or not count:
            inbox.wait(1.0)
            found = len(list(inbox.read()))
            if elapsed >= 0:
                count += found
                reads += 1
    return {"tokens_per_second": count / elapsed, "batch": count / reads}


def kill_writer(kind: type[Exchange], after: float) -> str:
    """Kill a writer ``after`` so many seconds of its tokens; one of OUTCOMES, as its reader sees it."""
    # How many calls of send came back, and whether the writer is gone.
    shared = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("q")

    def write(ends: EnvWorkerEnds) -> None:
        for number in itertools.count():
            ends.reports.send(Kind.PUBLISHED, 1, 2, number)
            shared[0] = number + 1

    with _channels(kind) as (inbox, line), _process(lambda: _survive(inbox, shared)) as survivor:
        with _process(lambda: write(kind.env_worker(line.worker_fds()))):
            until = time.monotonic() + _PATIENCE
            while not shared[0] and time.monotonic() < until:
                time.sleep(0.0005)
            time.sleep(after)
        shared[1] = True
        survivor.join(_PATIENCE)
        return "hung" if survivor.exitcode is None else list(OUTCOMES)[survivor.exitcode]


def _survive(inbox: Inbox, shared: memoryview) -> None:
    names, arrived, gone = list(OUTCOMES), 0, False
    while True:
        for token in inbox.read():
            if tuple(token) != (Kind.PUBLISHED, 1, 2, arrived):
                os._exit(names.index("corrupt"))
            arrived += 1
        if gone:
            os._exit(names.index("whole" if arrived >= shared[0] else "lost"))
        inbox.wait(0.001)
        gone = bool(shared[1])


def count_outcomes(kind: type[Exchange], kills: int) -> Counter[str]:
    """How often each of OUTCOMES happened."""
    moments = random.Random(0)
    return Counter(kill_writer(kind, moments.uniform(0, _LONGEST_LIFE)) for _ in range(kills))


def measure(arguments: TokensArguments) -> list[Row]:
    """A row for each carrier; one that is not available here has an "error" in place of numbers."""
    # Lines instead of a live display, whose thread would be forked half-way through something.
    screen, seconds = console(stderr=True), arguments.seconds
    rows: list[Row] = [{"mechanism": name} for name in get_args(TokenChannel)]
    carriers: dict[str, type[Exchange]] = {}
    for row in rows:
        try:
            carriers[row["mechanism"]] = exchange(row["mechanism"])
        except ConfigError as error:
            row["error"] = str(error)
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in carriers}
    for number in range(arguments.rounds):
        left = 2 * (seconds + _WARM_UP) * len(carriers) * (arguments.rounds - number)
        screen.print(f"round {number + 1}/{arguments.rounds}  (about {left:.0f} s left, and then the kills)")
        for name in carriers if number % 2 == 0 else reversed(carriers):
            rounds[name].append(round_trip(carriers[name], seconds) | throughput(carriers[name], seconds))
    for row in rows:
        if (name := row["mechanism"]) in carriers:
            screen.print(f"killing {arguments.kills} writers into {name}")
            counts = count_outcomes(carriers[name], arguments.kills)
            row["rounds"] = found = rounds[name]
            row |= {key: summary([one[key] for one in found]) for key in found[0]}
            row["kills"] = {outcome: counts[outcome] for outcome in OUTCOMES}
    return rows


def _cells(row: Row) -> list[str]:
    """A carrier's column of the table."""
    if "error" in row:
        return ["none"] * len(_NAMES)
    medians = (f"{row[key]['median']:{form}}" for key, form in _MEDIANS.values())
    kills = row["kills"]
    return [*medians, str(sum(kills.values())), *(str(kills[outcome]) for outcome in OUTCOMES)]


def compare(arguments: TokensArguments) -> None:
    """Measure, write, show. Raises ConfigError before anything is started."""
    problems, kills = Problems(arguments), arguments.kills
    problems.require(0 <= kills <= 100_000, "kills", kills, "0 to 100000")
    problems.raise_any()
    rows = measure(arguments)
    rounds = {row["mechanism"]: row["rounds"] for row in rows if "rounds" in row}
    compared = {
        key: ratios({name: [one[key] for one in found] for name, found in rounds.items()})
        for key in ("round_trip_us", "round_trip_p99_us", "tokens_per_second")
    }
    turns = Turns(seconds=arguments.seconds, rounds=arguments.rounds)  # kills are in every row
    result = save(turns, arguments.json, rows=rows, ratios=compared, note=_NOTE)
    title = f"tokens: medians of {arguments.rounds} rounds of {arguments.seconds:g} s"
    lines = list(zip(_NAMES, *map(_cells, rows), strict=True))
    table = plain_table(title, ["", *(row["mechanism"] for row in rows)], lines)
    show({"machine": result["machine"]}, table, *(row["error"] for row in rows if "error" in row), _NOTE)


if __name__ == "__main__":
    main(TokensArguments, compare, __doc__)
