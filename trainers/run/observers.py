"""What looks on while a run goes on: artifacts, evaluations, measurements, checkpoints."""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping

import numpy as np

from engine.algorithms.base import AgentState, copied, densities
from fastcollect.memory.block import Block
from trainers.config.training import EvaluationConfig
from trainers.run.evaluation import Evaluation, Evaluator
from trainers.run.learner import as_numpy
from trainers.run.metrics import MetricsWriter
from trainers.run.progress import Progress
from trainers.run.record import Record
from trainers.run.session import Observer, Session
from trainers.store import artifacts
from trainers.store.checkpoints import Checkpoints
from trainers.store.folder import RunFolder
from trainers.store.states import to_arrays

SALIENCY_BATCHES = 100
_LOG_SECONDS = 2.0
_CHECKPOINT_SECONDS = 120.0


class InterruptedRunError(Exception):
    """The user asked the run to stop; its checkpoint is written. signum: by which signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


class Artifacts(Observer):
    """Keeps the states that others begin from. keep: see Start; resumed: the beginning was kept before."""

    def __init__(self, folder: RunFolder, anchor_steps: int, keep: tuple[str, ...], *, resumed: bool) -> None:
        self._folder, self._anchor_steps, self._keep = folder, anchor_steps, keep
        self._resumed, self._anchored = resumed, False

    def begin(self, session: Session) -> None:
        """Keep the initial state."""
        self._anchored = session.learner.env_steps >= self._anchor_steps
        if "initial" in self._keep and not self._resumed:
            self.save("initial", session.learner.state)

    def between(self, session: Session) -> None:
        """Keep the anchor, with the replay it has."""
        learner = session.learner
        if self._anchored or learner.env_steps < self._anchor_steps:
            return
        self._anchored = True
        if "anchor" in self._keep:
            self.save("anchor", learner.state)
            replay = learner.replay.get_state()
            self._save_arrays("anchor-replay", {f"replay/{name}": value for name, value in replay.items()})

    def end(self, session: Session) -> None:
        """Keep the final state, and batches to measure saliency on."""
        self.save("final", session.learner.state)
        if "saliency" in self._keep:
            self._save_arrays("saliency", session.learner.samples(SALIENCY_BATCHES))

    def best(self, state: AgentState) -> None:
        """Keep what was evaluated better than all before."""
        if "best" in self._keep:
            self.save("best", state)

    def save(self, name: str, state: AgentState) -> None:
        """Keep a state under a name."""
        meta = {"env_steps": int(state.env_steps), "updates": int(state.updates)}
        artifacts.save(self._folder.path, name, to_arrays(state), meta, config_hash=self._folder.config_hash)

    def _save_arrays(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        artifacts.save(self._folder.path, name, arrays, config_hash=self._folder.config_hash)


class Evaluations(Observer):
    """Tests the deterministic policy every so many steps, beside training or in its pauses (in rounds)."""

    def __init__(
        self,
        config: EvaluationConfig,
        evaluator: Evaluator,
        record: Record,
        metrics: MetricsWriter,
        progress: Progress,
        kept: Artifacts,
    ) -> None:
        self._every, self.evaluator, self._record = config.every, evaluator, record
        self._metrics, self._progress, self._kept = metrics, progress, kept
        self._pending: tuple[AgentState, float] | None = None
        self.next: int | None = None

    def begin(self, session: Session) -> None:
        """The first evaluation is of what the run begins with, unless it goes on."""
        if self.next is None:
            self.next = session.learner.env_steps
        session.ended = self._record.stopped_early

    def between(self, session: Session) -> None:
        """Receive an evaluation that is ready; begin one that is due."""
        self._receive(session, 0)
        # The end has an evaluation of its own, after the last update.
        if self.next <= session.learner.env_steps < session.learner.config.env_steps:
            self.finish(session)
            while self.next <= session.learner.env_steps:
                self.next += self._every
            self._start(session)

    def end(self, session: Session) -> None:
        """Wait for the last evaluations; one of the final state is among them."""
        self.finish(session)
        self._record.trained()
        if self._record.last_evaluation.get("updates") != session.learner.updates:
            self._start(session)
            self.finish(session)

    def finish(self, session: Session) -> None:
        """Wait for the evaluation under way, if there is one."""
        while self._pending is not None:
            self._receive(session, 1.0)

    def _start(self, session: Session) -> None:
        learner = session.learner
        learner.check_masks()
        self._pending = copied(learner.state), self._record.wall()
        self.evaluator.start(as_numpy(learner.acting))
        if session.source.config.rounds:
            self.finish(session)

    def _receive(self, session: Session, timeout: float) -> None:
        if self._pending is None or (evaluation := self.evaluator.receive(timeout)) is None:
            return
        state, wall = self._pending
        self._pending = None
        self._judge(session, evaluation, state, wall)

    def _judge(self, session: Session, evaluation: Evaluation, state: AgentState, wall: float) -> None:
        row = {"env_steps": int(state.env_steps), "updates": int(state.updates), "wall_seconds": wall}
        row |= evaluation.row() | {"density": densities(state)}
        self._metrics.write_evaluation(row)
        self._progress.evaluated(row)
        if self._record.judge(row):
            self._kept.best(state)
        session.ended = self._record.stopped_early


class Measurements(Observer):
    """Writes and shows what training measures, every few seconds and at the end."""

    def __init__(self, record: Record, metrics: MetricsWriter, progress: Progress) -> None:
        self._record, self._metrics, self._progress = record, metrics, progress

    def took(self, session: Session, block: Block) -> None:
        """Remember the episodes that ended."""
        self._record.took(block)

    def between(self, session: Session) -> None:
        """Write a row if it is time."""
        if self._record.since_logged() >= _LOG_SECONDS:
            self._log(session)

    def end(self, session: Session) -> None:
        """Write the last row."""
        self._log(session)

    def _log(self, session: Session) -> None:
        row = self._record.training_row(session.learner, session.lag.read())
        self._metrics.write_metrics(row)
        self._progress.trained(row)


class CheckpointWriter(Observer):
    """Saves everything that the run's continuation depends on, now and then and when it is told to stop."""

    def __init__(self, checkpoints: Checkpoints, evaluations: Evaluations, record: Record) -> None:
        self._checkpoints, self._evaluations, self._record = checkpoints, evaluations, record
        self._saved = time.perf_counter()

    def between(self, session: Session) -> None:
        """Save if it is time; raises InterruptedRunError after saving if the session was told to stop."""
        # Before the first block there is nothing to save, and of a reproducible run no state.
        if not session.blocks:
            return
        if session.signum is not None:
            self._save(session)
            raise InterruptedRunError(session.signum)
        if time.perf_counter() - self._saved >= _CHECKPOINT_SECONDS:
            self._save(session)

    def _save(self, session: Session) -> None:
        self._evaluations.finish(session)
        # Episodes are repeated in reproducible runs only; elsewhere environments need not save theirs.
        evaluator = self._evaluations.evaluator.get_state() if session.source.config.reproducible else {}
        arrays = {
            **session.learner.get_state(),
            **{f"collector/{k}": v for k, v in session.source.get_state().items()},
            **{f"evaluator/{k}": v for k, v in evaluator.items()},
        }
        meta = {"record": self._record.get_state(), "next_evaluation": self._evaluations.next}
        self._checkpoints.save(session.learner.env_steps, arrays, meta)
        self._saved = time.perf_counter()
