"""The collector's side of its workers: what it holds of each while it lives, and what it counts."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass, field

import numpy as np

from fastcollect.control.launcher import Process
from fastcollect.control.stats import Stats
from fastcollect.memory.latency import Latencies
from fastcollect.memory.ring import Ring
from fastcollect.memory.segment import Segment
from fastcollect.memory.tokens import Kind, Line


@dataclass
class EnvWorkerHandle:
    """The collector's side of one env worker.

    position: 0 .. N - 1. life: which of the workers at this position. first_env: the global index of its
    first environment. state_fd: a memfd through which states travel. model: the model worker it asks.
    written, held, unread: for each group, how many blocks it has published, those before it was restored
    included, and how many of them were not given back; how many of all groups were not handed out. ready:
    whether it did what it was last asked, to start or to save. steps: done when last looked at. last_seen:
    when it last got on, or was given a block back.
    """

    process: Process
    position: int
    life: int
    first_env: int
    ring: Ring
    line: Line
    state_fd: int
    model: int
    written: list[int]
    held: list[int]
    unread: int = 0
    ready: bool = False
    alive: bool = True
    retiring: bool = False
    steps: int = 0
    last_seen: float = field(default_factory=time.monotonic)

    @property
    def name(self) -> str:
        """What errors call it."""
        return f"env worker {self.process.ident}"

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
        if steps != self.steps:
            self.steps, self.last_seen = steps, time.monotonic()
        config = self.ring.config
        waits = sum(self.held) == config.capacity * len(config.envs)  # for the learner, with every block
        return self.alive and self.last_seen < since and not waits

    def counters(self) -> Stats:
        """What it counted so far."""
        stepping, waiting_actions, inferring, waiting_learner = self.ring.times.tolist()
        return Stats(
            env_steps=int(self.ring.rows.sum()),
            stepping=stepping,
            waiting_actions=waiting_actions,
            inferring_inline=inferring,
            waiting_learner=waiting_learner,
            action_latency=Latencies(tuple(self.ring.latencies.tolist())),
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
    index: int
    control: socket.socket
    segment: Segment
    stats: np.ndarray
    ready: bool = False
    leaving: bool = False

    @property
    def name(self) -> str:
        """What errors call it."""
        return f"model worker {self.index}"

    def counters(self) -> Stats:
        """What it counted so far."""
        inferring, waiting, batches, rows = self.stats.tolist()
        return Stats(
            inferring=inferring, waiting_requests=waiting, batches=int(batches), batch_rows=int(rows)
        )

    def release(self) -> None:
        """Close its descriptors."""
        self.control.close()
        self.segment.close()
        os.close(self.process.words_fd)
