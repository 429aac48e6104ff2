"""The collector: blocks of transitions from many processes, through one small API."""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import Self

import numpy as np

from fastcollect.block import Block, check_written, copy_block
from fastcollect.board import WeightsBoard
from fastcollect.config import (
    MAX_ENV_WORKERS,
    CollectorConfig,
    allow_descriptors,
    build_policy,
    check_memory,
    is_integer,
    resolve_env,
)
from fastcollect.envs.registry import preload_modules
from fastcollect.errors import ConfigError
from fastcollect.handles import EnvWorkerHandle
from fastcollect.launcher import Launcher
from fastcollect.probe import env_spec
from fastcollect.stats import Stats
from fastcollect.supervisor import Supervisor

_CHECK_SECONDS = 0.5  # how often a wait for blocks looks whether workers are stuck


class Collector:
    """Collects with N env workers and M model workers.

    Use it as a context manager: leaving it stops every process. ``spec`` is the environment's, ``policy``
    the NumPy policy (its ``parameters`` are what ``publish`` takes). Raises ConfigError for what was chosen
    wrongly, WorkerError with the worker's own traceback when one raises, at start or in ``take``.

        with Collector(CollectorConfig(env=EnvConfig(id="reach-v3"))) as collector:
            block = collector.take()
    """

    def __init__(self, config: CollectorConfig, launcher: Launcher | None = None) -> None:
        # Resolved here, because a name that was registered in this process means nothing in a worker.
        self.config = config = replace(config, env=resolve_env(config.env, config.total_envs))
        self._owns_launcher = launcher is None
        self._launcher = launcher or new_launcher(config)
        self._supervisor: Supervisor | None = None
        self._board: WeightsBoard | None = None
        self._closed = False
        try:
            self.spec = env_spec(self._launcher, config.env)
            self.policy = build_policy(config, self.spec)
            ring = config.ring(self.spec, self.policy)
            check_memory(ring, config.num_env_workers, dict(self.policy.parameters))
            allow_descriptors(config.num_env_workers, config.num_model_workers)
            self._board = WeightsBoard(self.policy.parameters)
            self._board.publish(self.policy.initial_parameters(config.seed))
            self._supervisor = Supervisor(config, self.spec, self.policy, ring, self._board, self._launcher)
            self._supervisor.start()
        except BaseException:
            self.close()
            raise
        self._pending: dict[tuple[int, int], deque[int]] = {}
        self._arrived: deque[tuple[int, int]] = deque()
        self._unfreed: list[tuple[EnvWorkerHandle, int, int]] = []
        self._turn = 0
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
            if self._supervisor is not None:
                self._supervisor.close()
        finally:
            if self._board is not None:
                self._board.segment.close()
            if self._owns_launcher:
                self._launcher.close()

    @property
    def version(self) -> int:
        """The newest published version of the weights; 1 is the initial one."""
        return self._board.version

    def publish(self, parameters: Mapping[str, np.ndarray]) -> int:
        """Give new weights to every worker; returns their version. Raises ValueError on wrong shapes.

        In lockstep they act from the next round of blocks on.
        """
        if self.config.lockstep:
            return self._board.stage(parameters)
        return self._board.publish(parameters)

    def take(self, timeout: float | None = None) -> Block:
        """The next block, copied out of its ring.

        Raises TimeoutError after ``timeout`` seconds, WorkerError when a worker raised, StallError when
        one that could step did not for ``config.stall_seconds``.
        """
        self._require_open()
        start = time.perf_counter()
        if self.config.lockstep and self._turn == 0:
            self._free_round()
        try:
            while (key := self._next_key()) is None:
                now = time.perf_counter()
                if timeout is not None and now >= start + timeout:
                    raise TimeoutError(f"no block within {timeout:g} s")
                left = _CHECK_SECONDS if timeout is None else start + timeout - now
                self._receive(min(left, _CHECK_SECONDS))
        finally:
            self._waited += time.perf_counter() - start
        return self._copy(key)

    def resize(self, num_env_workers: int | None = None, num_model_workers: int | None = None) -> None:
        """Change N or M while collecting. Nothing is lost: env workers that leave finish their blocks.

        Raises ConfigError out of range, in lockstep, or between M = 0 and M > 0.
        """
        self._require_open()
        supervisor = self._supervisor
        env_workers = supervisor.num_env_workers if num_env_workers is None else num_env_workers
        model_workers = len(supervisor.model_workers) if num_model_workers is None else num_model_workers
        most = supervisor.max_model_workers
        problems = []
        if self.config.lockstep:
            problems.append("a lockstep collector keeps its number of workers")
        if not is_integer(env_workers) or not 1 <= env_workers <= MAX_ENV_WORKERS:
            problems.append(f"num_env_workers (N) is {env_workers!r}; allowed: 1 to {MAX_ENV_WORKERS}")
        if self.config.inline and model_workers:
            problems.append("a collector that was started with M = 0 has no model workers; start a new one")
        if not self.config.inline and (not is_integer(model_workers) or not 1 <= model_workers <= most):
            problems.append(f"num_model_workers (M) is {model_workers!r}; allowed here: 1 to {most}")
        if problems:
            raise ConfigError(problems)
        check_memory(
            supervisor.ring_config, env_workers - supervisor.num_env_workers, dict(self.policy.parameters)
        )
        allow_descriptors(env_workers, model_workers)
        supervisor.resize(env_workers, model_workers)

    def pause(self) -> None:
        """Stop every worker where it is, until ``resume``; what was published can still be taken."""
        self._require_open()
        self._paused = True
        self._supervisor.signal_workers(signal.SIGSTOP)

    def resume(self) -> None:
        """Let the workers go on."""
        self._require_open()
        self._supervisor.signal_workers(signal.SIGCONT)
        self._paused = False

    def stats(self) -> Stats:
        """Counters since the start; subtract two of them for an interval."""
        self._require_open()
        supervisor, deaths = self._supervisor, self._supervisor.deaths
        total = self._gone
        for worker in supervisor.env_workers.values():
            total += worker.counters()
        total += supervisor.model_stats()
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
        supervisor = self._supervisor
        return {
            "launcher": [self._launcher.pid],
            "env_worker": [w.process.pid for w in supervisor.env_workers.values() if w.alive],
            "model_worker": [m.process.pid for m in supervisor.model_workers.values()],
        }

    def _require_open(self) -> None:
        if self._closed:
            raise RuntimeError("this collector is closed")

    def _receive(self, seconds: float) -> None:
        for _, ident, group, number in self._supervisor.poll(seconds):
            self._pending.setdefault((ident, group), deque()).append(number)
            self._arrived.append((ident, group))
        if not self._paused:
            self._supervisor.check_stalls()
        self._forget_finished()

    def _forget_finished(self) -> None:
        for ident, worker in list(self._supervisor.env_workers.items()):
            if not worker.alive and not any(
                self._pending.get((ident, g)) for g in range(len(self.config.groups))
            ):
                self._gone += worker.counters()
                self._supervisor.forget(worker)

    def _next_key(self) -> tuple[int, int] | None:
        """The (worker, group) to take from: the first that arrived, in lockstep the one whose turn it is."""
        if not self.config.lockstep:
            return self._arrived.popleft() if self._arrived else None
        workers = sorted(self._supervisor.env_workers.values(), key=lambda w: (w.position, w.life))
        turns = [(w.process.ident, g) for w in workers for g in range(len(self.config.groups)) if w.alive]
        key = turns[self._turn]
        if not self._pending.get(key):
            return None
        self._turn = (self._turn + 1) % len(turns)
        return key

    def _copy(self, key: tuple[int, int]) -> Block:
        ident, group = key
        number = self._pending[key].popleft()
        worker = self._supervisor.env_workers[ident]
        first_env = worker.first_env + sum(worker.ring.config.envs[:group])
        block = copy_block(worker.ring, group, number, ident, first_env)
        if self.config.check:
            check_written(block)
        self._taken += len(block)
        if self.config.lockstep:
            self._unfreed.append((worker, group, number))
        else:
            worker.free(group, number)
        return block

    def _free_round(self) -> None:
        if self._unfreed:
            self._board.publish_staged()
        for worker, group, number in self._unfreed:
            worker.free(group, number)
        self._unfreed.clear()


def new_launcher(config: CollectorConfig) -> Launcher:
    """A launcher that has loaded what this configuration's workers need, once, before it forks them.

    Only modules known to start no threads: a user's own are imported after the fork.
    """
    modules = [
        m
        for m in preload_modules(resolve_env(config.env, config.total_envs))
        if m.startswith(("fastcollect.", "gymnasium."))
    ]
    return Launcher(["fastcollect.env_worker", *modules])
