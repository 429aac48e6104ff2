"""The training loop: collect, store, update at the ratio asked for, evaluate, keep.

Asynchronous by default: env workers collect, the device updates and an evaluator tests at the same time,
and this process only moves blocks and weights. In lockstep each waits for the others at defined points.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from fastcollect.control.collector import Collector, new_launcher
from fastcollect.control.config import CollectorConfig
from fastcollect.control.launcher import Launcher
from fastcollect.control.probe import env_spec
from fastcollect.envs.registry import EnvConfig
from fastcollect.memory.block import Block
from fastcollect.policies import mlp_policy
from fastcollect.support.command import parse_kwargs
from trainers.config.training import TrainConfig
from trainers.run.evaluation import Evaluation, Evaluator
from trainers.run.learner import Learner, as_numpy
from trainers.run.metrics import MetricsWriter
from trainers.run.progress import Progress
from trainers.run.record import Record
from trainers.run.snapshots import Snapshot, Start, to_arrays
from trainers.store import artifacts
from trainers.store.checkpoints import Checkpoints
from trainers.store.folder import RunFolder

SALIENCY_BATCHES = 100
_LOG_SECONDS = 2.0
_CHECKPOINT_SECONDS = 120.0
_NICENESS = 15


class InterruptedRunError(Exception):
    """The user asked the run to stop; its checkpoint is written. signum: by which signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


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
        tokens=collect.tokens,
    )


def yielding_launcher(config: CollectorConfig) -> Launcher:
    """A launcher whose workers make way for this process.

    The threads of an update wait for each other: a worker in the place of one of them holds up all. While
    the learner has nothing to do, the workers run as fast as ever.
    """
    launcher = new_launcher(config)
    own = os.getpriority(os.PRIO_PROCESS, 0)
    os.setpriority(os.PRIO_PROCESS, launcher.pid, min(own + _NICENESS, 19))
    return launcher


def train(
    folder: RunFolder, config: TrainConfig, start: Start, progress: Progress, *, resume: bool = False
) -> dict[str, Any]:
    """Run to the end of the budget; returns the summary, which is written too.

    Raises ConfigError for what the user can mend, WorkerError for what a worker raised, InterruptedRunError.
    """
    began = time.perf_counter()
    collection = collector_config(config)
    with contextlib.ExitStack() as stack:
        launcher = stack.enter_context(contextlib.closing(yielding_launcher(collection)))
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
            summary = run.to_the_end()
    if run.stop_signal is not None:  # too late for this run, and not for those that may follow it
        raise InterruptedRunError(run.stop_signal)
    return summary


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
        self.record = Record(config, learner, began)
        self._pending: tuple[Snapshot, float] | None = None
        self._blocks = 0
        self._next_evaluation = learner.env_steps
        self._anchored = learner.env_steps >= config.anchor_steps
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
        self.record.set_state(meta["record"])
        self._next_evaluation, self._anchored = meta["next_evaluation"], meta["anchored"]
        return _part(arrays, "collector/")

    def _checkpoint(self) -> None:
        self._finish_evaluation()
        # Without lockstep episodes are not repeated, so that environments need not be able to save theirs.
        evaluator = self.evaluator.get_state() if self.config.collect.lockstep else {}
        arrays = {
            **self.learner.get_state(),
            **{f"collector/{k}": v for k, v in self.collector.get_state().items()},
            **{f"evaluator/{k}": v for k, v in evaluator.items()},
        }
        meta = {
            "record": self.record.get_state(),
            "next_evaluation": self._next_evaluation,
            "anchored": self._anchored,
        }
        self.checkpoints.save(self.learner.env_steps, arrays, meta)
        self._checkpointed = time.perf_counter()

    # The loop.

    def to_the_end(self) -> dict[str, Any]:
        """Everything from the first block to the summary."""
        learner, config = self.learner, self.config
        self._milestones()
        while learner.env_steps < config.env_steps and not self.record.stopped_early:
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
        self.record.took(block)
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
        if self.record.since_logged() >= _LOG_SECONDS:
            self._log()
        # Before the first block there is nothing to save, and in lockstep no state.
        if self._blocks and time.perf_counter() - self._checkpointed >= _CHECKPOINT_SECONDS:
            self._checkpoint()

    # Evaluation.

    def _start_evaluation(self) -> None:
        while self._next_evaluation <= self.learner.env_steps:
            self._next_evaluation += self.config.evaluation.every
        self.learner.check_masks()
        self._pending = self.learner.snapshot(), self.record.wall()
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
        row |= evaluation.row() | {"density": self.record.densities()}
        self.metrics.write_evaluation(row)
        self.progress.evaluated(row)
        if self.record.judge(row) and "best" in self._keep:
            self._save("best", snapshot)

    # Records.

    def _log(self) -> None:
        row = self.record.training_row()
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
        trained = self.record.wall()
        if self.record.last_evaluation.get("updates") != learner.updates:
            learner.check_masks()
            self._pending = learner.snapshot(), self.record.wall()
            self.evaluator.start(as_numpy(learner.acting))
            self._finish_evaluation()
        self._log()
        self._save("final", learner.snapshot())
        if "saliency" in self._keep:
            self._save_arrays("saliency", learner.samples(SALIENCY_BATCHES), "")
        summary = self.record.summary(self.collector.stats(), trained)
        self.folder.write_summary(summary)
        return summary


def _part(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
