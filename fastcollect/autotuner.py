"""Finds n, N and M for the machine at hand: successive halving over the real engine.

Jamieson and Talwalkar 2016, "Non-stochastic best arm identification": every candidate is measured for a
short time, the better third for longer, until a few are left; these are measured in turn, several times,
so that a machine whose speed drifts treats them alike. The median of those decides.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import psutil

from fastcollect.collector import Collector, new_launcher
from fastcollect.config import CollectorConfig
from fastcollect.cpu import cpu_count, memory_available
from fastcollect.errors import ConfigError, StallError, WorkerError
from fastcollect.launcher import Launcher
from fastcollect.stats import Stats

_KEEP = 3  # a third goes on
_FINALISTS = 4
_FIRST_RUNG_SHARE = 0.5  # of the budget
_BLOCK_SECONDS = 0.5  # a block that takes longer than this is too stale for a learner
_MAX_ENVS = 4096
_MEMORY_SHARE = 0.8


@dataclass(frozen=True, order=True)
class Candidate:
    """n environments in each of N env workers, M model workers."""

    num_envs: int
    num_env_workers: int
    num_model_workers: int

    def __str__(self) -> str:
        return f"n={self.num_envs} N={self.num_env_workers} M={self.num_model_workers}"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One measurement. rung: 0 is the shortest. fps: environment steps per second, 0 with an ``error``.

    start_seconds: from nothing to every worker ready. rss: bytes of one env worker, the largest.
    """

    candidate: Candidate
    rung: int
    seconds: float
    fps: float = 0.0
    start_seconds: float = 0.0
    rss: int = 0
    shares: dict[str, dict[str, float]] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class TunerConfig:
    """What to tune.

    collector: environment, policy and everything but n, N and M. budget: seconds; a run takes at most that
    and one trial. trial_seconds: how long a candidate of the first rung is measured. learner_load: share of
    its time that this process computes (matrix products) instead of taking blocks, as a learner would.
    memory_limit: bytes that all workers may use together; None: most of what is available.
    """

    collector: CollectorConfig
    budget: float = 120.0
    trial_seconds: float = 1.0
    learner_load: float = 0.0
    memory_limit: int | None = None

    def __post_init__(self) -> None:
        problems = []
        if not self.budget > 0:
            problems.append(f"budget is {self.budget!r}; allowed: above 0 seconds")
        if not 0 < self.trial_seconds <= 60:
            problems.append(f"trial_seconds is {self.trial_seconds!r}; allowed: above 0, at most 60")
        if not 0 <= self.learner_load < 1:
            problems.append(f"learner_load is {self.learner_load!r}; allowed: 0 to below 1")
        if self.memory_limit is not None and self.memory_limit <= 0:
            problems.append(f"memory_limit is {self.memory_limit!r} bytes; allowed: above 0")
        if problems:
            raise ConfigError(problems)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run found. fps: the winner's median in the last rung it reached. untried: candidates that the
    budget left out. seconds: wall clock of the whole run."""

    best: Candidate
    fps: float
    trials: tuple[Trial, ...]
    untried: int
    seconds: float

    def medians(self) -> dict[Candidate, float]:
        """Each candidate's median in the last rung it reached."""
        return {c: statistics.median(t.fps for t in trials) for c, trials in self._last_rungs().items()}

    def _last_rungs(self) -> dict[Candidate, list[Trial]]:
        by_candidate: dict[Candidate, list[Trial]] = {}
        for trial in self.trials:
            known = by_candidate.setdefault(trial.candidate, [])
            if known and trial.rung > known[0].rung:
                known.clear()
            known.append(trial)
        return by_candidate

    def shares(self) -> dict[str, dict[str, float]]:
        """Where the winner's time went, in its last trial."""
        return self._last_rungs()[self.best][-1].shares


def candidate_grid(step_seconds: float, block_length: int, cpus: int) -> list[Candidate]:
    """Every candidate, the most promising first.

    step_seconds: of one environment. n: seven powers of two up to where a block takes half a second.
    N: around the number of processors. M: 0, 1, 2, and on many processors more.
    """
    most = _BLOCK_SECONDS / (block_length * step_seconds)
    top = min(_MAX_ENVS, 2 ** max(0, math.floor(math.log2(max(most, 1)))))
    envs = [n for k in range(7) if (n := top >> k) >= 1]
    workers = sorted({1, 2, cpus // 2, 3 * cpus // 4, cpus - 2, cpus - 1, cpus, cpus + 1} - {0, -1})
    models = sorted({0, 1, *([2] if cpus > 2 else []), *([cpus // 4] if cpus >= 8 else [])})
    grid = [Candidate(n, w, m) for n in envs for w in workers for m in models if m <= w]

    def unlikely(c: Candidate) -> float:
        # Busy processors count most; then M = 0, which moves no data; then a middling n.
        idle = abs(c.num_env_workers - (cpus - (c.num_model_workers if cpus > 4 else 0)))
        return 3 * idle / cpus + 0.5 * c.num_model_workers + 0.3 * abs(math.log2(c.num_envs * 8 / top))

    return sorted(grid, key=lambda c: (unlikely(c), c))


class Tuner:
    """One tuning run. ``report`` is called before each trial with (candidate, rung, trials so far).

    grid: every candidate, once ``run`` has laid it out.
    """

    def __init__(
        self,
        config: TunerConfig,
        report: Callable[[Candidate, int, Sequence[Trial]], None] = lambda *_: None,
    ) -> None:
        self.config = config
        self._report = report
        self.grid: list[Candidate] = []
        self._trials: list[Trial] = []
        self._memory = config.memory_limit or int(_MEMORY_SHARE * memory_available())
        self._start = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._start

    def run(self) -> Outcome:
        """Search within the budget. Raises what the first trial raises, if it cannot run at all."""
        self._start = time.monotonic()
        launcher = new_launcher(self.config.collector)
        try:
            self.grid = self._scout(launcher)
            untried = self._first_rung(launcher, self.grid)
            self._halve(launcher)
        finally:
            launcher.close()
        return self._outcome(untried)

    def sweep(self, candidates: Sequence[Candidate], repeats: int) -> Outcome:
        """Measure all of these, in turn, ``repeats`` times, whatever the budget: the exhaustive answer."""
        self._start = time.monotonic()
        launcher = new_launcher(self.config.collector)
        try:
            for _ in range(repeats):
                for candidate in candidates:
                    self._try(launcher, candidate, 0, self.config.trial_seconds)
        finally:
            launcher.close()
        return self._outcome(0)

    def _scout(self, launcher: Launcher) -> list[Candidate]:
        """Learn from one small trial what an environment step costs, then lay out the grid."""
        first = Candidate(8, cpu_count(), 0)
        trial = self._try(launcher, first, 0, self.config.trial_seconds, must_run=True)
        step = trial.shares["env_worker"]["stepping"] * first.num_env_workers / max(trial.fps, 1e-9)
        # Eight environments at a time overstate the cost of one in a large batch; a few more n do not hurt.
        grid = candidate_grid(step / 4, self.config.collector.block_length, cpu_count())
        return [c for c in grid if c != first and self._fits(c, trial)]

    def _fits(self, candidate: Candidate, known: Trial) -> bool:
        per_env = known.rss / known.candidate.num_envs if candidate.num_envs > _MAX_ENVS else 0
        workers = candidate.num_env_workers + candidate.num_model_workers
        return workers * (known.rss + per_env * candidate.num_envs) <= self._memory

    def _first_rung(self, launcher: Launcher, grid: list[Candidate]) -> int:
        share = _FIRST_RUNG_SHARE * self.config.budget
        tried = 0
        for candidate in grid:
            if self.elapsed >= share:
                break
            self._try(launcher, candidate, 0, self.config.trial_seconds)
            tried += 1
        left = grid[tried:]
        # Whatever the order left out next to the best so far deserves its turn.
        best = max(self._trials, key=lambda t: t.fps).candidate
        near = [c for c in left if _is_neighbour(c, best)]
        for candidate in near:
            if self.elapsed >= share + 0.1 * self.config.budget:
                break
            self._try(launcher, candidate, 0, self.config.trial_seconds)
            tried += 1
        return len(grid) - tried

    def _halve(self, launcher: Launcher) -> None:
        rung, seconds = 0, self.config.trial_seconds
        while len(survivors := self._best(rung)) > _FINALISTS:
            rung, seconds = rung + 1, 2 * seconds
            for candidate in survivors[: max(_FINALISTS, len(survivors) // _KEEP)]:
                if self.elapsed >= 0.75 * self.config.budget:
                    break
                self._try(launcher, candidate, rung, seconds)
            if len(self._best(rung)) <= _FINALISTS:
                break
        finalists = (self._best(rung) or self._best(rung - 1))[:_FINALISTS]
        if len(finalists) < 2:
            finalists = self._best(max(0, rung - 1))[:_FINALISTS]
        # The order turns with every round, so that none always follows the same neighbour.
        turn = 0
        while self.elapsed < self.config.budget and len(finalists) > 1:
            self._try(launcher, finalists[turn % len(finalists)], rung + 1, seconds)
            turn += 1
            if turn % len(finalists) == 0:
                finalists = finalists[1:] + finalists[:1]

    def _best(self, rung: int) -> list[Candidate]:
        """Candidates measured in this rung, best first."""
        trials = [t for t in self._trials if t.rung == rung and t.error is None]
        return [t.candidate for t in sorted(trials, key=lambda t: -t.fps)]

    def _try(
        self, launcher: Launcher, candidate: Candidate, rung: int, seconds: float, must_run: bool = False
    ) -> Trial:
        self._report(candidate, rung, self._trials)
        try:
            trial = self._measure(launcher, candidate, rung, seconds)
        except (ConfigError, WorkerError, StallError) as error:
            if must_run:
                raise
            trial = Trial(candidate=candidate, rung=rung, seconds=seconds, error=str(error).splitlines()[0])
        self._trials.append(trial)
        return trial

    def _measure(self, launcher: Launcher, candidate: Candidate, rung: int, seconds: float) -> Trial:
        config = replace(
            self.config.collector,
            num_envs=candidate.num_envs,
            num_env_workers=candidate.num_env_workers,
            num_model_workers=candidate.num_model_workers,
        )
        start = time.monotonic()
        with Collector(config, launcher) as collector:
            start_seconds = time.monotonic() - start
            _consume(collector, max(0.3, 0.25 * seconds), self.config.learner_load)
            interval = _consume(collector, seconds, self.config.learner_load)
            rss = [_rss(pid) for kind in ("env_worker", "model_worker") for pid in collector.pids()[kind]]
        error = None
        if sum(rss) > self._memory:
            error = f"uses {sum(rss) / 2**30:.1f} GiB, the limit is {self._memory / 2**30:.1f} GiB"
        return Trial(
            candidate=candidate,
            rung=rung,
            seconds=interval.seconds,
            fps=0.0 if error else interval.env_steps / interval.seconds,
            start_seconds=start_seconds,
            rss=max(rss),
            shares=interval.shares(),
            error=error,
        )

    def _outcome(self, untried: int) -> Outcome:
        good = tuple(t for t in self._trials if t.error is None)
        if not good:
            limit = f"{self._memory / 2**30:.2f} GiB"
            raise ConfigError([f"memory_limit: every candidate needs more than {limit}; allow more"])
        last = max(t.rung for t in good)
        medians = {
            c: statistics.median(t.fps for t in good if t.candidate == c and t.rung == last)
            for c in {t.candidate for t in good if t.rung == last}
        }
        best = max(medians, key=lambda c: medians[c])
        return Outcome(
            best=best, fps=medians[best], trials=tuple(self._trials), untried=untried, seconds=self.elapsed
        )


def _is_neighbour(a: Candidate, b: Candidate) -> bool:
    """One step away in one of n (a factor of two), N or M."""
    distances = (
        abs(math.log2(a.num_envs / b.num_envs)),
        abs(a.num_env_workers - b.num_env_workers),
        abs(a.num_model_workers - b.num_model_workers),
    )
    return sum(distances) == 1


def _consume(collector: Collector, seconds: float, load: float) -> Stats:
    """Take blocks for a while, computing for the share ``load`` of it; returns the interval's counters."""
    before = collector.stats()
    matrix = np.ones((256, 256), np.float32)
    busy = 0.0
    while (elapsed := collector.stats().seconds - before.seconds) < seconds:
        if busy < load * elapsed:
            start = time.perf_counter()
            np.matmul(matrix, matrix)
            busy += time.perf_counter() - start
            continue
        try:
            collector.take(timeout=min(0.05, seconds - elapsed))
        except TimeoutError:
            continue
    return collector.stats() - before


def _rss(pid: int) -> int:
    try:
        return psutil.Process(pid).memory_info().rss
    except psutil.NoSuchProcess:
        return 0


def explain(outcome: Outcome) -> list[str]:
    """Why the winner won, in sentences: where its time went, and what its alternatives reached."""
    shares, best = outcome.shares(), outcome.best
    lines = []
    worker = shares.get("env_worker", {})
    meaning = {
        "stepping": "the simulation is the limit; only more processors would help",
        "waiting_actions": "inference is the limit; more model workers or larger groups would help",
        "inferring": "the policy is the limit; model workers or a smaller network would help",
        "waiting_learner": "the learner is the limit; collecting faster would not help",
    }
    if worker:
        state = max(worker, key=lambda s: worker[s])
        parts = ", ".join(f"{name.replace('_', ' ')} {share:.0%}" for name, share in worker.items() if share)
        lines.append(f"env workers: {parts} -> {meaning[state]}")
    if "model_worker" in shares:
        lines.append(f"model workers: inferring {shares['model_worker']['inferring']:.0%} of the time")
    medians = outcome.medians()

    def best_of(kind: str, rest: list[Candidate]) -> None:
        if rest:
            other = max(rest, key=lambda c: medians[c])
            lines.append(f"{kind}: {medians[other] / outcome.fps:.2f} x the winner ({other})")

    for m in sorted({c.num_model_workers for c in medians} - {best.num_model_workers}):
        best_of(f"best with M={m}", [c for c in medians if c.num_model_workers == m])
    for n in sorted({c.num_env_workers for c in medians} - {best.num_env_workers}):
        best_of(f"best with N={n}", [c for c in medians if c.num_env_workers == n])
    return lines
