"""The collector: blocks of transitions from many processes, through one small API."""

import contextlib
import signal
import time
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import psutil

from fastcollect.control.config import CollectorConfig, allow_descriptors, check_memory, resolve_env
from fastcollect.control.crew import Workers
from fastcollect.control.launcher import Launcher
from fastcollect.control.probe import env_spec
from fastcollect.control.schedule import Arrivals, Rounds
from fastcollect.control.source import CommonCollector
from fastcollect.control.stats import Stats
from fastcollect.control.supervisor import Supervisor
from fastcollect.envs.base import EnvSpec, State
from fastcollect.envs.registry import check_rows, preload_modules
from fastcollect.memory.block import Block
from fastcollect.support.errors import ConfigError

_CHECK_SECONDS = 0.5  # how often a wait for blocks looks whether workers are stuck
_STOP_SECONDS = 5.0
_STANDING = (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP, psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)


class Collector(CommonCollector):
    """Collects with N env workers and M model workers; see BlockSource for what it offers.

    Leaving it as a context manager stops every process. Raises ConfigError for what was chosen wrongly, and
    WorkerError with the worker's own traceback when one raises, at start or in ``take``.
    state: what ``get_state`` returned, to go on from there; ConfigError names all that does not fit.
    parameters: weights of the first step, where there is no state; default: the policy's initial ones.
    spec: the environment's, where it is known already; default: a process builds one environment to learn it.

        with Collector(CollectorConfig(env=EnvConfig(id="reach-v3"))) as collector:
            block = collector.take()
    """

    def __init__(
        self,
        config: CollectorConfig,
        launcher: Launcher | None = None,
        state: Mapping[str, np.ndarray] | None = None,
        parameters: Mapping[str, np.ndarray] | None = None,
        spec: EnvSpec | None = None,
    ) -> None:
        # Resolved here, because a name that was registered in this process means nothing in a worker.
        config = resolve_env(config)
        with contextlib.ExitStack() as opened:
            if launcher is None:
                launcher = new_launcher(config)
                opened.callback(launcher.close)
            spec = spec or env_spec(launcher, config.env)
            super().__init__(config, spec, state, parameters, opened)
            allow_descriptors(config.num_env_workers, config.num_model_workers)
            self._workers = Workers(
                config, self.policy, self._ring_config, self._board, launcher, self._first_life
            )
            opened.callback(self._workers.close)
            groups = state if config.reproducible else None
            self._supervisor = Supervisor(self._workers, groups)
            # A restored round was handed out and its rings not given back, as it was when it was saved.
            self._schedule = Rounds(self._workers, groups is not None) if config.rounds else Arrivals()
            self._waited, self._start = 0.0, time.perf_counter()
            self._opened = opened.pop_all()

    @property
    def env_indices(self) -> range:
        """See BlockSource.env_indices."""
        first, most = self.config.first_env, self._workers.most_env_workers
        return range(first, first + most * self.config.num_envs)

    def take(self, timeout: float | None = None) -> Block:
        """The next block, copied out of its ring. Raises as BlockSource.take says."""
        self._require_open()
        start = time.perf_counter()
        try:
            while (block := self._schedule.next()) is None:
                now = time.perf_counter()
                if timeout is not None and now >= start + timeout:
                    raise TimeoutError(f"no block within {timeout:g} s")
                left = _CHECK_SECONDS if timeout is None else start + timeout - now
                for each in self._supervisor.poll(min(left, _CHECK_SECONDS)):
                    self._schedule.append(each)
        finally:
            self._waited += time.perf_counter() - start
        worker, group, number = block
        first_env = worker.config.first_env + sum(self._ring_config.envs[:group])
        copied = self._copy(worker.ring, group, number, worker.process.ident, first_env)
        worker.unread -= 1
        if not self.config.rounds:
            worker.free(group, number)
        return copied

    def resize(self, num_env_workers: int | None = None, num_model_workers: int | None = None) -> None:
        """Change N or M while collecting. Nothing is lost: env workers that leave finish their blocks.

        New env workers have the global indices that follow, which no other source may have. Raises
        ConfigError out of range, in rounds, between M = 0 and M > 0, or where an option has too few entries.
        """
        self._require_open()
        workers, config, most = self._workers, self.config, self._workers.exchange.models
        env_workers = workers.num_env_workers if num_env_workers is None else num_env_workers
        models = workers.num_model_workers if num_model_workers is None else num_model_workers
        wanted = replace(config, num_env_workers=env_workers, num_model_workers=models)
        problems = []
        if config.rounds:
            problems.append("a collector with schedule 'rounds' keeps its number of workers")
        if config.inline and models:
            problems.append("a collector that was started with M = 0 has no model workers; start a new one")
        if not config.inline and not 1 <= models <= most:
            problems.append(f"num_model_workers (M) is {models}; allowed here: 1 to {most}")
        if problems:
            raise ConfigError(problems)
        check_rows(config.env, wanted.env_indices)
        check_memory(self._ring_config, env_workers - workers.num_env_workers, self.policy.parameters)
        allow_descriptors(env_workers, models)
        workers.resize(env_workers, models)

    def get_state(self) -> State:
        """What ``Collector(config, state=...)`` needs to go on: named plain arrays, ready for ``np.savez``.

        That of a reproducible collector holds the environments, their generators, and the weights published
        and staged. A collector that goes on from it, serial or parallel, with the same n * N, group sizes and
        ``block_length``, gives the blocks that follow here, bit for bit. Raises RuntimeError in the middle of
        a round or when paused, ConfigError where an environment cannot save its state (this collector goes
        on), WorkerError or StallError where a worker dies or hangs.

        Any other holds the weights, their version, and which life the environments are in. A collector that
        goes on from it begins the next life, of new episodes with new noise, with the weights published last.
        """
        self._require_open()
        if self.config.reproducible and self._workers.paused:
            raise RuntimeError("a paused collector cannot save its environments: call resume first")
        turn = self._schedule.turn if isinstance(self._schedule, Rounds) else 0
        return self._state(max(self._workers.lives.values()), turn, self._supervisor.save)

    def pause(self) -> None:
        """Stop every worker until ``resume``; what was published can still be taken.

        On return they stand still, unless the system takes more than five seconds to stop them.
        """
        self._require_open()
        self._workers.signal(signal.SIGSTOP)
        self._workers.paused, deadline = True, time.monotonic() + _STOP_SECONDS
        for worker in self._workers.living():
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(worker.process.pid)
                while process.status() not in _STANDING and time.monotonic() < deadline:
                    time.sleep(0.001)

    def resume(self) -> None:
        """Let the workers go on."""
        self._require_open()
        self._workers.signal(signal.SIGCONT)
        self._workers.paused = False

    def stats(self) -> Stats:
        """Counters since the start; subtract two of them for an interval."""
        self._require_open()
        own = Stats(seconds=time.perf_counter() - self._start, taken=self._taken, waiting_blocks=self._waited)
        workers = self._workers
        return sum((each.counters() for each in workers.all()), workers.gone + self._supervisor.deaths + own)

    def pids(self) -> dict[str, list[int]]:
        """Process ids by kind: "launcher", "env_worker", "model_worker"."""
        self._require_open()
        return {
            "launcher": [self._workers.launcher.pid],
            "env_worker": [worker.process.pid for worker in self._workers.env.values() if worker.alive],
            "model_worker": [model.process.pid for model in self._workers.models_in_use()],
        }


def new_launcher(config: CollectorConfig) -> Launcher:
    """A launcher that has loaded what this configuration's workers need, once, before it forks them."""
    # Only modules known to start no threads: a user's own are imported after the fork.
    modules, ours = preload_modules(resolve_env(config).env), ("fastcollect.", "gymnasium.")
    return Launcher(["fastcollect.workers.env_worker", *(m for m in modules if m.startswith(ours))])
