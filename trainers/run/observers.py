"""What else looks on while a run goes on: artifacts, evaluations, checkpoints."""

import signal
import time
from functools import partial

from engine.algorithms.base import AgentState, copied, densities
from trainers.run.evaluation import Evaluator, evaluation_row
from trainers.run.learner import Learner, as_numpy
from trainers.run.record import Record
from trainers.run.session import Observer, Session
from trainers.store import artifacts
from trainers.store.checkpoints import Checkpoints
from trainers.store.folder import RunFolder
from trainers.store.layout import to_arrays

SALIENCY_BATCHES = 100
_CHECKPOINT_SECONDS = 120.0


class InterruptedRunError(Exception):
    """The user asked the run to stop; its checkpoint is written. signum: by which signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


class Artifacts(Observer):
    """Keeps the states that other runs begin from. keep: which, see Start. learner: as the run begins."""

    def __init__(self, folder: RunFolder, keep: tuple[str, ...], learner: Learner) -> None:
        self._keep = {*keep, "final"}
        self._save = partial(artifacts.save, folder.path, config_hash=folder.config_hash)
        self._anchored = "anchor" not in keep or learner.env_steps >= learner.config.anchor_steps

    def between(self, session: Session) -> None:
        """Keep the anchor, with the replay it has."""
        learner = session.learner
        if self._anchored or learner.env_steps < learner.config.anchor_steps:
            return
        self._anchored = True
        self.save("anchor", learner.state)
        replay = learner.replay.get_state()
        self._save("anchor-replay", {f"replay/{name}": value for name, value in replay.items()})

    def end(self, session: Session) -> None:
        """Keep the final state, and batches to measure saliency on."""
        self.save("final", session.learner.state)
        if "saliency" in self._keep:
            self._save("saliency", session.learner.samples(SALIENCY_BATCHES))

    def save(self, name: str, state: AgentState) -> None:
        """Keep a state under this name, if it is one of those to keep."""
        if name in self._keep:
            meta = {"env_steps": int(state.env_steps), "updates": int(state.updates)}
            self._save(name, to_arrays(state), meta)


class Evaluations(Observer):
    """Tests the deterministic policy every so many steps, beside training or in its pauses (in rounds).

    next: the environment step from which on the next evaluation is due.
    """

    def __init__(self, evaluator: Evaluator, record: Record, kept: Artifacts, next: int) -> None:
        self.evaluator, self.next, self._record, self._kept = evaluator, next, record, kept
        self._pending: tuple[AgentState, float] | None = None

    def between(self, session: Session) -> None:
        """Receive an evaluation that is ready; begin one that is due."""
        self.receive(session, 0)
        # The end has an evaluation of its own, after the last update.
        config, env_steps = session.learner.config, session.learner.env_steps
        if self.next <= env_steps < config.env_steps:
            self.receive(session)
            while self.next <= env_steps:
                self.next += config.evaluation.every
            self._start(session)

    def end(self, session: Session) -> None:
        """Wait for the last evaluations; one of the final state is among them."""
        self.receive(session)
        self._record.training_seconds = self._record.wall()
        if self._record.last_evaluation.get("updates") != session.learner.updates:
            self._start(session)
            self.receive(session)

    def _start(self, session: Session) -> None:
        learner = session.learner
        learner.check_masks()
        self._pending = copied(learner.state), self._record.wall()
        self.evaluator.start(as_numpy(learner.evaluated()))
        if session.source.config.rounds:
            self.receive(session)

    def receive(self, session: Session, timeout: float | None = None) -> None:
        """Take the result of the evaluation under way, if there is one, and if it is ready in time."""
        if self._pending is None or (found := self.evaluator.receive(timeout)) is None:
            return
        (state, wall), self._pending = self._pending, None
        row = {"env_steps": int(state.env_steps), "updates": int(state.updates), "wall_seconds": wall}
        if self._record.evaluated(row | evaluation_row(found) | {"density": densities(state)}):
            self._kept.save("best", state)
        session.ended = self._record.stopped_early


class CheckpointWriter(Observer):
    """Saves everything that the run's continuation depends on, now and then and when it is told to stop."""

    def __init__(self, checkpoints: Checkpoints, evaluations: Evaluations, record: Record) -> None:
        self._checkpoints, self._evaluations, self._record = checkpoints, evaluations, record
        self._saved = time.perf_counter()

    def between(self, session: Session) -> None:
        """Save if it is time; raises InterruptedRunError after saving if the session was told to stop."""
        waiting = session.signum is None and time.perf_counter() - self._saved < _CHECKPOINT_SECONDS
        # Before the first block there is nothing to save, and of a reproducible run no state.
        if waiting or not session.blocks:
            return
        self._evaluations.receive(session)
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
        if session.signum is not None:
            raise InterruptedRunError(session.signum)
