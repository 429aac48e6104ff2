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
from fastcollect.memory.tokens import Kind, Line, Token


@dataclass
class EnvWorkerHandle:
    """The collector's side of one env worker.

    position: 0 .. N - 1. life: which of the workers at this position. first_env: the global index of its
    first environment. state_fd: a memfd through which states travel. model: the model worker it asks.
    written, held: for each group, how many blocks it has published, those before it was restored included,
    and how many of them were not given back. saving: whether it was asked for its state. rows: steps
    published so far. steps: done when last looked at. last_seen: when it last got on, or was given a block
    back.
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
    ready: bool = False
    alive: bool = True
    saving: bool = False
    retiring: bool = False
    rows: int = 0
    steps: int = 0
    last_seen: float = field(default_factory=time.monotonic)

    def tell(self, kind: Kind, group: int = 0, sequence: int = 0) -> None:
        """Put a token into its inbox; whether it still lives does not matter."""
        self.line.send(kind, self.process.ident, group, sequence)

    def free(self, group: int, number: int) -> None:
        """Give block ``number`` back to it."""
        self.held[group] -= 1
        self.last_seen = time.monotonic()
        self.tell(Kind.FREED, group, number + 1)

    def untold(self) -> list[Token]:
        """PUBLISHED for each complete block of a dead worker whose own token was lost, or never sent."""
        return [
            (Kind.PUBLISHED, self.process.ident, group, number)
            for group, end in enumerate(self.ring.published.tolist())
            for number in range(self.written[group], end)
        ]

    def counters(self) -> Stats:
        """What it counted so far."""
        stepping, waiting_actions, inferring, waiting_learner = (float(x) for x in self.ring.times)
        return Stats(
            env_steps=int(self.ring.rows.sum()),
            stepping=stepping,
            waiting_actions=waiting_actions,
            inferring_inline=inferring,
            waiting_learner=waiting_learner,
            action_latency=Latencies(tuple(self.ring.latencies.tolist())),
        )

    def look(self) -> None:
        """Note whether it got on."""
        steps = int(self.ring.rows.sum())
        if steps != self.steps:
            self.steps, self.last_seen = steps, time.monotonic()

    @property
    def blocked(self) -> bool:
        """Whether every block of its rings waits for the learner."""
        return sum(self.held) == self.ring.config.capacity * len(self.ring.config.envs)

    def release(self) -> None:
        """Close its descriptors; the ring stays mapped while blocks of it are read."""
        self.line.close()
        for fd in (self.state_fd, self.process.words_fd):
            os.close(fd)
        self.ring.segment.close()


@dataclass
class ModelWorkerHandle:
    """The collector's side of one model worker; the way to ask it outlives it."""

    process: Process
    index: int
    control: socket.socket
    stats: Segment
    times: np.ndarray
    counts: np.ndarray
    ready: bool = False

    def counters(self) -> Stats:
        """What it counted so far."""
        return Stats(
            inferring=float(self.times[0]),
            waiting_requests=float(self.times[1]),
            batches=int(self.counts[0]),
            batch_rows=int(self.counts[1]),
        )

    def release(self) -> None:
        """Close its descriptors."""
        self.control.close()
        self.stats.close()
        os.close(self.process.words_fd)


@dataclass
class Deaths:
    """How many workers were replaced, and how many environment steps were lost in unfinished blocks."""

    env_workers: int = 0
    model_workers: int = 0
    discarded: int = 0
    without_block: dict[int, int] = field(default_factory=dict)  # position -> lives in a row
    without_batch: dict[int, int] = field(default_factory=dict)  # model worker's index -> lives in a row
