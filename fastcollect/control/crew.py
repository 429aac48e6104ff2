"""The workers of one collector: starts them, tells them what to do, ends them."""

import contextlib
import os
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fastcollect.control.config import MAX_MODEL_WORKERS, CollectorConfig, env_worker_config
from fastcollect.control.launcher import Launcher, Process
from fastcollect.control.stats import Stats
from fastcollect.memory.board import WeightsBoard
from fastcollect.memory.latency import Latencies
from fastcollect.memory.ring import Ring, RingConfig
from fastcollect.memory.segment import Segment
from fastcollect.memory.tokens import Kind, Line, exchange
from fastcollect.policies.base import Policy
from fastcollect.support.cpu import allowed_cpus, cpu_quota, idle_cpus
from fastcollect.support.errors import LauncherLostError
from fastcollect.workers.group import EnvWorkerConfig
from fastcollect.workers.groups import write_arrays
from fastcollect.workers.model_worker import COUNTERS_BYTES, ModelWorkerConfig, model_counters

_CLOSE_SECONDS = 3.0


class EnvWorkerHandle:
    """The collector's side of one env worker.

    position: 0 .. N - 1. state_fd: a memfd through which states travel. model: the model worker it asks.
    written, held: for each group, how many blocks it has published, those before it was restored included,
    and how many of them were not given back. unread: how many blocks were not handed out. ready: whether it
    did what it was last asked, to start or to save. last_seen: when it last got on or was given a block back.
    """

    def __init__(
        self, process: Process, config: EnvWorkerConfig, position: int, ring: Ring, line: Line, state_fd: int
    ) -> None:
        self.process, self.config, self.position = process, config, position
        self.ring, self.line, self.state_fd = ring, line, state_fd
        self.name, self.model = f"env worker {process.ident}", config.model
        self.written = [0] * len(config.ring.envs)
        self.held = [int(group in config.waiting) for group in range(len(config.ring.envs))]
        self.unread = self._steps = 0
        self.alive, self.ready, self.retiring = True, False, False
        self.last_seen = time.monotonic()

    def tell(self, kind: Kind, group: int = 0, sequence: int = 0) -> None:
        """Put a token into its inbox; whether it still lives does not matter."""
        self.line.send(kind, self.process.ident, group, sequence)

    def free(self, group: int, number: int) -> None:
        """Give block ``number`` back to it."""
        self.held[group] -= 1
        self.last_seen = time.monotonic()
        self.tell(Kind.FREED, group, number + 1)

    def stands_still(self, since: float) -> bool:
        """Whether it could go on, and did not since this time (of time.monotonic)."""
        steps = int(self.ring.rows.sum())
        if steps != self._steps:
            self._steps, self.last_seen = steps, time.monotonic()
        config = self.ring.config
        waits = sum(self.held) == config.capacity * len(config.envs)  # for the learner, with every block
        return self.alive and self.last_seen < since and not waits

    def counters(self) -> Stats:
        """What it counted so far."""
        names = ("stepping", "waiting_actions", "inferring_inline", "waiting_learner")
        return Stats(
            env_steps=int(self.ring.rows.sum()),
            action_latency=Latencies(tuple(self.ring.latencies.tolist())),
            **dict(zip(names, self.ring.times.tolist(), strict=True)),
        )

    def release(self) -> None:
        """Close its descriptors; the ring stays mapped while blocks of it are read."""
        self.line.close()
        for fd in (self.state_fd, self.process.words_fd):
            os.close(fd)
        self.ring.segment.close()


PublishedBlock = tuple[EnvWorkerHandle, int, int]
"""(worker, group, number of the block)."""


@dataclass
class ModelWorkerHandle:
    """The collector's side of one model worker. leaving: whether it was told to stop."""

    process: Process
    name: str
    index: int
    control: socket.socket
    segment: Segment
    ready: bool = False
    leaving: bool = False
    last_seen: float = 0.0

    def tell(self, op: str, ident: int = 0, fds: tuple[int, ...] = ()) -> None:
        """Tell it to "attach" or "detach" an env worker (fds: ring, Line.model_fds), or to "stop"."""
        # A dead one is replaced, and its replacement is told everything anew.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            socket.send_fds(self.control, [f"{op} {ident}".encode()], fds)

    def counters(self) -> Stats:
        """What it counted so far."""
        busy, idle, batches, rows = model_counters(self.segment).tolist()
        return Stats(inferring=busy, waiting_requests=idle, batches=int(batches), batch_rows=int(rows))

    def release(self) -> None:
        """Close its descriptors."""
        self.control.close()
        self.segment.close()
        os.close(self.process.words_fd)


class Workers:
    """The workers of one collector, and what carries everybody's tokens.

    env: by number, every env worker that may still have blocks to read. models: by number, every model
    worker that is there. num_env_workers, num_model_workers: how many are wanted. most_env_workers: the most
    that ever were. lives: by position, the latest life of its environments. gone: the counters of workers
    that are gone. paused: whether all were stopped.
    """

    def __init__(
        self,
        config: CollectorConfig,
        policy: Policy,
        ring: RingConfig,
        board: WeightsBoard,
        launcher: Launcher,
        first_life: int,
    ) -> None:
        self.config, self.policy, self.ring_config = config, policy, ring
        self.board, self.launcher = board, launcher
        self.env: dict[int, EnvWorkerHandle] = {}
        self.models: dict[int, ModelWorkerHandle] = {}
        self.num_env_workers = self.most_env_workers = self.num_model_workers = 0
        self.gone = Stats()
        self.paused = False
        self._first_life = first_life
        self.lives: dict[int, int] = {}
        # A quota is time on any processor; pinned workers would share a few with other containers.
        self._processors = idle_cpus() if cpu_quota() is None else []
        cpus = min(len(allowed_cpus()), MAX_MODEL_WORKERS)
        # As many model workers as there may ever be: every env worker is given a way to ask each.
        self.exchange = exchange(config.tokens)(0 if config.inline else max(config.num_model_workers, cpus))

    def __contains__(self, ident: object) -> bool:
        return ident in self.env or ident in self.models

    def in_order(self) -> list[EnvWorkerHandle]:
        """The living env workers in the order of their environments."""
        living = [worker for worker in self.env.values() if worker.alive]
        return sorted(living, key=lambda worker: (worker.position, worker.config.life))

    def all(self) -> list[EnvWorkerHandle | ModelWorkerHandle]:
        """Every worker, dead or alive."""
        return [*self.env.values(), *self.models.values()]

    def models_in_use(self) -> list[ModelWorkerHandle]:
        """The model workers that were not told to leave."""
        return [model for model in self.models.values() if not model.leaving]

    def living(self) -> list[EnvWorkerHandle | ModelWorkerHandle]:
        """Every worker that is not known to be dead."""
        return [*self.in_order(), *self.models.values()]

    def signal(self, signum: int) -> None:
        """Send a signal to every worker; what they were silent before does not count as a stall."""
        for worker in self.living():
            self.launcher.kill(worker.process.ident, signum)
            worker.last_seen = time.monotonic()

    def resize(
        self, num_env_workers: int, num_model_workers: int, state: Mapping[str, np.ndarray] | None = None
    ) -> None:
        """Change the numbers of workers. state: of the groups, from which new env workers go on."""
        models, workers = self.num_model_workers, self.num_env_workers
        self.num_env_workers, self.num_model_workers = num_env_workers, num_model_workers
        self.most_env_workers = max(self.most_env_workers, num_env_workers)
        for index in range(models, num_model_workers):
            self.start_model_worker(index)
        # Those that leave are asked no more from now on, those that start once all are ready.
        self.assign_models(min(num_model_workers, models))
        for model in self.models_in_use():
            if model.index >= num_model_workers:
                model.leaving = True
                model.tell("stop")
        for worker in self.in_order():
            if worker.position >= num_env_workers and not worker.retiring:
                worker.retiring = True
                worker.tell(Kind.RETIRE)
        for position in range(workers, num_env_workers):
            self.start_env_worker(position, state)

    def start_env_worker(
        self, position: int, state: Mapping[str, np.ndarray] | None = None, waiting: Sequence[int] = ()
    ) -> None:
        """Start a worker of this position. waiting: groups that begin when they are told to."""
        config, ring, line = self.config, Ring(self.ring_config), self.exchange.connect()
        self.lives[position] = life = self.lives.get(position, self._first_life - 1) + 1
        state_fd, written = os.memfd_create("fastcollect-state", os.MFD_CLOEXEC), 0
        if state is not None:
            first = config.first_env + position * config.num_envs
            envs = range(first, first + config.num_envs)
            keys = [key for key in state if key.startswith("group/") and int(key.split("/")[1]) in envs]
            write_arrays(state_fd, {key: state[key] for key in keys})
            # It starts with a block in each ring that was taken and not given back.
            waiting = range(len(self.ring_config.envs))
            written = int(state[f"group/{first}/first_step"]) // config.block_length
        worker = replace(
            env_worker_config(config, self.policy, self.ring_config, position, life),
            ident=self.launcher.new_ident(),
            model=position % max(1, self.num_model_workers),
            waiting=tuple(waiting),
        )
        for each in self.models.values():
            each.tell("attach", worker.ident, (ring.segment.fd, *line.model_fds()))
        process = self.launcher.spawn(
            "fastcollect.workers.env_worker:main",
            worker,
            [ring.segment.fd, self.board.segment.fd, state_fd, *line.worker_fds()],
            # One processor for each env worker, if there are enough of them.
            [self._processors[position]] if self.num_env_workers <= len(self._processors) else [],
            worker.ident,
        )
        self.env[worker.ident] = handle = EnvWorkerHandle(process, worker, position, ring, line, state_fd)
        handle.written = [written for _ in handle.written]

    def forget(self, worker: EnvWorkerHandle | ModelWorkerHandle) -> None:
        """Release a worker that is gone, an env worker once its blocks were all read."""
        self.gone += worker.counters()
        worker.release()
        if isinstance(worker, EnvWorkerHandle):
            del self.env[worker.process.ident]
        else:
            del self.models[worker.process.ident]
            self.exchange.forget_requests(worker.index)  # they are sent again, with what it had taken

    def start_model_worker(self, index: int) -> None:
        """Start the first model worker of this index, or the next one."""
        config, ident = self.config, self.launcher.new_ident()
        groups = len(self.ring_config.envs) * config.num_env_workers
        worker = ModelWorkerConfig(
            ident=ident,
            index=index,
            policy=config.policy,
            ring=self.ring_config,
            parameters=dict(self.policy.parameters),
            max_groups=1 if config.reproducible else -(-groups // config.num_model_workers),
            min_groups=config.min_groups,
            deadline=config.deadline,
            device=config.model_device,
            reproducible=config.reproducible,
            tokens=config.tokens,
        )
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        segment = Segment(COUNTERS_BYTES)
        with theirs:
            fds = [theirs.fileno(), self.board.segment.fd, segment.fd, *self.exchange.model_fds(index)]
            process = self.launcher.spawn("fastcollect.workers.model_worker:main", worker, fds, ident=ident)
        self.models[ident] = model = ModelWorkerHandle(process, f"model worker {index}", index, ours, segment)
        for each in self.in_order():
            line = (each.ring.segment.fd, *each.line.model_fds())
            model.tell("attach", each.process.ident, line)

    def assign_models(self, count: int) -> None:
        """Divide the env workers among the first ``count`` model workers."""
        for worker in self.in_order():
            if count and worker.model != worker.position % count:
                worker.model = worker.position % count
                worker.tell(Kind.ASSIGN, sequence=worker.model)

    def close(self) -> None:
        """Stop every worker, kill those that do not listen, release everything."""
        idents = {*self.env, *self.models}
        # Without a launcher there is nothing to tell or to wait for: its workers died with it.
        with contextlib.suppress(LauncherLostError):
            self.signal(signal.SIGCONT)  # a paused one would not hear
            for worker in self.in_order():
                worker.tell(Kind.STOP)
            for model in self.models.values():
                model.tell("stop")
            deadline = time.monotonic() + _CLOSE_SECONDS
            self.launcher.collect(idents)
            while left := idents - self.launcher.ended:
                if time.monotonic() > deadline:
                    for ident in left:
                        self.launcher.kill(ident)
                self.launcher.wait(0.1)
                self.launcher.collect(idents)
        for each in self.all():
            each.release()
        self.env, self.models = {}, {}
        self.exchange.close()
