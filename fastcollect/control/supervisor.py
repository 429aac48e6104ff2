"""Watches the workers of one collector and replaces those that die.

Single-threaded: everything happens inside ``start``, ``poll`` and ``save``. An env worker that is killed
is replaced by a new one, with a new number and a new ring, for the same environments; what it had published
stays readable, even if the token that would have told died with it; what it had not finished is counted as
discarded. In rounds its groups that published their block of the round wait for the next one, like everybody
else's. A model worker that is killed is replaced, and the requests it may have swallowed are sent again. A
worker that raises ends the run with its traceback.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from fastcollect.control.crew import Workers
from fastcollect.control.handles import Deaths, EnvWorkerHandle, ModelWorkerHandle
from fastcollect.control.launcher import Exit, Process
from fastcollect.envs.base import State
from fastcollect.memory.tokens import Kind, Token
from fastcollect.support.errors import CONFIG_EXIT_CODE, ConfigError, StallError, WorkerError
from fastcollect.workers.group_state import REFUSAL, read_arrays

_LIVES_IN_VAIN = 3


class Supervisor:
    """See the module's text."""

    def __init__(self, workers: Workers) -> None:
        self.deaths = Deaths()
        self._workers, self._config = workers, workers.config
        self._backlog: list[Token] = []
        self._inbox = workers.exchange.inbox(workers.launcher.fd)

    def start(self, state: Mapping[str, np.ndarray] | None = None) -> None:
        """Start every worker and wait until all of them have built what they need.

        state: of the groups, where they go on.
        """
        workers = self._workers
        workers.resize(self._config.num_env_workers, self._config.num_model_workers, state)
        self._await(
            lambda: (
                all(w.ready for w in workers.env.values()) and all(w.ready for w in workers.model.values())
            )
        )

    def save(self) -> State:
        """The state of all groups, from workers that have published every block they can.

        Raises ConfigError where an environment has no state, and as ``poll`` and ``check_stalls`` do.
        """
        asked = self._workers.in_order()
        for worker in asked:
            worker.saving = True
            worker.tell(Kind.SAVE)
        self._await(lambda: not any(worker.saving for worker in asked))
        state: State = {}
        for worker in asked:
            state |= read_arrays(worker.state_fd)
        if REFUSAL in state:
            raise ConfigError([str(state[REFUSAL])])
        return state

    def _await(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + self._config.stall_seconds
        while not done():
            self._backlog += self._poll(0.5)
            if time.monotonic() > deadline:
                raise self._stalled()

    def poll(self, seconds: float | None) -> list[Token]:
        """Wait for tokens or deaths; returns the PUBLISHED tokens. Raises WorkerError, LauncherLostError."""
        tokens = self._backlog + self._poll(0 if self._backlog else seconds)
        self._backlog = []
        return tokens

    def _poll(self, seconds: float | None) -> list[Token]:
        self._inbox.wait(seconds)
        exits = self._workers.launcher.collect(self._workers.idents())
        # Read after the exits: what a dead worker told is in the inbox already.
        published = list(self._published(self._inbox.read()))
        for event in exits:
            published += self._on_exit(event)
        return published

    def _published(self, tokens: Iterable[Token]) -> Iterator[Token]:
        ring = self._workers.ring_config
        for token in tokens:
            kind, ident, group, number = token
            if kind == Kind.READY:
                self._on_ready(ident)
            elif kind == Kind.SAVED:
                self._workers.env[ident].saving = False
            elif kind == Kind.PUBLISHED:
                worker = self._workers.env[ident]
                worker.held[group] += 1
                worker.written[group] = number + 1
                worker.last_seen = time.monotonic()
                worker.rows += ring.envs[group] * ring.length
                self.deaths.without_block[worker.position] = 0
                yield token

    def _on_ready(self, ident: int) -> None:
        models = self._workers.model
        if ident >= 0:
            self._workers.env[ident].ready = True
            self._workers.env[ident].last_seen = time.monotonic()
            return
        # A model worker signs with -1 - index; one that was told to leave meanwhile is not there.
        if model := models.get(-1 - ident):
            model.ready = True
        if all(model.ready for model in models.values()):
            self._workers.assign_models(len(models))

    def _on_exit(self, event: Exit) -> list[Token]:
        """What the worker had published and could not tell."""
        workers = self._workers
        if event.ident in workers.leaving:
            self._on_model_left(workers.leaving.pop(event.ident), event.code)
        elif event.ident in workers.env:
            return self._on_env_worker_exit(workers.env[event.ident], event.code)
        else:
            for model in workers.model.values():
                if model.process.ident == event.ident:
                    self._on_model_worker_exit(model, event.code)
                    break
        return []

    def _on_env_worker_exit(self, worker: EnvWorkerHandle, code: int) -> list[Token]:
        worker.alive = False
        self._workers.detach(worker)
        if worker.retiring and code == 0:
            return []
        last_env = worker.first_env + self._config.num_envs - 1
        name = f"env worker {worker.process.ident} (environments {worker.first_env} to {last_env})"
        _raise_last_words(worker.process, code, name)
        if self._config.reproducible:
            raise WorkerError(
                f"env worker {worker.process.ident} died of {_how(code)}; a replacement would not repeat its "
                "steps, so a reproducible run ends here"
            )
        untold = list(self._published(worker.untold()))
        position = worker.position
        self.deaths.discarded += int(worker.ring.rows.sum()) - worker.rows
        self.deaths.env_workers += 1
        self.deaths.without_block[position] = self.deaths.without_block.get(position, 0) + 1
        if self.deaths.without_block[position] >= _LIVES_IN_VAIN:
            raise WorkerError(
                f"{name} and its replacements died {_LIVES_IN_VAIN} times in a row without finishing a "
                f"block, the last one of {_how(code)}; is the memory sufficient?"
            )
        if position < self._workers.num_env_workers and not worker.retiring:
            done = [g for g, held in enumerate(worker.held) if held] if self._config.rounds else []
            self._workers.start_env_worker(position, waiting=done)
        return untold

    def _on_model_worker_exit(self, model: ModelWorkerHandle, code: int) -> None:
        _raise_last_words(model.process, code, f"model worker {model.index}")
        self.deaths.model_workers += 1
        idle = 0 if model.counts[0] else self.deaths.without_batch.get(model.index, 0) + 1
        self.deaths.without_batch[model.index] = idle
        if idle >= _LIVES_IN_VAIN:
            raise WorkerError(
                f"model worker {model.index} died {idle} times in a row before it inferred one batch, "
                f"the last time of {_how(code)}"
            )
        del self._workers.model[model.index]
        self._workers.forget_model_worker(model)
        self._workers.start_model_worker(model.index)
        self._workers.resend(model.index)

    def _on_model_left(self, model: ModelWorkerHandle, code: int) -> None:
        """A request that reached its pipe after its last look is sent again, to the one now assigned."""
        _raise_last_words(model.process, code, f"model worker {model.index}")
        self._workers.forget_model_worker(model)
        self._workers.resend(model.index)

    def check_stalls(self) -> None:
        """Raises StallError if a worker that could go on has not made one step for ``stall_seconds``."""
        latest = time.monotonic() - self._config.stall_seconds
        for worker in self._workers.env.values():
            worker.look()
            if worker.alive and worker.last_seen < latest and not worker.blocked:
                raise self._stalled()

    def _stalled(self) -> StallError:
        """The error for a run in which a worker stands still: every worker's stack."""
        processes = self._workers.processes()
        for process in processes.values():
            self._workers.launcher.kill(process.ident, signal.SIGUSR1)
        time.sleep(0.5)  # they write their stacks
        stacks = "\n\n".join(f"{name}:\n{p.last_words()}" for name, p in processes.items())
        return StallError(f"a worker stood still for {self._config.stall_seconds:g} s\n\n{stacks}")


def _raise_last_words(process: Process, code: int, name: str) -> None:
    """What a worker that ended by itself, not by a signal, left as its reason."""
    words = process.last_words()
    if code == CONFIG_EXIT_CODE and words:
        raise ConfigError([words])
    if code > 0:
        raise WorkerError(words or f"{name} ended with exit code {code} and said nothing")


def _how(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
