"""The collector's side of its workers: what it holds of each while it lives, and what it counts."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from dataclasses import dataclass

from fastcollect.control.launcher import Process
from fastcollect.control.stats import Stats
from fastcollect.memory.latency import Latencies
from fastcollect.memory.ring import Ring
from fastcollect.memory.segment import Segment
from fastcollect.memory.tokens import Kind, Line
from fastcollect.workers.group import EnvWorkerConfig
from fastcollect.workers.model_worker import model_counters


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
        """Whether it could go on, and made no step since it was last seen at that time or before."""
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
        inferring, waiting, batches, rows = model_counters(self.segment).tolist()
        return Stats(
            inferring=inferring, waiting_requests=waiting, batches=int(batches), batch_rows=int(rows)
        )

    def release(self) -> None:
        """Close its descriptors."""
        self.control.close()
        self.segment.close()
        os.close(self.process.words_fd)
