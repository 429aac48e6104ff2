"""The training loop: collect, store, update at the ratio asked for, evaluate, keep.

Asynchronous by default: env workers collect, the device updates and an evaluator tests at the same time,
and this process only moves blocks and weights. In lockstep each waits for the others at defined points.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engine import masks as mask_functions
from engine.sac import DENSE, Masks
from fastcollect.block import Block
from fastcollect.collector import Collector, new_launcher
from fastcollect.command import parse_kwargs
from fastcollect.config import CollectorConfig
from fastcollect.envs.registry import EnvConfig
from fastcollect.launcher import Launcher
from fastcollect.policies import mlp_policy
from fastcollect.probe import env_spec
from trainers import artifacts
from trainers.checkpoints import Checkpoints
from trainers.config import TrainConfig
from trainers.evaluation import Evaluation, Evaluator
from trainers.learner import Learner, as_numpy
from trainers.metrics import MetricsWriter
from trainers.progress import Progress
from trainers.run_folder import RunFolder
from trainers.snapshots import Snapshot, to_arrays

SALIENCY_BATCHES = 100
_LOG_SECONDS = 2.0
_CHECKPOINT_SECONDS = 120.0
_RECENT = 100
_THRESHOLDS = {"success_any": 0.95, "success_last": 0.8}


class InterruptedRunError(Exception):
    """The user asked the run to stop; its checkpoint is written. signum: by which signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


@dataclass(frozen=True)
class Start:
    """What a run begins with. masks: of its networks. snapshot: None for fresh weights.

    random_actions: whether it collects at random until start_steps. replay: None, or arrays of
    ``Learner.get_state`` to begin with. keep: which artifacts it leaves beside "final": any of "initial",
    "anchor", "best", "saliency".
    """

    masks: Masks = field(default_factory=lambda: DENSE)
    snapshot: Snapshot | None = None
    replay: Mapping[str, np.ndarray] | None = None
    random_actions: bool = True
    keep: tuple[str, ...] = ("initial", "anchor", "best", "saliency")


def collector_config(config: TrainConfig) -> CollectorConfig:
    """The collector's part of a training's configuration."""
    collect = config.collect
    return CollectorConfig(
        env=EnvConfig(id=config.env, kwargs=parse_kwargs(config.env_kwargs)),
        policy=mlp_policy(config.sac.hidden),
        num_envs=collect.n,
        num_env_workers=collect.N,
        num_model_workers=collect.M,
        block_length=collect.block_length,
        seed=config.seed,
        lockstep=collect.lockstep,
        group_size=collect.group_size,
    )


def train(
    folder: RunFolder, config: TrainConfig, start: Start, progress: Progress, *, resume: bool = False
) -> dict[str, Any]:
    """Run to the end of the budget; returns the summary, which is written too.

    Raises ConfigError for what the user can mend, WorkerError for what a worker raised, InterruptedRunError.
    """
    began = time.perf_counter()
    collection = collector_config(config)
    with contextlib.ExitStack() as stack:
        launcher = stack.enter_context(contextlib.closing(new_launcher(collection)))
        spec = env_spec(launcher, collection.env)
        learner = Learner(config, spec, start.masks)
        learner.start_from(start.snapshot or learner.snapshot())
        if start.replay is not None:
            learner.set_replay(start.replay, "the anchor's replay")
        evaluator = Evaluator(
            collection.env,
            config.sac.hidden,
            config.evaluation,
            config.seed,
            spec.max_episode_steps,
            launcher,
        )
        stack.callback(evaluator.close)
        checkpoints = stack.enter_context(contextlib.closing(Checkpoints(folder.path)))
        run = Run(folder, config, start, learner, evaluator, checkpoints, progress, began)
        state = run.restore() if resume and checkpoints.latest() is not None else None
        run.collector = stack.enter_context(run.start_collector(collection, launcher, state))
        run.metrics = stack.enter_context(
            contextlib.closing(MetricsWriter(folder.path, learner.env_steps if state is not None else None))
        )
        with _stop_on_signal(run):
            return run.to_the_end()


@contextlib.contextmanager
def _stop_on_signal(run: Run) -> Iterator[None]:
    """SIGINT and SIGTERM end the run at its next checkpoint; a second one ends it at once."""

    def stop(signum: int, _: object) -> None:
        if run.stop_signal is not None:
            raise KeyboardInterrupt
        run.stop_signal = signum

    earlier = {each: signal.signal(each, stop) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in earlier.items():
            signal.signal(each, handler)


class Run:
    """One run on its way; ``train`` builds it."""

    collector: Collector
    metrics: MetricsWriter

    def __init__(
        self,
        folder: RunFolder,
        config: TrainConfig,
        start: Start,
        learner: Learner,
        evaluator: Evaluator,
        checkpoints: Checkpoints,
        progress: Progress,
        began: float,
    ) -> None:
        self.folder, self.config, self.learner = folder, config, learner
        self.evaluator, self.checkpoints, self.progress = evaluator, checkpoints, progress
        self.stop_signal: int | None = None
        self._keep = start.keep
        self._random_actions = start.random_actions
        self._began = began  # moved back on resume by what the run took before
        self._first_step = learner.env_steps
        self._pending: tuple[Snapshot, float] | None = None
        self._best: tuple[float, ...] | None = None
        self._in_a_row = 0
        self._reached: dict[str, dict[str, float]] = {}
        self._last_evaluation: dict[str, Any] = {}
        self._returns: deque[float] = deque(maxlen=_RECENT)
        self._successes: deque[float] = deque(maxlen=_RECENT)
        self._blocks = 0
        self._next_evaluation = learner.env_steps
        self._anchored = learner.env_steps >= config.anchor_steps
        self._logged = (began, learner.env_steps, learner.updates)
        self._checkpointed = began

    # Start and resume.

    def start_collector(
        self, config: CollectorConfig, launcher: Launcher, state: Mapping[str, np.ndarray] | None
    ) -> Collector:
        """The collector, acting at random first if weights are fresh."""
        if state is not None:
            collector = Collector(config, launcher, state=state)
            if not config.lockstep:
                collector.publish(self._collecting_weights())
            return collector
        if "initial" in self._keep:
            self._save("initial", self.learner.snapshot())
        return Collector(config, launcher, parameters=self._collecting_weights())

    def _collecting_weights(self) -> dict[str, np.ndarray]:
        if self._random_actions and not self.learner.updates:
            return self.learner.random_actor()
        return as_numpy(self.learner.acting)

    def restore(self) -> dict[str, np.ndarray]:
        """Go on from the newest checkpoint; returns the collector's state."""
        arrays, meta = self.checkpoints.load()
        where = f"checkpoint {self.checkpoints.latest()} of {str(self.folder.path)!r}"
        self.learner.set_state(arrays, where)
        self.evaluator.set_state(_part(arrays, "evaluator/"))
        self._first_step = meta["first_step"]
        self._best = tuple(meta["best"]) if meta["best"] is not None else None
        self._in_a_row, self._reached = meta["in_a_row"], meta["reached"]
        self._last_evaluation = meta["last_evaluation"]
        self._returns.extend(meta["returns"])
        self._successes.extend(meta["successes"])
        self._next_evaluation, self._anchored = meta["next_evaluation"], meta["anchored"]
        self._began -= meta["wall_seconds"]
        self._logged = (time.perf_counter(), self.learner.env_steps, self.learner.updates)
        return _part(arrays, "collector/")

    def _checkpoint(self) -> None:
        self._finish_evaluation()
        arrays = {
            **self.learner.get_state(),
            **{f"collector/{k}": v for k, v in self.collector.get_state().items()},
            **{f"evaluator/{k}": v for k, v in self.evaluator.get_state().items()},
        }
        meta = {
            "first_step": self._first_step,
            "best": self._best,
            "in_a_row": self._in_a_row,
            "reached": self._reached,
            "last_evaluation": self._last_evaluation,
            "returns": list(self._returns),
            "successes": list(self._successes),
            "next_evaluation": self._next_evaluation,
            "anchored": self._anchored,
            "wall_seconds": self._wall(),
        }
        self.checkpoints.save(self.learner.env_steps, arrays, meta)
        self._checkpointed = time.perf_counter()

    # The loop.

    def to_the_end(self) -> dict[str, Any]:
        """Everything from the first block to the summary."""
        learner, config = self.learner, self.config
        self._milestones()
        while learner.env_steps < config.env_steps and not self._stopped_early():
            self._step(self.collector.take())
            if self._between_rounds():
                self._milestones()
                if self.stop_signal is not None:
                    self._checkpoint()
                    raise InterruptedRunError(self.stop_signal)
        if remainder := learner.due():
            self._update(remainder)
        return self._finish()

    def _step(self, block: Block) -> None:
        self.learner.learn_from(block)
        self._blocks += 1
        self._returns.extend(block.episodes.episode_return.tolist())
        self._successes.extend(block.episodes.success_any.tolist())
        while self.learner.due() >= self.config.updates_per_dispatch:
            self._update(self.config.updates_per_dispatch)

    def _update(self, count: int) -> None:
        before = self.learner.acting
        self.learner.update(count)
        # Weights of the dispatch before are there already, or soon: the device is never left without work,
        # and at most two dispatches are on their way. In lockstep the newest ones are waited for.
        ready = self.learner.acting if self.config.collect.lockstep else before
        self.collector.publish(as_numpy(ready))

    def _between_rounds(self) -> bool:
        """Whether this is a point at which everything can be saved: any, or in lockstep a round's end."""
        if not self.config.collect.lockstep:
            return True
        collection = self.collector.config
        return self._blocks % (len(collection.groups) * collection.num_env_workers) == 0

    def _milestones(self) -> None:
        learner = self.learner
        if not self._anchored and learner.env_steps >= self.config.anchor_steps:
            self._anchored = True
            if "anchor" in self._keep:
                self._save("anchor", learner.snapshot())
                self._save_arrays("anchor-replay", learner.get_state(), "replay/")
        self._receive_evaluation(0)
        # The end has an evaluation of its own, after the last update.
        if self._next_evaluation <= learner.env_steps < self.config.env_steps:
            self._finish_evaluation()
            self._start_evaluation()
        now = time.perf_counter()
        if now - self._logged[0] >= _LOG_SECONDS:
            self._log(now)
        if now - self._checkpointed >= _CHECKPOINT_SECONDS:
            self._checkpoint()

    # Evaluation.

    def _start_evaluation(self) -> None:
        while self._next_evaluation <= self.learner.env_steps:
            self._next_evaluation += self.config.evaluation.every
        self.learner.check_masks()
        self._pending = self.learner.snapshot(), self._wall()
        self.evaluator.start(as_numpy(self.learner.acting))
        if self.config.collect.lockstep:
            self._finish_evaluation()

    def _finish_evaluation(self) -> None:
        while self._pending is not None:
            self._receive_evaluation(1.0)

    def _receive_evaluation(self, timeout: float) -> None:
        if self._pending is None or (evaluation := self.evaluator.receive(timeout)) is None:
            return
        snapshot, wall = self._pending
        self._pending = None
        self._judge(evaluation, snapshot, wall)

    def _judge(self, evaluation: Evaluation, snapshot: Snapshot, wall: float) -> None:
        row = {"env_steps": snapshot.env_steps, "updates": snapshot.updates, "wall_seconds": wall}
        row |= evaluation.row() | {"density": self._densities()}
        self._last_evaluation = row
        self.metrics.write_evaluation(row)
        self.progress.evaluated(row)
        for name, threshold in _THRESHOLDS.items():
            if row[name] >= threshold and name not in self._reached:
                self._reached[name] = {"at": threshold, "env_steps": snapshot.env_steps, "wall_seconds": wall}
        merit = (row["success_any"], row["success_last"], row["return_mean"])
        if self._best is None or merit > self._best:
            self._best = merit
            if "best" in self._keep:
                self._save("best", snapshot)
        enough = self.config.stop_success is not None and row["success_any"] >= self.config.stop_success
        self._in_a_row = self._in_a_row + 1 if enough else 0

    def _stopped_early(self) -> bool:
        return self.config.stop_success is not None and self._in_a_row >= self.config.stop_patience

    # Records.

    def _densities(self) -> dict[str, float]:
        masks = self.learner.masks
        return {name: 1 - mask_functions.sparsity(masks[name]) for name in ("actor", "critic")}

    def _wall(self) -> float:
        return time.perf_counter() - self._began

    def _log(self, now: float) -> None:
        then, steps, updates = self._logged
        learner = self.learner
        self._logged = (now, learner.env_steps, learner.updates)
        learned = max(1, learner.env_steps - self.config.start_steps)
        row = {
            "env_steps": learner.env_steps,
            "updates": learner.updates,
            "wall_seconds": self._wall(),
            "env_steps_per_second": (learner.env_steps - steps) / (now - then),
            "updates_per_second": (learner.updates - updates) / (now - then),
            "updates_per_step": learner.updates / learned,
            "return_mean": float(np.mean(self._returns)) if self._returns else None,
            "success_any": float(np.mean(self._successes)) if self._successes else None,
            **{name: float(value) for name, value in learner.metrics.items()},
        }
        self.metrics.write_metrics(row)
        self.progress.trained(row)

    def _save(self, name: str, snapshot: Snapshot) -> None:
        meta = {"env_steps": snapshot.env_steps, "updates": snapshot.updates}
        arrays = to_arrays(snapshot)
        artifacts.save(self.folder.path, name, arrays, meta, config_hash=self.folder.config_hash)

    def _save_arrays(self, name: str, arrays: Mapping[str, Any], prefix: str) -> None:
        chosen = {key: value for key, value in arrays.items() if key.startswith(prefix)}
        artifacts.save(self.folder.path, name, chosen, config_hash=self.folder.config_hash)

    def _finish(self) -> dict[str, Any]:
        learner = self.learner
        self._finish_evaluation()
        trained = self._wall()
        if self._last_evaluation.get("updates") != learner.updates:
            learner.check_masks()
            self._pending = learner.snapshot(), self._wall()
            self.evaluator.start(as_numpy(learner.acting))
            self._finish_evaluation()
        self._log(time.perf_counter())
        self._save("final", learner.snapshot())
        if "saliency" in self._keep:
            self._save_arrays("saliency", learner.samples(SALIENCY_BATCHES), "")
        row, stats = self._last_evaluation, self.collector.stats()
        learned = max(1, learner.env_steps - self.config.start_steps)
        summary = {
            **{k: row[k] for k in ("success_any", "success_last", "success_first_step", "return_mean")},
            "best": dict(zip(("success_any", "success_last", "return_mean"), self._best, strict=True)),
            "reached": self._reached,
            "env": self.config.env,
            "seed": self.config.seed,
            "env_steps": learner.env_steps,
            "updates": learner.updates,
            "updates_per_step": learner.updates / learned,
            "transitions_stored": learner.replay.added,
            "wall_seconds": self._wall(),
            "training_seconds": trained,
            "stopped_early": self._stopped_early(),
            "density": self._densities(),
            "kept_weights": {
                name: mask_functions.counts(learner.masks[name])[0] for name in ("actor", "critic")
            },
            "collector": stats.shares() | {"env_worker_deaths": stats.env_worker_deaths},
        }
        self.folder.write_summary(summary)
        return summary


def _part(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
