"""Starts, watches, replaces and ends the workers of one collector.

Single-threaded: everything happens inside ``poll``, ``resize`` and ``close``. An env worker that is killed
is replaced by a new one, with a new number and a new ring, for the same environments; what it had published
stays readable, what it had not finished is counted as discarded. A model worker that is killed is replaced,
and the requests it may have swallowed are sent again. A worker that raises ends the run with its traceback.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import time
from collections.abc import Iterator

from fastcollect.board import WeightsBoard
from fastcollect.config import MAX_MODEL_WORKERS, CollectorConfig
from fastcollect.cpu import allowed_cpus, cpu_quota, idle_cpus
from fastcollect.env_worker import EnvWorkerConfig, groups_config
from fastcollect.envs.base import EnvSpec
from fastcollect.errors import CONFIG_EXIT_CODE, ConfigError, StallError, WorkerError
from fastcollect.handles import Deaths, EnvWorkerHandle, ModelWorkerHandle
from fastcollect.launcher import Exit, Launcher, LauncherLostError, Process
from fastcollect.memory import Segment
from fastcollect.model_worker import ModelWorkerConfig, send_control, stats_layout
from fastcollect.policies.base import Policy
from fastcollect.ring import Ring, RingConfig
from fastcollect.stats import Stats
from fastcollect.tokens import Inbox, Kind, Token, pipe

_CLOSE_SECONDS = 3.0
_LIVES_IN_VAIN = 3


class Supervisor:
    """See the module's text. ``env_workers`` holds every worker that may still have blocks to read."""

    def __init__(
        self,
        config: CollectorConfig,
        spec: EnvSpec,
        policy: Policy,
        ring: RingConfig,
        board: WeightsBoard,
        launcher: Launcher,
    ) -> None:
        self.config, self.spec, self.policy, self.ring_config = config, spec, policy, ring
        self.board, self.launcher = board, launcher
        self.env_workers: dict[int, EnvWorkerHandle] = {}
        self.model_workers: dict[int, ModelWorkerHandle] = {}
        self.deaths = Deaths()
        self.num_env_workers = 0
        self._leaving: dict[int, ModelWorkerHandle] = {}
        self._lives: dict[int, int] = {}
        self._backlog: list[Token] = []
        self._models_gone = Stats()
        self._tokens_in, self._tokens_out = pipe()
        self._inbox = Inbox(self._tokens_in, launcher.fd)
        # A quota is time on any processor; pinned workers would share a few with other containers.
        self._processors = idle_cpus() if cpu_quota() is None else []
        cpus = min(len(allowed_cpus()), MAX_MODEL_WORKERS)
        most = 0 if config.inline else max(config.num_model_workers, cpus)
        self._model_pipes = [pipe() for _ in range(most)]

    # Starting and ending.

    def start(self) -> None:
        """Start every worker and wait until all of them have built what they need."""
        for index in range(self.config.num_model_workers):
            self._start_model_worker(index)
        self._grow(self.config.num_env_workers)
        self._await_ready()

    def _await_ready(self) -> None:
        deadline = time.monotonic() + self.config.stall_seconds
        while not all(w.ready for w in (*self.env_workers.values(), *self.model_workers.values())):
            self._backlog += self._poll(0.5)
            if time.monotonic() > deadline:
                raise self.stalled()

    def close(self) -> None:
        """Stop every worker, kill those that do not listen, release everything."""
        with contextlib.suppress(LauncherLostError):
            self.signal_workers(signal.SIGCONT)  # a paused one would not hear
        for worker in self.env_workers.values():
            if worker.alive:
                worker.tell(Kind.STOP)
        for model in self.model_workers.values():
            self._control(model, "stop")
        idents = self._idents()
        # Without a launcher there is nothing to wait for: its workers died with it.
        with contextlib.suppress(LauncherLostError):
            if not self._ended(idents, _CLOSE_SECONDS):
                for ident in idents - self.launcher.ended:
                    self.launcher.kill(ident)
                self._ended(idents, None)
        self.release()

    def _idents(self) -> set[int]:
        models = (m.process.ident for m in self.model_workers.values())
        return {*self.env_workers, *self._leaving, *models}

    def _ended(self, idents: set[int], seconds: float | None) -> bool:
        """Wait until all of these workers are gone, or until time is up."""
        deadline = math.inf if seconds is None else time.monotonic() + seconds
        self.launcher.collect(idents)
        while not idents <= self.launcher.ended and time.monotonic() < deadline:
            self.launcher.wait(0.1)
            self.launcher.collect(idents)
        return idents <= self.launcher.ended

    def release(self) -> None:
        """Close every descriptor of workers that are gone."""
        for worker in self.env_workers.values():
            worker.release()
        for model in (*self.model_workers.values(), *self._leaving.values()):
            model.release()
        self.env_workers, self.model_workers, self._leaving = {}, {}, {}
        for ends in (*self._model_pipes, (self._tokens_in, self._tokens_out)):
            for fd in ends:
                os.close(fd)
        self._model_pipes = []

    # Events.

    def poll(self, seconds: float | None) -> list[Token]:
        """Wait for tokens or deaths; returns the PUBLISHED tokens. Raises WorkerError, LauncherLostError."""
        tokens = self._backlog + self._poll(0 if self._backlog else seconds)
        self._backlog = []
        return tokens

    def _poll(self, seconds: float | None) -> list[Token]:
        self._inbox.wait(seconds)
        exits = self.launcher.collect(self._idents())
        # Read after the exits: what a dead worker published is in the pipe already.
        published = list(self._published())
        for event in exits:
            self._on_exit(event)
        return published

    def _published(self) -> Iterator[Token]:
        for token in self._inbox.read():
            kind, ident, group, _ = token
            if kind == Kind.READY:
                self._on_ready(ident)
            elif kind == Kind.PUBLISHED:
                worker = self.env_workers[ident]
                worker.held += 1
                worker.last_seen = time.monotonic()
                worker.rows += self.ring_config.envs[group] * self.ring_config.length
                self.deaths.without_block[worker.position] = 0
                yield token

    def _on_ready(self, ident: int) -> None:
        if ident >= 0:
            self.env_workers[ident].ready = True
            self.env_workers[ident].last_seen = time.monotonic()
            return
        # A model worker signs with -1 - index; one that was told to leave meanwhile is not there.
        if model := self.model_workers.get(-1 - ident):
            model.ready = True
        if all(model.ready for model in self.model_workers.values()):
            self._assign_models(len(self.model_workers))

    def _on_exit(self, event: Exit) -> None:
        if event.ident in self._leaving:
            self._on_model_left(self._leaving.pop(event.ident), event.code)
        elif event.ident in self.env_workers:
            self._on_env_worker_exit(self.env_workers[event.ident], event.code)
        else:
            for model in self.model_workers.values():
                if model.process.ident == event.ident:
                    self._on_model_worker_exit(model, event.code)
                    return

    def _on_env_worker_exit(self, worker: EnvWorkerHandle, code: int) -> None:
        worker.alive = False
        for model in self.model_workers.values():
            self._control(model, "detach", worker.process.ident)
        if worker.retiring and code == 0:
            return
        last_env = worker.first_env + self.config.num_envs - 1
        name = f"env worker {worker.process.ident} (environments {worker.first_env} to {last_env})"
        _raise_last_words(worker.process, code, name)
        if self.config.lockstep:
            raise WorkerError(
                f"env worker {worker.process.ident} died of {_how(code)}; a replacement would not repeat its "
                "steps, so a lockstep run ends here"
            )
        position = worker.position
        self.deaths.discarded += int(worker.ring.rows.sum()) - worker.rows
        self.deaths.env_workers += 1
        self.deaths.without_block[position] = self.deaths.without_block.get(position, 0) + 1
        if self.deaths.without_block[position] >= _LIVES_IN_VAIN:
            raise WorkerError(
                f"{name} and its replacements died {_LIVES_IN_VAIN} times in a row without finishing a "
                f"block, the last one of {_how(code)}; is the memory sufficient?"
            )
        if position < self.num_env_workers and not worker.retiring:
            self._start_env_worker(position)

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
        self._models_gone += model.counters()
        model.release()
        del self.model_workers[model.index]
        Inbox(self._model_pipes[model.index][0]).read()  # sent again below, with those it had taken
        self._start_model_worker(model.index)
        self._resend(model.index)

    def check_stalls(self) -> None:
        """Raises StallError if a worker that could go on has not made one step for ``stall_seconds``."""
        latest = time.monotonic() - self.config.stall_seconds
        for worker in self.env_workers.values():
            worker.look()
            if worker.alive and worker.last_seen < latest and not worker.blocked:
                raise self.stalled()

    def stalled(self) -> StallError:
        """The error for a run in which a worker stands still: every worker's stack."""
        processes = {
            f"env worker {w.process.ident}": w.process for w in self.env_workers.values() if w.alive
        } | {f"model worker {m.index}": m.process for m in self.model_workers.values()}
        for process in processes.values():
            self.launcher.kill(process.ident, signal.SIGUSR1)
        time.sleep(0.5)  # they write their stacks
        stacks = "\n\n".join(f"{name}:\n{p.last_words()}" for name, p in processes.items())
        return StallError(f"a worker stood still for {self.config.stall_seconds:g} s\n\n{stacks}")

    @property
    def max_model_workers(self) -> int:
        """As many request pipes as every env worker was given."""
        return len(self._model_pipes)

    def model_stats(self) -> Stats:
        """Counters of the model workers, those that are gone included."""
        total = self._models_gone
        for model in (*self.model_workers.values(), *self._leaving.values()):
            total += model.counters()
        return total

    def signal_workers(self, signum: int) -> None:
        """Send a signal to every worker; what they were silent before does not count as a stall."""
        for worker in self.env_workers.values():
            if worker.alive:
                self.launcher.kill(worker.process.ident, signum)
                worker.last_seen = time.monotonic()
        for model in self.model_workers.values():
            self.launcher.kill(model.process.ident, signum)

    # Env workers.

    def resize(self, num_env_workers: int, num_model_workers: int) -> None:
        """Change the numbers of workers while they run; leaving env workers finish their blocks first."""
        before = len(self.model_workers)
        for index in range(before, num_model_workers):
            self._start_model_worker(index)
        # Those that leave are asked no more from now on, those that start once all are ready.
        self._assign_models(min(num_model_workers, before))
        for index in range(num_model_workers, len(self.model_workers)):
            model = self.model_workers.pop(index)
            self._leaving[model.process.ident] = model
            self._control(model, "stop")
        for worker in self.env_workers.values():
            if worker.position >= num_env_workers and worker.alive and not worker.retiring:
                worker.retiring = True
                worker.tell(Kind.RETIRE)
        self._grow(num_env_workers)

    def _grow(self, num_env_workers: int) -> None:
        first, self.num_env_workers = self.num_env_workers, num_env_workers
        for position in range(first, num_env_workers):
            self._start_env_worker(position)

    def _start_env_worker(self, position: int) -> None:
        config, ident = self.config, self.launcher.new_ident()
        life = self._lives.get(position, -1) + 1
        self._lives[position] = life
        ring, inbox = Ring(self.ring_config), pipe()
        model = position % max(1, len(self.model_workers))
        for each in self.model_workers.values():
            self._control(each, "attach", ident, (ring.segment.fd, inbox[1]))
        groups = groups_config(config, self.policy, self.ring_config, position, life)
        writers = [write for _, write in self._model_pipes]
        process = self.launcher.spawn(
            "fastcollect.env_worker:main",
            EnvWorkerConfig(ident=ident, groups=groups, inline=config.inline, model=model),
            [ring.segment.fd, self.board.segment.fd, inbox[0], self._tokens_out, *writers],
            self._cpus(position, self.num_env_workers),
            ident,
        )
        self.env_workers[ident] = EnvWorkerHandle(
            process, position, life, groups.first_env, ring, inbox, model
        )

    def _cpus(self, position: int, workers: int) -> list[int]:
        """One processor for each env worker, if there are enough of them."""
        return [self._processors[position]] if workers <= len(self._processors) else []

    def forget(self, worker: EnvWorkerHandle) -> None:
        """Release a worker that is gone and whose blocks were all read."""
        worker.release()
        del self.env_workers[worker.process.ident]

    # Model workers.

    def _start_model_worker(self, index: int) -> None:
        config = self.config
        groups = len(self.ring_config.envs) * config.num_env_workers
        worker = ModelWorkerConfig(
            index=index,
            spec=self.spec,
            policy=config.policy,
            ring=self.ring_config,
            parameters=dict(self.policy.parameters),
            extras=dict(self.policy.extras),
            max_groups=1 if config.lockstep else -(-groups // config.num_model_workers),
            min_groups=config.min_groups,
            deadline=config.deadline,
            device=config.model_device,
            lockstep=config.lockstep,
        )
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stats = Segment(stats_layout().nbytes)
        with theirs:
            fds = [theirs.fileno(), self._model_pipes[index][0], self.board.segment.fd, stats.fd]
            process = self.launcher.spawn("fastcollect.model_worker:main", worker, [*fds, self._tokens_out])
        views = stats_layout().views(stats.buffer)
        handle = ModelWorkerHandle(process, index, ours, stats, views["times"], views["counts"])
        self.model_workers[index] = handle
        for env_worker in self.env_workers.values():
            if env_worker.alive:
                fds = (env_worker.ring.segment.fd, env_worker.inbox[1])
                self._control(handle, "attach", env_worker.process.ident, fds)

    def _control(self, model: ModelWorkerHandle, op: str, ident: int = 0, fds: tuple[int, ...] = ()) -> None:
        # A dead one is replaced, and its replacement is told everything anew.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            send_control(model.control, op, ident, fds)

    def _assign_models(self, count: int) -> None:
        for worker in self.env_workers.values():
            if count and worker.alive and worker.model != worker.position % count:
                worker.model = worker.position % count
                worker.tell(Kind.ASSIGN, sequence=worker.model)

    def _on_model_left(self, model: ModelWorkerHandle, code: int) -> None:
        """A request that reached its pipe after its last look is sent again, to the one now assigned."""
        _raise_last_words(model.process, code, f"model worker {model.index}")
        self._models_gone += model.counters()
        model.release()
        Inbox(self._model_pipes[model.index][0]).read()
        self._resend(model.index)

    def _resend(self, model: int) -> None:
        """Whatever this model worker was asked and did not answer is asked again, of whoever is assigned."""
        for worker in self.env_workers.values():
            if worker.alive:
                worker.tell(Kind.RESEND, sequence=model)


def _raise_last_words(process: Process, code: int, name: str) -> None:
    """What a worker that ended by itself, not by a signal, left as its reason."""
    words = process.last_words()
    if code == CONFIG_EXIT_CODE and words:
        raise ConfigError([words])
    if code > 0:
        raise WorkerError(words or f"{name} ended with exit code {code} and said nothing")


def _how(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
