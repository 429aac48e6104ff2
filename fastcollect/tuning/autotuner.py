"""Finds n, N and M for the machine at hand: successive halving over the real engine.

Jamieson and Talwalkar 2016, "Non-stochastic best arm identification": every candidate is measured briefly,
the better ones race on, and the slower half leaves again and again. Machines drift by more than candidates
differ, so nothing is compared across time: in the first rung each measurement stands between two of the same
reference, and in a race all collectors are alive, stopped by signal while it is not their turn, and take
turns of a fraction of a second.
"""

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import psutil

from fastcollect.control.collector import Collector, new_launcher
from fastcollect.control.config import CollectorConfig
from fastcollect.control.launcher import Launcher
from fastcollect.control.parallelism import Parallelism
from fastcollect.control.stats import Stats
from fastcollect.support.cpu import cpu_count, memory_available
from fastcollect.support.errors import ConfigError, StallError, WorkerError
from fastcollect.tuning.results import Outcome, Trial, candidate_grid

Report = Callable[[Parallelism, int, Sequence[Trial]], None]
"""What is told of a search: (candidate, rung, trials so far)."""

_RACERS = 8  # candidates in the first race; half of them go on to the next
_FIRST_RUNG_SHARE = 0.45  # of the budget
_NEIGHBOURS_SHARE = 0.55
_MEMORY_SHARE = 0.8


@dataclass(frozen=True, kw_only=True)
class TunerConfig:
    """What to tune.

    collector: environment, policy and everything but n, N and M. budget: seconds; a run takes at most that
    and one trial. trial_seconds: how long a candidate of the first rung is measured. learner_load: share of
    its time that this process computes (matrix products) instead of taking blocks, as a learner would.
    memory_limit: GiB that all workers may use together; None: most of what is available.
    """

    collector: CollectorConfig
    budget: float = 120.0
    trial_seconds: float = 1.0
    learner_load: float = 0.0
    memory_limit: float | None = None

    def __post_init__(self) -> None:
        limit = self.memory_limit
        problems = [
            f"{name} is {getattr(self, name)!r}; allowed: {allowed}"
            for name, right, allowed in (
                ("budget", 0 < self.budget <= 1e6, "above 0, at most 1000000 seconds"),
                ("trial_seconds", 0 < self.trial_seconds <= 60, "above 0, at most 60"),
                ("learner_load", 0 <= self.learner_load <= 0.95, "0 to 0.95"),
                ("memory_limit", limit is None or 0 < limit < math.inf, "above 0 GiB"),
            )
            if not right
        ]
        if problems:
            raise ConfigError(problems)


class Racer:
    """A live collector that runs only while it is measured."""

    def __init__(self, config: TunerConfig, candidate: Parallelism, launcher: Launcher) -> None:
        self.candidate, self._config = candidate, config
        start = time.monotonic()
        self.collector = Collector(config.collector.with_parallelism(candidate), launcher)
        self.start_seconds = time.monotonic() - start
        self.close = self.collector.close
        self._consume(max(0.3, 0.25 * config.trial_seconds))
        self.collector.pause()

    def measure(self, seconds: float) -> Stats:
        """Run for a while. The first tenth, while caches warm, does not count."""
        self.collector.resume()
        self._consume(0.1 * seconds)
        interval = self._consume(seconds)
        self.collector.pause()
        return interval

    def worker_rss(self) -> list[int]:
        """Resident bytes of every worker that lives."""
        pids, found = self.collector.pids(), []
        for pid in (*pids["env_worker"], *pids["model_worker"]):
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(pid).memory_info().rss)
        return found

    def _consume(self, seconds: float) -> Stats:
        """Take blocks, computing for the learner's share of the time; returns the interval's counters.

        An interval ends after ``seconds``, but not before something was stepped.
        """
        before, start, busy = self.collector.stats(), time.perf_counter(), 0.0
        while True:
            elapsed = time.perf_counter() - start
            if elapsed >= seconds:
                interval = self.collector.stats() - before
                if interval.env_steps > 0:
                    return interval
            if busy < self._config.learner_load * elapsed:
                busy += _compute()
                continue
            with contextlib.suppress(TimeoutError):
                self.collector.take(timeout=min(0.05, max(0.001, seconds - elapsed)))


class Tuner:
    """One tuning run. ``report`` is called before each start.

    grid: every candidate, once ``run`` has laid it out.
    """

    def __init__(self, config: TunerConfig, report: Report = lambda *_: None) -> None:
        self.config = config
        self.grid: list[Parallelism] = []
        self._report = report
        self._trials: list[Trial] = []
        limit = config.memory_limit
        self._memory = _MEMORY_SHARE * memory_available() if limit is None else limit * 2**30
        self._start = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._start

    def run(self) -> Outcome:
        """Search within the budget. Raises what the first trial raises, if it cannot run at all."""
        with self._open() as (launcher, racers):
            with self._scouting(launcher) as reference:
                untried = self._first_rung(launcher, reference)
            self._line_up(launcher, racers, self._best()[:_RACERS])
            rung = 1
            while racers and (rung == 1 or self.elapsed < self.config.budget):
                # The rest of the budget is divided evenly among this race and those to come.
                races = max(1, math.ceil(math.log2(len(racers))))
                self._race(racers, rung, self.elapsed + (self.config.budget - self.elapsed) / races)
                self._drop_half(racers)
                rung += 1
        return self._outcome(untried)

    def sweep(self, candidates: Sequence[Parallelism]) -> Outcome:
        """Measure all of these against the same reference, whatever the budget: the exhaustive answer."""
        with self._open() as (launcher, _), self._scouting(launcher) as reference:
            for candidate in candidates:
                self._try(launcher, reference, candidate)
        return self._outcome()

    def race(self, candidates: Sequence[Parallelism], seconds: float) -> Outcome:
        """Let these take turns for that long, all of them to the end."""
        with self._open() as (launcher, racers):
            self._line_up(launcher, racers, candidates)
            self._race(racers, 1, self.elapsed + seconds)
        return self._outcome()

    def _outcome(self, untried: int = 0) -> Outcome:
        return Outcome(trials=tuple(self._trials), untried=untried, seconds=self.elapsed)

    @contextlib.contextmanager
    def _open(self) -> Iterator[tuple[Launcher, list[Racer]]]:
        """A launcher, and an empty list whose racers are closed with it."""
        self._start = time.monotonic()
        racers: list[Racer] = []
        with contextlib.closing(new_launcher(self.config.collector)) as launcher:
            try:
                yield launcher, racers
            finally:
                for racer in racers:
                    racer.close()

    @contextlib.contextmanager
    def _scouting(self, launcher: Launcher) -> Iterator[Racer]:
        """Start the reference, learn from it what an environment step costs, and lay out the grid."""
        first = Parallelism(n=8, N=cpu_count(), M=0)
        self._report(first, 0, self._trials)
        with contextlib.closing(Racer(self.config, first, launcher)) as racer:
            found = racer.measure(self.config.trial_seconds)
            self._add(racer, 0, 1.0, found)
            stepping = found.shares()["env_worker"]["stepping"]
            # Eight at a time overstate what one costs in a large batch; a few more n do not hurt.
            step = stepping * first.N / max(_speed(found), 1e-9) / 4
            grid = candidate_grid(step, self.config.collector.block_length, cpu_count())
            self.grid = [c for c in grid if c != first]
            yield racer

    def _first_rung(self, launcher: Launcher, reference: Racer) -> int:
        """Try candidates in their order, then the neighbours of the best; returns how many were left out."""
        left = list(self.grid)
        while left and self.elapsed < _NEIGHBOURS_SHARE * self.config.budget:
            best = self._best()[:2] if self.elapsed >= _FIRST_RUNG_SHARE * self.config.budget else None
            near = (c for c in left if best is None or any(_is_neighbour(c, b) for b in best))
            if (candidate := next(near, None)) is None:
                break
            left.remove(candidate)
            self._try(launcher, reference, candidate)
        return len(left)

    def _try(self, launcher: Launcher, reference: Racer, candidate: Parallelism) -> None:
        """One measurement between two short ones of the reference."""
        short = 0.3 * self.config.trial_seconds
        with (
            self._recording_errors(candidate, 0),
            contextlib.closing(Racer(self.config, candidate, launcher)) as racer,
        ):
            before = _speed(reference.measure(short))
            found = racer.measure(self.config.trial_seconds)
            after = _speed(reference.measure(short))
            self._add(racer, 0, 2 * _speed(found) / (before + after), found)

    def _line_up(self, launcher: Launcher, racers: list[Racer], candidates: Sequence[Parallelism]) -> None:
        """Start as many of these as budget and memory allow, the best first."""
        used = 0
        known = {t.candidate: t.rss for t in self._trials}
        for candidate in candidates:
            full = used + candidate.workers * known.get(candidate, 0) > self._memory
            if racers and (self.elapsed >= self.config.budget or full):
                break
            with self._recording_errors(candidate, 1):
                racers.append(Racer(self.config, candidate, launcher))
                used += sum(racers[-1].worker_rss())

    def _race(self, racers: list[Racer], rung: int, until: float) -> None:
        """Take turns until ``until``, at least once each. A score is a median of ratios within rounds."""
        rounds: list[dict[Parallelism, Stats]] = []
        while racers and (not rounds or self.elapsed < until):
            # The order turns, so that none always follows the same neighbour.
            shift = len(rounds) % len(racers)
            measured = {}
            for racer in racers[shift:] + racers[:shift]:
                with self._recording_errors(racer.candidate, rung):
                    measured[racer.candidate] = racer.measure(0.4 * self.config.trial_seconds)
                if racer.candidate not in measured:
                    racers.remove(racer)
                    racer.close()
            rounds.append(measured)
        for racer in racers:
            mine = [measured[racer.candidate] for measured in rounds]
            ratios = [
                _speed(one) / (statistics.median(map(_speed, measured.values())) or 1.0)
                for one, measured in zip(mine, rounds, strict=True)
            ]
            self._add(racer, rung, statistics.median(ratios), *mine)

    def _drop_half(self, racers: list[Racer]) -> None:
        """Close the slower half; a race of two was the last one."""
        score = {t.candidate: t.score for t in self._trials if t.rung == self._trials[-1].rung}
        racers.sort(key=lambda r: score[r.candidate], reverse=True)
        keep = len(racers) // 2 if len(racers) > 2 else 0
        while len(racers) > keep:
            racers.pop().close()

    def _best(self) -> list[Parallelism]:
        """Parallelisms of the first rung, best first. Raises ConfigError if there is none."""
        good = sorted((t for t in self._trials if t.error is None), key=lambda t: -t.score)
        if not good:
            limit = f"{self._memory / 2**30:.2f} GiB"
            raise ConfigError([f"memory_limit: every candidate needs more than {limit}; allow more"])
        return [t.candidate for t in good]

    def _add(self, racer: Racer, rung: int, score: float, *measured: Stats) -> None:
        """Add a racer's trial; one that takes too much memory has failed."""
        rss, error = racer.worker_rss(), None
        if (used := sum(rss)) > self._memory:
            limit = f"the limit is {self._memory / 2**30:.2f} GiB"
            score, error = 0.0, f"uses {used / 2**30:.2f} GiB, {limit}"
        self._trials.append(
            Trial(
                candidate=racer.candidate,
                rung=rung,
                slices=tuple(map(_speed, measured)),
                score=score,
                start_seconds=racer.start_seconds,
                rss=max(rss, default=0),
                shares=sum(measured, Stats()).shares(),
                error=error,
            )
        )

    @contextlib.contextmanager
    def _recording_errors(self, candidate: Parallelism, rung: int) -> Iterator[None]:
        """Report what comes next. If it cannot run, that is a failed trial, not the end of the search."""
        self._report(candidate, rung, self._trials)
        try:
            yield
        except (ConfigError, WorkerError, StallError) as error:
            reason = str(error).splitlines()[0]
            self._trials.append(Trial(candidate=candidate, rung=rung, error=reason))


def _speed(interval: Stats) -> float:
    return interval.env_steps / interval.seconds


def _compute(seconds: float = 0.005) -> float:
    """Matrix products for about that long, as a learner's; returns the seconds."""
    matrix = np.ones((256, 256), np.float32)
    start = time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        np.matmul(matrix, matrix)
    return elapsed


def _is_neighbour(a: Parallelism, b: Parallelism) -> bool:
    """One step away in one of n (a factor of two), N or M."""
    return abs(math.log2(a.n / b.n)) + abs(a.N - b.N) + abs(a.M - b.M) == 1
