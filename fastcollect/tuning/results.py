"""What a tuning run tries and finds: trials of candidates, the outcome, and why."""

import math
import statistics
from dataclasses import dataclass, field

from fastcollect.control.parallelism import Parallelism

_BLOCK_SECONDS = 0.5  # a block that takes longer than this is too stale for a learner
_MAX_ENVS = 4096


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One candidate in one rung. slices: environment steps per second of each measurement.

    score: speed relative to what ran beside it, comparable within a rung. start_seconds: from nothing to
    every worker ready. rss: bytes of the largest worker. shares: see Stats.shares.
    """

    candidate: Parallelism
    rung: int
    slices: tuple[float, ...] = ()
    score: float = 0.0
    start_seconds: float = 0.0
    rss: int = 0
    shares: dict[str, dict[str, float]] = field(default_factory=dict)
    error: str | None = None

    @property
    def fps(self) -> float:
        """Median of the slices, 0 without any."""
        return statistics.median(self.slices) if self.slices else 0.0

    @property
    def spread(self) -> float:
        """Largest minus smallest slice, over the median."""
        return (max(self.slices) - min(self.slices)) / self.fps if self.slices else 0.0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run found. trials: at most one for each candidate and rung. untried: candidates that the budget
    left out. seconds: wall clock of the whole run."""

    trials: tuple[Trial, ...]
    untried: int
    seconds: float

    def last(self) -> dict[Parallelism, Trial]:
        """Each candidate's trial in the last rung it reached, best first: by rung, then by score."""
        last = {trial.candidate: trial for trial in sorted(self.trials, key=lambda t: t.rung)}
        order = sorted(last.values(), key=lambda t: (t.error is None, t.rung, t.score), reverse=True)
        return {trial.candidate: trial for trial in order}

    @property
    def best(self) -> Trial:
        """The winner's last trial."""
        return next(iter(self.last().values()))

    def ratio(self, candidate: Parallelism) -> float:
        """Its speed over the winner's, in the last rung that both ran in."""
        mine = {t.rung: t.score for t in self.trials if t.candidate == candidate and t.error is None}
        winners = {t.rung: t.score for t in self.trials if t.candidate == self.best.candidate}
        common = max(mine.keys() & winners.keys(), default=None)
        return 0.0 if common is None else mine[common] / winners[common]


def candidate_grid(step_seconds: float, block_length: int, cpus: int) -> list[Parallelism]:
    """Every candidate, the most promising first.

    step_seconds: of one environment. n: seven powers of two up to where a block takes half a second.
    N: around the number of processors. M: 0, 1, 2, and on many processors more.
    """
    most = _BLOCK_SECONDS / (block_length * step_seconds)
    top = min(_MAX_ENVS, 2 ** max(0, math.floor(math.log2(max(most, 1)))))
    envs = [n for k in range(7) if (n := top >> k) >= 1]
    workers = sorted({1, 2, cpus // 2, 3 * cpus // 4, cpus - 2, cpus - 1, cpus, cpus + 1} - {0, -1})
    models = sorted({0, 1, *([2] if cpus > 2 else []), *([cpus // 4] if cpus >= 8 else [])})
    grid = [Parallelism(n, w, m) for n in envs for w in workers for m in models if m <= w]

    def unlikely(c: Parallelism) -> float:
        # Busy processors count most; then M = 0, which moves no data; then a middling n.
        idle = abs(c.N - (cpus - (c.M if cpus > 4 else 0)))
        return 3 * idle / cpus + 0.5 * c.M + 0.3 * abs(math.log2(c.n * 8 / top))

    return sorted(grid, key=lambda c: (unlikely(c), c))


_MEANING = {
    "stepping": "the simulation is the limit; only more processors would help",
    "waiting_actions": "inference is the limit; more model workers or larger groups would help",
    "inferring": "the policy is the limit; model workers or a smaller network would help",
    "waiting_learner": "the learner is the limit; collecting faster would not help",
}


def explain(outcome: Outcome) -> list[str]:
    """Why the winner won, in sentences: where its time went, and what its alternatives reached."""
    best = outcome.best.candidate
    worker = outcome.best.shares["env_worker"]
    parts = ", ".join(f"{name.replace('_', ' ')} {share:.0%}" for name, share in worker.items() if share)
    lines = [f"env workers: {parts} -> {_MEANING[max(worker, key=lambda s: worker[s])]}"]
    if "model_worker" in outcome.best.shares:
        inferring = outcome.best.shares["model_worker"]["inferring"]
        lines.append(f"model workers: inferring {inferring:.0%} of the time")
    ratios = {c: outcome.ratio(c) for c, trial in outcome.last().items() if trial.error is None}
    for name in ("M", "N"):
        for value in sorted({getattr(c, name) for c in ratios} - {getattr(best, name)}):
            other = max((c for c in ratios if getattr(c, name) == value), key=lambda c: ratios[c])
            lines.append(f"best with {name}={value}: {ratios[other]:.2f} x the winner ({other})")
    return lines
