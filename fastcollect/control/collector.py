"""The collector: blocks of transitions from many processes, through one small API."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Mapping
from typing import Self

import numpy as np

from fastcollect.control.config import (
    MAX_ENV_WORKERS,
    CollectorConfig,
    allow_descriptors,
    build_policy,
    check_memory,
    is_integer,
    resolve_env,
)
from fastcollect.control.crew import Workers
from fastcollect.control.handles import EnvWorkerHandle
from fastcollect.control.launcher import Launcher
from fastcollect.control.probe import env_spec
from fastcollect.control.schedule import Arrivals, Rounds
from fastcollect.control.state import between_rounds_only, check_fits, common_state, restore_board
from fastcollect.control.stats import Stats
from fastcollect.control.supervisor import Supervisor
from fastcollect.envs.base import State
from fastcollect.envs.registry import check_rows, preload_modules
from fastcollect.memory.block import Block, check_written, copy_block
from fastcollect.memory.board import WeightsBoard
from fastcollect.support.errors import ConfigError

_CHECK_SECONDS = 0.5  # how often a wait for blocks looks whether workers are stuck


class Collector:
    """Collects with N env workers and M model workers.

    Use it as a context manager: leaving it stops every process. ``spec`` is the environment's, ``policy``
    the NumPy policy (its ``parameters`` are what ``publish`` takes). Raises ConfigError for what was chosen
    wrongly, WorkerError with the worker's own traceback when one raises, at start or in ``take``.
    state: what ``get_state`` returned, to go on from there; ConfigError names all that does not fit.
    parameters: weights of the first step, where there is no state; default: the policy's initial ones.

        with Collector(CollectorConfig(env=EnvConfig(id="reach-v3"))) as collector:
            block = collector.take()
    """

    def __init__(
        self,
        config: CollectorConfig,
        launcher: Launcher | None = None,
        state: Mapping[str, np.ndarray] | None = None,
        parameters: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        # Resolved here, because a name that was registered in this process means nothing in a worker.
        self.config = config = resolve_env(config)
        self._owns_launcher = launcher is None
        self._launcher = launcher or new_launcher(config)
        self._opened = contextlib.ExitStack()
        self._closed = False
        try:
            self.spec = env_spec(self._launcher, config.env)
            self.policy = build_policy(config, self.spec)
            ring = config.ring(self.spec, self.policy)
            check_memory(ring, config.num_env_workers, dict(self.policy.parameters))
            allow_descriptors(config.num_env_workers, config.num_model_workers)
            life = 0 if state is None else check_fits(state, config, self.policy)
            self._board = WeightsBoard(self.policy.parameters)
            self._opened.callback(self._board.segment.close)
            if state is None:
                self._board.publish(parameters or self.policy.initial_parameters(config.seed))
            else:
                restore_board(self._board, state, config)
            self._workers = Workers(config, self.spec, self.policy, ring, self._board, self._launcher, life)
            self._opened.callback(self._workers.close)
            self._supervisor = Supervisor(self._workers)
            self._supervisor.start(state)
        except BaseException:
            self.close()
            raise
        self._schedule: Arrivals | Rounds = (
            # A restored round was handed out and its rings not given back, as it was when it was saved.
            Rounds(self._workers, self._board, complete=state is not None and config.reproducible)
            if config.rounds
            else Arrivals(self._workers, self._board)
        )
        self._paused = False
        self._taken = 0
        self._waited = 0.0
        self._gone = Stats()  # counters of workers that are gone
        self._start = time.perf_counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop every worker and free everything; idempotent."""
        if self._closed:
            return
        self._closed = True
        try:
            self._opened.close()
        finally:
            if self._owns_launcher:
                self._launcher.close()

    @property
    def version(self) -> int:
        """The newest published version of the weights; 1 is the initial one."""
        return self._board.version

    @property
    def env_indices(self) -> range:
        """See BlockSource.env_indices."""
        first, most = self.config.first_env, self._workers.most_env_workers
        return range(first, first + most * self.config.num_envs)

    def publish(self, parameters: Mapping[str, np.ndarray]) -> int:
        """Give new weights to every worker; returns their version. Raises ValueError on wrong shapes.

        In rounds they act from the next round of blocks on.
        """
        return self._schedule.publish(parameters)

    def take(self, timeout: float | None = None) -> Block:
        """The next block, copied out of its ring.

        Raises TimeoutError after ``timeout`` seconds, WorkerError when a worker raised, StallError when
        one that could step did not for ``config.stall_seconds``.
        """
        self._require_open()
        start = time.perf_counter()
        self._schedule.begin()
        try:
            while (block := self._schedule.pop()) is None:
                now = time.perf_counter()
                if timeout is not None and now >= start + timeout:
                    raise TimeoutError(f"no block within {timeout:g} s")
                left = _CHECK_SECONDS if timeout is None else start + timeout - now
                self._receive(min(left, _CHECK_SECONDS))
        finally:
            self._waited += time.perf_counter() - start
        return self._copy(*block)

    def resize(self, num_env_workers: int | None = None, num_model_workers: int | None = None) -> None:
        """Change N or M while collecting. Nothing is lost: env workers that leave finish their blocks.

        New env workers have the global indices that follow, so that ``env_indices`` grows; no other source
        may have these indices. Raises ConfigError out of range, in rounds, between M = 0 and M > 0, or where
        the environment has too few options for more environments.
        """
        self._require_open()
        workers = self._workers
        env_workers = workers.num_env_workers if num_env_workers is None else num_env_workers
        model_workers = len(workers.model) if num_model_workers is None else num_model_workers
        most = workers.max_model_workers
        problems = []
        if self.config.rounds:
            problems.append("a collector with schedule 'rounds' keeps its number of workers")
        if not is_integer(env_workers) or not 1 <= env_workers <= MAX_ENV_WORKERS:
            problems.append(f"num_env_workers (N) is {env_workers!r}; allowed: 1 to {MAX_ENV_WORKERS}")
        if self.config.inline and model_workers:
            problems.append("a collector that was started with M = 0 has no model workers; start a new one")
        if not self.config.inline and (not is_integer(model_workers) or not 1 <= model_workers <= most):
            problems.append(f"num_model_workers (M) is {model_workers!r}; allowed here: 1 to {most}")
        if problems:
            raise ConfigError(problems)
        first = self.config.first_env
        check_rows(self.config.env, range(first, first + env_workers * self.config.num_envs))
        check_memory(workers.ring_config, env_workers - workers.num_env_workers, dict(self.policy.parameters))
        allow_descriptors(env_workers, model_workers)
        workers.resize(env_workers, model_workers)

    def get_state(self) -> State:
        """What ``Collector(config, state=...)`` needs to go on: named plain arrays, ready for ``np.savez``.

        A reproducible collector saves the environments with their generators, the running episodes, steps and
        block numbers, and the weights published and staged. Blocks of a collector that goes on from it equal,
        bit for bit, those that follow here, whatever its n, N and M (with n * N, the groups' sizes and
        ``block_length`` kept), serial or parallel. Such a state exists between two rounds: RuntimeError where
        a round is begun and not taken, or the collector is paused; ConfigError where an environment cannot
        save its state, and this collector goes on; WorkerError or StallError where a worker dies or hangs.

        Any other collector saves the weights, their version, and which life the environments are in. One that
        goes on from it begins the next life, of new episodes with new noise, and acts with the weights
        published last; what was not taken is not repeated.
        """
        self._require_open()
        state = common_state(self.config, self._workers.life, self._board)
        if not self.config.reproducible:
            return state
        if self._paused:
            raise RuntimeError("a paused collector cannot save its environments: call resume first")
        schedule = self._schedule
        if isinstance(schedule, Rounds) and not schedule.complete:
            raise between_rounds_only(schedule.turn, self.config.blocks_per_round)
        return state | self._supervisor.save()

    def pause(self) -> None:
        """Stop every worker where it is, until ``resume``; what was published can still be taken."""
        self._require_open()
        self._paused = True
        self._workers.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let the workers go on."""
        self._require_open()
        self._workers.signal(signal.SIGCONT)
        self._paused = False

    def stats(self) -> Stats:
        """Counters since the start; subtract two of them for an interval."""
        self._require_open()
        deaths = self._supervisor.deaths
        total = self._gone
        for worker in self._workers.env.values():
            total += worker.counters()
        total += self._workers.model_stats()
        return total + Stats(
            seconds=time.perf_counter() - self._start,
            taken=self._taken,
            discarded=deaths.discarded,
            env_worker_deaths=deaths.env_workers,
            model_worker_deaths=deaths.model_workers,
            waiting_blocks=self._waited,
        )

    def pids(self) -> dict[str, list[int]]:
        """Process ids by kind: "launcher", "env_worker", "model_worker"."""
        self._require_open()
        return {
            "launcher": [self._launcher.pid],
            "env_worker": [w.process.pid for w in self._workers.env.values() if w.alive],
            "model_worker": [m.process.pid for m in self._workers.model.values()],
        }

    def _require_open(self) -> None:
        if self._closed:
            raise RuntimeError("this collector is closed")

    def _receive(self, seconds: float) -> None:
        for _, ident, group, number in self._supervisor.poll(seconds):
            self._schedule.add(ident, group, number)
        if not self._paused:
            self._supervisor.check_stalls()
        self._forget_finished()

    def _forget_finished(self) -> None:
        for ident, worker in list(self._workers.env.items()):
            if not worker.alive and not self._schedule.holds(ident):
                self._gone += worker.counters()
                self._workers.forget_env_worker(worker)

    def _copy(self, worker: EnvWorkerHandle, group: int, number: int) -> Block:
        first_env = worker.first_env + sum(worker.ring.config.envs[:group])
        block = copy_block(worker.ring, group, number, worker.process.ident, first_env)
        if self.config.check:
            check_written(block)
        self._taken += len(block)
        self._schedule.copied(worker, group, number)
        return block


def new_launcher(config: CollectorConfig) -> Launcher:
    """A launcher that has loaded what this configuration's workers need, once, before it forks them.

    Only modules known to start no threads: a user's own are imported after the fork.
    """
    modules = [
        m for m in preload_modules(resolve_env(config).env) if m.startswith(("fastcollect.", "gymnasium."))
    ]
    return Launcher(["fastcollect.workers.env_worker", *modules])
