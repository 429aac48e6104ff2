"""Starts the workers of one collector, watches them and replaces those that die."""

import signal
import time
from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np

from fastcollect.control.crew import EnvWorkerHandle, ModelWorkerHandle, PublishedBlock, Workers
from fastcollect.control.stats import Stats
from fastcollect.envs.base import State
from fastcollect.memory.tokens import Kind, Token
from fastcollect.support.errors import StallError, WorkerError
from fastcollect.workers.groups import read_arrays

_LIVES_IN_VAIN = 3


class Supervisor:
    """Starts all workers, waits until they are ready, then watches them whenever it is called.

    An env worker that is killed is replaced by one with a new number and a new ring, for the same
    environments. What it had published stays readable, even if the token that would have told died with it;
    what it had not finished is counted as discarded. In rounds, groups whose block of the round was published
    wait for the next one. A model worker that is killed is replaced, and requests that it may have swallowed
    are sent again. A worker that raises ends the run.

    state: of the groups, where they go on. deaths: how many workers were replaced, what steps were lost.
    """

    def __init__(self, workers: Workers, state: Mapping[str, np.ndarray] | None) -> None:
        self.deaths = Stats()
        self._workers, self._config = workers, workers.config
        # Lives in a row without a block or a batch: env workers by -1 - position, model workers by index.
        self._in_vain: Counter[int] = Counter()
        self._backlog: list[PublishedBlock] = []
        self._inbox = workers.exchange.inbox(workers.launcher.fd)
        workers.resize(self._config.num_env_workers, self._config.num_model_workers, state)
        self._await_ready()

    def save(self) -> State:
        """The state of all groups between two rounds. Raises ConfigError where an environment has none."""
        asked = self._workers.in_order()
        for worker in asked:
            worker.ready = False
            worker.tell(Kind.SAVE)
        self._await_ready()
        state: State = {}
        for worker in asked:
            state |= read_arrays(worker.state_fd)
        return state

    def _await_ready(self) -> None:
        deadline = time.monotonic() + self._config.stall_seconds
        while not all(worker.ready for worker in self._workers.living()):
            if time.monotonic() > deadline:
                raise self._stalled()
            self._backlog += self._poll(0.5)

    def poll(self, seconds: float | None) -> list[PublishedBlock]:
        """Wait for tokens or deaths; returns the blocks that were published since.

        Raises ConfigError or WorkerError when a worker raised, StallError, LauncherLostError.
        """
        workers = self._workers
        self._backlog += self._poll(0 if self._backlog else seconds)
        since = time.monotonic() - self._config.stall_seconds
        for worker in list(workers.env.values()):
            if worker.stands_still(since) and not workers.paused:
                raise self._stalled()
            if not worker.alive and not worker.unread:
                workers.forget(worker)
        blocks, self._backlog = self._backlog, []
        return blocks

    def _poll(self, seconds: float | None) -> list[PublishedBlock]:
        workers = self._workers
        self._inbox.wait(seconds)
        exits = workers.launcher.collect(workers)
        # Read after the exits: what a dead worker told is in the inbox already.
        blocks = self._published(self._inbox.read())
        for ident, code in exits:
            if ident in workers.env:
                blocks += self._on_env_worker_exit(workers.env[ident], code)
            else:
                self._on_model_worker_exit(workers.models[ident], code)
        return blocks

    def _published(self, tokens: Iterable[Token]) -> list[PublishedBlock]:
        blocks = []
        for kind, ident, group, number in tokens:
            if kind == Kind.PUBLISHED:
                worker = self._workers.env[ident]
                worker.held[group] += 1
                worker.written[group] = number + 1
                worker.unread += 1
                worker.last_seen = time.monotonic()
                self._in_vain[-1 - worker.position] = 0
                blocks.append((worker, group, number))
            elif kind in (Kind.READY, Kind.SAVED):
                self._on_ready(ident)
        return blocks

    def _on_ready(self, ident: int) -> None:
        workers = self._workers
        if each := workers.env.get(ident) or workers.models.get(ident):
            each.ready, each.last_seen = True, time.monotonic()
        if all(model.ready for model in workers.models_in_use()):
            workers.assign_models(workers.num_model_workers)

    def _on_env_worker_exit(self, worker: EnvWorkerHandle, code: int) -> list[PublishedBlock]:
        """What the worker had published and could not tell."""
        workers, position, published = self._workers, worker.position, worker.ring.published.tolist()
        worker.alive = False
        for model in workers.models.values():
            model.tell("detach", worker.process.ident)
        if worker.retiring and code == 0:
            return []
        first_env = worker.config.first_env
        name = f"{worker.name} (environments {first_env} to {first_env + self._config.num_envs - 1})"
        worker.process.raise_last_words(code, name)
        if self._config.reproducible:
            text = "a replacement would not repeat its steps, so a reproducible run ends here"
            raise WorkerError(f"{worker.name} died of {_how(code)}; {text}")
        untold = self._published(
            (Kind.PUBLISHED, worker.process.ident, group, number)
            for group, end in enumerate(published)
            for number in range(worker.written[group], end)
        )
        rows = sum(np.multiply(published, workers.ring_config.envs)) * workers.ring_config.length
        self.deaths += Stats(env_worker_deaths=1, discarded=int(worker.ring.rows.sum() - rows))
        self._died_in_vain(-1 - position, f"{name} and its replacements", "finished a block", code)
        if position < workers.num_env_workers and not worker.retiring:
            done = [g for g, held in enumerate(worker.held) if held] if self._config.rounds else []
            workers.start_env_worker(position, waiting=done)
        return untold

    def _on_model_worker_exit(self, model: ModelWorkerHandle, code: int) -> None:
        model.process.raise_last_words(code, model.name)
        self._workers.forget(model)
        if not model.leaving:
            self.deaths += Stats(model_worker_deaths=1)
            if model.counters().batches:
                self._in_vain[model.index] = 0
            else:
                self._died_in_vain(model.index, model.name, "inferred a batch", code)
            self._workers.start_model_worker(model.index)
        # What it was asked and did not answer, even after its last look, is asked of whoever is assigned now.
        for worker in self._workers.in_order():
            worker.tell(Kind.RESEND, sequence=model.index)

    def _died_in_vain(self, who: int, name: str, aim: str, code: int) -> None:
        self._in_vain[who] += 1
        if self._in_vain[who] >= _LIVES_IN_VAIN:
            times = f"{_LIVES_IN_VAIN} times in a row before it {aim}, the last time of {_how(code)}"
            raise WorkerError(f"{name} died {times}; is the memory sufficient?")

    def _stalled(self) -> StallError:
        """The error for a run in which a worker stands still: every worker's stack."""
        workers = self._workers.living()
        for worker in workers:
            self._workers.launcher.kill(worker.process.ident, signal.SIGUSR1)
        time.sleep(0.5)  # they write their stacks
        stacks = "\n\n".join(f"{worker.name}:\n{worker.process.last_words()}" for worker in workers)
        return StallError(f"a worker stood still for {self._config.stall_seconds:g} s\n\n{stacks}")


def _how(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
