"""What a run remembers of itself: recent episodes, evaluations, rates, and the summary of it all."""

import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from engine.algorithms.base import densities
from engine.sparse import masks as mask_functions
from engine.sparse.compact import effective
from fastcollect import Block, Stats
from trainers.run.learner import Learner
from trainers.run.metrics import MetricsWriter
from trainers.run.progress import Progress
from trainers.run.session import Observer, Session

_LOG_SECONDS = 2.0
_RECENT = 100
_THRESHOLDS = {"success_any": 0.95, "success_last": 0.8}
_MERIT = ("success_any", "success_last", "return_mean")


class Record(Observer):
    """Remembers what a run measures, writes it and shows it: training every few seconds, evaluations at once.

    began: ``time.perf_counter()`` of the start. saved: what ``get_state`` of an interrupted run returned,
    whose time then counts too; empty for a new run. Rates count from what the learner has done so far.
    """

    def __init__(
        self,
        learner: Learner,
        metrics: MetricsWriter,
        progress: Progress,
        began: float,
        saved: dict[str, Any],
    ) -> None:
        self._learner, self._config = learner, learner.config
        self._metrics, self._progress = metrics, progress
        self._began = began - saved.get("wall_seconds", 0.0)
        self.last_evaluation: dict[str, Any] = saved.get("last_evaluation", {})
        self._best: list[float] | None = saved.get("best")
        self._in_a_row: int = saved.get("in_a_row", 0)
        self._reached: dict[str, dict[str, float]] = saved.get("reached", {})
        self._returns: deque[float] = deque(saved.get("returns", ()), maxlen=_RECENT)
        self._successes: deque[float] = deque(saved.get("successes", ()), maxlen=_RECENT)
        self.costs: list[dict[str, int]] = saved.get("costs", [])
        self._logged = (time.perf_counter(), learner.env_steps, learner.updates)
        self.training_seconds = 0.0  # without what comes after the last update

    def get_state(self) -> dict[str, Any]:
        """Plain data for a checkpoint."""
        return {
            "best": self._best,
            "in_a_row": self._in_a_row,
            "reached": self._reached,
            "last_evaluation": self.last_evaluation,
            "returns": list(self._returns),
            "successes": list(self._successes),
            "costs": self.costs,
            "wall_seconds": self.wall(),
        }

    def wall(self) -> float:
        """Seconds that the run took so far."""
        return time.perf_counter() - self._began

    def took(self, session: Session, block: Block) -> None:
        """Remember the episodes that ended in a block."""
        self._returns.extend(block.episodes.episode_return.tolist())
        self._successes.extend(block.episodes.success_any.tolist())

    def between(self, session: Session) -> None:
        """Write a row of training's measurements if it is time."""
        if time.perf_counter() - self._logged[0] >= _LOG_SECONDS:
            self._log(session)

    def end(self, session: Session) -> None:
        """Write the last row."""
        self._log(session)

    def _log(self, session: Session) -> None:
        """Counters, rates since the row before, recent episodes, the learner's metrics; waits for those."""
        learner, now = self._learner, time.perf_counter()
        then, steps, updates = self._logged
        self._logged = (now, learner.env_steps, learner.updates)
        row = {
            "env_steps": learner.env_steps,
            "updates": learner.updates,
            "wall_seconds": self.wall(),
            "env_steps_per_second": (learner.env_steps - steps) / (now - then),
            "updates_per_second": (learner.updates - updates) / (now - then),
            "updates_per_step": self._ratio(),
            **session.lag.read(),
            "return_mean": float(np.mean(self._returns)) if self._returns else None,
            "success_any": float(np.mean(self._successes)) if self._successes else None,
            **learner.capacity(),
            **{name: float(value) for name, value in learner.metrics.items()},
        }
        self._metrics.write_metrics(row)
        self._progress.trained(row)

    def _ratio(self) -> float:
        learned = max(1, self._learner.env_steps - self._config.start_steps)
        return self._learner.updates / learned

    def evolved(self, row: Mapping[str, Any], cost: dict[str, int]) -> None:
        """Write how masks changed, if they can, and remember what an update costs from here on.

        cost: "updates" of the run so far; operations of an "update", and of the "growth" that came before.
        """
        self.costs.append(cost)
        if row:
            counters = {"env_steps": self._learner.env_steps, "updates": self._learner.updates}
            self._metrics.write_topology({**counters, "wall_seconds": self.wall(), **row})

    def _operations(self) -> int:
        """Of all updates of this run, without the zeros of the masks that each of them had."""
        ends = [each["updates"] for each in self.costs[1:]] + [self._learner.updates]
        pairs = zip(self.costs, ends, strict=True)
        return sum(each["update"] * (end - each["updates"]) + each["growth"] for each, end in pairs)

    def evaluated(self, row: dict[str, Any]) -> bool:
        """Write an evaluation's row and remember it; returns whether it is the best one so far."""
        self._metrics.write_evaluation(row)
        self._progress.evaluated(row)
        self.last_evaluation = row
        for name, threshold in _THRESHOLDS.items():
            if row[name] >= threshold and name not in self._reached:
                at = {key: row[key] for key in ("env_steps", "wall_seconds")}
                self._reached[name] = {"at": threshold, **at}
        stop = self._config.stop_success
        self._in_a_row = self._in_a_row + 1 if stop is not None and row["success_any"] >= stop else 0
        merit = [row[name] for name in _MERIT]
        if self._best is not None and merit <= self._best:
            return False
        self._best = merit
        return True

    @property
    def stopped_early(self) -> bool:
        """Whether success has lasted for as many evaluations as end a run."""
        return self._config.stop_success is not None and self._in_a_row >= self._config.stop_patience

    def summary(self, stats: Stats) -> dict[str, Any]:
        """The results of the run, whose last evaluation was of its final weights."""
        learner, row, best = self._learner, self.last_evaluation, self._best
        assert best is not None, "an evaluation ends every run"
        flops = learner.algorithm.flops(learner.state)
        dense = flops["update"]["dense"] * (learner.updates - self.costs[0]["updates"])
        kept = {name: mask_functions.counts(mask)[0] for name, mask in learner.state.masks.items()}
        return {
            **{k: row[k] for k in ("success_any", "success_last", "success_first_step", "return_mean")},
            "best": dict(zip(_MERIT, best, strict=True)),
            "reached": self._reached,
            "env": self._config.env,
            "seed": self._config.seed,
            "env_steps": learner.env_steps,
            "updates": learner.updates,
            "updates_per_step": self._ratio(),
            "transitions_stored": learner.replay.added,
            **learner.capacity(),
            "wall_seconds": self.wall(),
            "training_seconds": self.training_seconds,
            "stopped_early": self.stopped_early,
            "density": densities(learner.state),
            "kept_weights": kept,
            "effective_weights": {name: effective(mask) for name, mask in learner.state.masks.items()},
            "flops": {**flops, "training": {"dense": dense, "masked": self._operations()}},
            "collector": stats.shares() | {"env_worker_deaths": stats.env_worker_deaths},
        }
