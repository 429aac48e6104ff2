"""The workers of one collector: starts them, tells them what to do, ends them.

What a worker's words and its death mean is decided in ``fastcollect.control.supervisor``.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import signal
import socket
import time
from collections.abc import Mapping, Sequence

import numpy as np

from fastcollect.control.config import MAX_MODEL_WORKERS, CollectorConfig, groups_config
from fastcollect.control.handles import EnvWorkerHandle, ModelWorkerHandle
from fastcollect.control.launcher import Launcher, Process
from fastcollect.control.stats import Stats
from fastcollect.envs.base import EnvSpec
from fastcollect.memory.board import WeightsBoard
from fastcollect.memory.ring import Ring, RingConfig
from fastcollect.memory.segment import Segment
from fastcollect.memory.tokens import Kind, exchange
from fastcollect.policies.base import Policy
from fastcollect.support.cpu import allowed_cpus, cpu_quota, idle_cpus
from fastcollect.support.errors import LauncherLostError
from fastcollect.workers.env_worker import EnvWorkerConfig
from fastcollect.workers.group_state import groups_between, write_arrays
from fastcollect.workers.model_worker import ModelWorkerConfig, send_control, stats_layout

_CLOSE_SECONDS = 3.0


class Workers:
    """See the module's text.

    env: by number, every env worker that may still have blocks to read. model: by index, the model workers
    in use. leaving: by number, those that were told to stop. exchange: what carries everybody's tokens.
    num_env_workers: how many are wanted. most_env_workers: the most that ever were.
    """

    def __init__(
        self,
        config: CollectorConfig,
        spec: EnvSpec,
        policy: Policy,
        ring: RingConfig,
        board: WeightsBoard,
        launcher: Launcher,
        first_life: int,
    ) -> None:
        self.config, self.spec, self.policy, self.ring_config = config, spec, policy, ring
        self.board, self.launcher = board, launcher
        self.env: dict[int, EnvWorkerHandle] = {}
        self.model: dict[int, ModelWorkerHandle] = {}
        self.leaving: dict[int, ModelWorkerHandle] = {}
        self.num_env_workers = self.most_env_workers = 0
        self._first_life = first_life
        self._lives: dict[int, int] = {}  # position -> the latest
        self._models_gone = Stats()
        # A quota is time on any processor; pinned workers would share a few with other containers.
        self._processors = idle_cpus() if cpu_quota() is None else []
        cpus = min(len(allowed_cpus()), MAX_MODEL_WORKERS)
        most = 0 if config.inline else max(config.num_model_workers, cpus)
        self.exchange = exchange(config.tokens)(most)

    @property
    def max_model_workers(self) -> int:
        """As many as every env worker was given a way to ask."""
        return self.exchange.models

    @property
    def life(self) -> int:
        """The latest life of any environments; those that follow are new."""
        return max(self._lives.values())

    def in_order(self) -> list[EnvWorkerHandle]:
        """The living env workers in the order of their environments."""
        living = [worker for worker in self.env.values() if worker.alive]
        return sorted(living, key=lambda worker: (worker.position, worker.life))

    def processes(self) -> dict[str, Process]:
        """The living workers by name."""
        env = {f"env worker {w.process.ident}": w.process for w in self.env.values() if w.alive}
        return env | {f"model worker {m.index}": m.process for m in self.model.values()}

    def idents(self) -> set[int]:
        """The numbers of all of them."""
        return {*self.env, *self.leaving, *(m.process.ident for m in self.model.values())}

    def model_stats(self) -> Stats:
        """Counters of the model workers, those that are gone included."""
        total = self._models_gone
        for model in (*self.model.values(), *self.leaving.values()):
            total += model.counters()
        return total

    def signal(self, signum: int) -> None:
        """Send a signal to every worker; what they were silent before does not count as a stall."""
        for worker in self.env.values():
            if worker.alive:
                self.launcher.kill(worker.process.ident, signum)
                worker.last_seen = time.monotonic()
        for model in self.model.values():
            self.launcher.kill(model.process.ident, signum)

    # Env workers.

    def resize(
        self, num_env_workers: int, num_model_workers: int, state: Mapping[str, np.ndarray] | None = None
    ) -> None:
        """Change the numbers of workers while they run; leaving env workers finish their blocks first.

        state: of the groups, where the new env workers go on.
        """
        before = len(self.model)
        for index in range(before, num_model_workers):
            self.start_model_worker(index)
        # Those that leave are asked no more from now on, those that start once all are ready.
        self.assign_models(min(num_model_workers, before))
        for index in range(num_model_workers, len(self.model)):
            model = self.model.pop(index)
            self.leaving[model.process.ident] = model
            self._control(model, "stop")
        for worker in self.env.values():
            if worker.position >= num_env_workers and worker.alive and not worker.retiring:
                worker.retiring = True
                worker.tell(Kind.RETIRE)
        first, self.num_env_workers = self.num_env_workers, num_env_workers
        self.most_env_workers = max(self.most_env_workers, num_env_workers)
        for position in range(first, num_env_workers):
            self.start_env_worker(position, state)

    def start_env_worker(
        self,
        position: int,
        state: Mapping[str, np.ndarray] | None = None,
        waiting: Sequence[int] = (),
    ) -> None:
        """Start the first worker of this position, or the next one.

        state: of the groups, where they go on. waiting: groups that begin when they are told to.
        """
        config, ident = self.config, self.launcher.new_ident()
        life = self._lives.get(position, self._first_life - 1) + 1
        self._lives[position] = life
        ring, line = Ring(self.ring_config), self.exchange.connect()
        model = position % max(1, len(self.model))
        for each in self.model.values():
            self._control(each, "attach", ident, (ring.segment.fd, *line.model_fds()))
        groups = groups_config(config, self.policy, self.ring_config, position, life)
        state_fd = os.memfd_create("fastcollect-state", os.MFD_CLOEXEC)
        saved = groups_between(state or {}, groups.first_env, groups.first_env + config.num_envs)
        written = [0 for _ in self.ring_config.envs]
        if saved:
            write_arrays(state_fd, saved)
            # It starts with a block in each ring that was taken and not given back.
            waiting = range(len(written))
            steps = [saved[f"group/{groups.first_env + env}/first_step"] for env in self._first_envs()]
            written = [int(each) // config.block_length for each in steps]
        process = self.launcher.spawn(
            "fastcollect.workers.env_worker:main",
            EnvWorkerConfig(
                ident=ident,
                groups=groups,
                inline=config.inline,
                model=model,
                waiting=tuple(waiting),
                tokens=config.tokens,
            ),
            [ring.segment.fd, self.board.segment.fd, state_fd, *line.worker_fds()],
            self._cpus(position, self.num_env_workers),
            ident,
        )
        held = [int(g in waiting) for g in range(len(written))]
        self.env[ident] = EnvWorkerHandle(
            process, position, life, groups.first_env, ring, line, state_fd, model, written, held
        )

    def _first_envs(self) -> list[int]:
        """For each group of a worker, how many of its environments are in groups before it."""
        return list(itertools.accumulate((0, *self.ring_config.envs[:-1])))

    def _cpus(self, position: int, workers: int) -> list[int]:
        """One processor for each env worker, if there are enough of them."""
        return [self._processors[position]] if workers <= len(self._processors) else []

    def forget_env_worker(self, worker: EnvWorkerHandle) -> None:
        """Release a worker that is gone and whose blocks were all read."""
        worker.release()
        del self.env[worker.process.ident]

    def detach(self, worker: EnvWorkerHandle) -> None:
        """Let the model workers forget the ring of an env worker that is gone."""
        for model in self.model.values():
            self._control(model, "detach", worker.process.ident)

    # Model workers.

    def start_model_worker(self, index: int) -> None:
        """The first model worker of this index, or the next one."""
        config = self.config
        groups = len(self.ring_config.envs) * config.num_env_workers
        worker = ModelWorkerConfig(
            index=index,
            spec=self.spec,
            policy=config.policy,
            ring=self.ring_config,
            parameters=dict(self.policy.parameters),
            extras=dict(self.policy.extras),
            max_groups=1 if config.reproducible else -(-groups // config.num_model_workers),
            min_groups=config.min_groups,
            deadline=config.deadline,
            device=config.model_device,
            reproducible=config.reproducible,
            tokens=config.tokens,
        )
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stats = Segment(stats_layout().nbytes)
        with theirs:
            fds = [theirs.fileno(), self.board.segment.fd, stats.fd, *self.exchange.model_fds(index)]
            process = self.launcher.spawn("fastcollect.workers.model_worker:main", worker, fds)
        views = stats_layout().views(stats.buffer)
        handle = ModelWorkerHandle(process, index, ours, stats, views["times"], views["counts"])
        self.model[index] = handle
        for env_worker in self.env.values():
            if env_worker.alive:
                line = (env_worker.ring.segment.fd, *env_worker.line.model_fds())
                self._control(handle, "attach", env_worker.process.ident, line)

    def _control(self, model: ModelWorkerHandle, op: str, ident: int = 0, fds: tuple[int, ...] = ()) -> None:
        # A dead one is replaced, and its replacement is told everything anew.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            send_control(model.control, op, ident, fds)

    def assign_models(self, count: int) -> None:
        """Divide the env workers among the first ``count`` model workers."""
        for worker in self.env.values():
            if count and worker.alive and worker.model != worker.position % count:
                worker.model = worker.position % count
                worker.tell(Kind.ASSIGN, sequence=worker.model)

    def forget_model_worker(self, model: ModelWorkerHandle) -> None:
        """Release one that is gone. What waits for it is sent again, with what it had taken."""
        self._models_gone += model.counters()
        model.release()
        self.exchange.forget_requests(model.index)

    def resend(self, index: int) -> None:
        """Whatever this model worker was asked and did not answer is asked again, of whoever is assigned."""
        for worker in self.env.values():
            if worker.alive:
                worker.tell(Kind.RESEND, sequence=index)

    # Ending.

    def close(self) -> None:
        """Stop every worker, kill those that do not listen, release everything."""
        with contextlib.suppress(LauncherLostError):
            self.signal(signal.SIGCONT)  # a paused one would not hear
        for worker in self.env.values():
            if worker.alive:
                worker.tell(Kind.STOP)
        for model in self.model.values():
            self._control(model, "stop")
        idents = self.idents()
        # Without a launcher there is nothing to wait for: its workers died with it.
        with contextlib.suppress(LauncherLostError):
            if not self._ended(idents, _CLOSE_SECONDS):
                for ident in idents - self.launcher.ended:
                    self.launcher.kill(ident)
                self._ended(idents, None)
        self._release()

    def _ended(self, idents: set[int], seconds: float | None) -> bool:
        """Wait until all of these workers are gone, or until time is up."""
        deadline = math.inf if seconds is None else time.monotonic() + seconds
        self.launcher.collect(idents)
        while not idents <= self.launcher.ended and time.monotonic() < deadline:
            self.launcher.wait(0.1)
            self.launcher.collect(idents)
        return idents <= self.launcher.ended

    def _release(self) -> None:
        for worker in self.env.values():
            worker.release()
        for model in (*self.model.values(), *self.leaving.values()):
            model.release()
        self.env, self.model, self.leaving = {}, {}, {}
        self.exchange.close()
