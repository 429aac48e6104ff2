"""What a run remembers of itself: recent episodes, evaluations, rates, and the summary of it all."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from engine.algorithms.base import densities
from engine.sparse import masks as mask_functions
from fastcollect.control.stats import Stats
from fastcollect.memory.block import Block
from trainers.config.training import TrainConfig
from trainers.run.learner import Learner

_RECENT = 100
_THRESHOLDS = {"success_any": 0.95, "success_last": 0.8}
_MERIT = ("success_any", "success_last", "return_mean")


class Record:
    """began: ``time.perf_counter()`` of the start; moved back on resume by what the run took before."""

    def __init__(self, config: TrainConfig, began: float) -> None:
        self.config, self.began = config, began
        self.last_evaluation: dict[str, Any] = {}
        self._best: tuple[float, ...] | None = None
        self._in_a_row = 0
        self._reached: dict[str, dict[str, float]] = {}
        self._returns: deque[float] = deque(maxlen=_RECENT)
        self._successes: deque[float] = deque(maxlen=_RECENT)
        self._logged = (began, 0, 0)
        self._training_seconds = 0.0

    def goes_on(self, learner: Learner) -> None:
        """Rates count from what the learner has done so far."""
        self._logged = (time.perf_counter(), learner.env_steps, learner.updates)

    def trained(self) -> None:
        """Training is done; what comes now is not part of its time."""
        self._training_seconds = self.wall()

    def wall(self) -> float:
        """Seconds that the run took so far."""
        return time.perf_counter() - self.began

    def since_logged(self) -> float:
        """Seconds since ``training_row``."""
        return time.perf_counter() - self._logged[0]

    def took(self, block: Block) -> None:
        """Remember the episodes that ended in a block."""
        self._returns.extend(block.episodes.episode_return.tolist())
        self._successes.extend(block.episodes.success_any.tolist())

    def judge(self, row: Mapping[str, Any]) -> bool:
        """Remember an evaluation; returns whether it is the best one so far."""
        self.last_evaluation = dict(row)
        for name, threshold in _THRESHOLDS.items():
            if row[name] >= threshold and name not in self._reached:
                at = {key: row[key] for key in ("env_steps", "wall_seconds")}
                self._reached[name] = {"at": threshold, **at}
        enough = self.config.stop_success is not None and row["success_any"] >= self.config.stop_success
        self._in_a_row = self._in_a_row + 1 if enough else 0
        merit = tuple(row[name] for name in _MERIT)
        if self._best is not None and merit <= self._best:
            return False
        self._best = merit
        return True

    @property
    def stopped_early(self) -> bool:
        """Whether success has lasted for as many evaluations as end a run."""
        return self.config.stop_success is not None and self._in_a_row >= self.config.stop_patience

    def training_row(self, learner: Learner, lag: Mapping[str, float | None]) -> dict[str, Any]:
        """Counters, rates since the row before, recent episodes, the learner's metrics; waits for those.

        lag: of the policy; see PolicyLag.
        """
        now = time.perf_counter()
        then, steps, updates = self._logged
        self._logged = (now, learner.env_steps, learner.updates)
        return {
            "env_steps": learner.env_steps,
            "updates": learner.updates,
            "wall_seconds": self.wall(),
            "env_steps_per_second": (learner.env_steps - steps) / (now - then),
            "updates_per_second": (learner.updates - updates) / (now - then),
            "updates_per_step": self._ratio(learner),
            **lag,
            "return_mean": float(np.mean(self._returns)) if self._returns else None,
            "success_any": float(np.mean(self._successes)) if self._successes else None,
            **{name: float(value) for name, value in learner.metrics.items()},
        }

    def _ratio(self, learner: Learner) -> float:
        learned = max(1, learner.env_steps - self.config.start_steps)
        return learner.updates / learned

    def summary(self, learner: Learner, stats: Stats) -> dict[str, Any]:
        """The results of the run."""
        row = self.last_evaluation
        kept = {name: mask_functions.counts(mask)[0] for name, mask in learner.state.masks.items()}
        return {
            **{k: row[k] for k in ("success_any", "success_last", "success_first_step", "return_mean")},
            "best": dict(zip(_MERIT, self._best, strict=True)),
            "reached": self._reached,
            "env": self.config.env,
            "seed": self.config.seed,
            "env_steps": learner.env_steps,
            "updates": learner.updates,
            "updates_per_step": self._ratio(learner),
            "transitions_stored": learner.replay.added,
            "wall_seconds": self.wall(),
            "training_seconds": self._training_seconds,
            "stopped_early": self.stopped_early,
            "density": densities(learner.state),
            "kept_weights": kept,
            "flops": learner.algorithm.flops(learner.state),
            "collector": stats.shares() | {"env_worker_deaths": stats.env_worker_deaths},
        }

    def get_state(self) -> dict[str, Any]:
        """Plain data for a checkpoint."""
        return {
            "best": self._best,
            "in_a_row": self._in_a_row,
            "reached": self._reached,
            "last_evaluation": self.last_evaluation,
            "returns": list(self._returns),
            "successes": list(self._successes),
            "wall_seconds": self.wall(),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from ``get_state``'s result."""
        self._best = tuple(state["best"]) if state["best"] is not None else None
        self._in_a_row, self._reached = state["in_a_row"], state["reached"]
        self.last_evaluation = state["last_evaluation"]
        self._returns.extend(state["returns"])
        self._successes.extend(state["successes"])
        self.began -= state["wall_seconds"]
