"""Tokens say which slot is ready; arrays never travel. Their protocol is here; there are two carriers of it.

``pipes`` (the default): the kernel owns the queues. A process that is killed at any instant loses nothing
that it sent and holds up nobody. Limit: all env workers share the pipe to the collector, which holds
CAPACITY tokens; ``CollectorConfig`` refuses what would need more.

``faster-fifo``: queues in shared memory, each guarded by a mutex. A process that is killed inside one would
lock it for ever; here the kernel tells the next process that comes, which empties the queue and goes on.
What was lost is made good: requests and answers are asked for again as they are after any death of a model
worker, and published blocks are counted in the ring itself. A worker that is stopped inside a queue, not
killed, is a StallError. Limits: Linux with robust mutexes; CAPACITY tokens, and 200 KiB of memory, for each
pair of processes; a reader looks into the queue of every peer, so its cost grows with their number.

``python -m bench.tokens`` compares the two.
"""

import enum
import select
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, Protocol

from fastcollect.support.errors import ConfigError

TOKEN = struct.Struct("<hihq")
CAPACITY = 65536 // TOKEN.size
"""Tokens that one channel holds; who sends more without an answer may wait for ever."""

TokenChannel = Literal["pipes", "faster-fifo"]
"""What can carry the tokens."""


class Kind(enum.IntEnum):
    """What a token says. Its fields are (kind, worker, group, sequence)."""

    REQUEST = 1  # env worker -> model worker: actions wanted for this group's request number
    ANSWER = 2  # model worker -> env worker: they are in the slots
    PUBLISHED = 3  # env worker -> collector: this group's block number is complete
    FREED = 4  # collector -> env worker: blocks below this number may be overwritten
    READY = 5  # any worker -> collector: built, warmed up
    RESEND = 6  # collector -> env worker: ask again for what this model worker (sequence) was asked
    ASSIGN = 7  # collector -> env worker: ask this model worker (sequence) from now on
    RETIRE = 8  # collector -> env worker: finish the blocks at hand, publish them, leave
    STOP = 9  # collector -> any worker: leave now
    SAVE = 10  # collector -> env worker: write the state of your groups to your state file
    SAVED = 11  # env worker -> collector: it is there, or why there is none


Token = tuple[int, int, int, int]


class PeerGoneError(RuntimeError):
    """Nobody can ever read what is sent."""


class Sender(Protocol):
    """The writing end of a channel."""

    def send(self, kind: Kind, worker: int, group: int = 0, sequence: int = 0) -> None:
        """Put one token in. A worker waits while there is no room. Raises PeerGoneError."""


class Inbox(ABC):
    """Everything that one process is sent, in order from each sender, and what else it waits for.

    fds: descriptors that become readable when there may be a token, and any others to wait for.
    """

    def __init__(self, *fds: int) -> None:
        self._poll = select.poll()
        for fd in fds:
            self._poll.register(fd, select.POLLIN)

    def wait(self, seconds: float | None) -> set[int]:
        """Sleep until a token may be there, another descriptor is readable, or time is up (None: for ever).

        Returns the readable descriptors; it may also return early, with none of them.
        """
        milliseconds = None if seconds is None else max(0.0, seconds) * 1000
        return {fd for fd, _ in self._poll.poll(milliseconds)}

    @abstractmethod
    def read(self) -> Iterable[Token]:
        """Every token that waits, without blocking."""


class ModelInbox(Inbox):
    """A model worker's inbox, which learns of env workers while it runs."""

    @abstractmethod
    def attach(self, worker: int, fds: Sequence[int]) -> Sender:
        """Take in what ``Line.model_fds`` gave, and own it; returns the way to answer that env worker."""

    @abstractmethod
    def detach(self, worker: int) -> None:
        """Forget an env worker that is gone."""


class Line(Sender, Protocol):
    """The collector's side of one env worker; ``send`` never blocks for a worker that stands still."""

    def worker_fds(self) -> list[int]:
        """What the env worker needs to be given."""

    def model_fds(self) -> tuple[int, ...]:
        """What any model worker needs to be given to exchange tokens with this env worker."""

    def close(self) -> None:
        """Release it, once what the worker had sent is read."""


class EnvWorkerEnds(NamedTuple):
    """An env worker's side. reports: to the collector. models: to each model worker, by index."""

    inbox: Inbox
    reports: Sender
    models: Sequence[Sender]


class Exchange(Protocol):
    """The channels of one collector: from and to every env worker, and between env and model workers.

    models: for how many model workers there is a place. shared: whether the reports of all workers share
    one channel, and so its CAPACITY. Nothing but descriptors travels to the workers.
    """

    models: int
    shared: bool

    def __init__(self, models: int) -> None:
        """In the collector's process."""

    def inbox(self, *others: int) -> Inbox:
        """What all workers send to the collector; it waits for ``others``, too."""

    def connect(self) -> Line:
        """Channels for one more env worker."""

    def model_fds(self, index: int) -> list[int]:
        """What the model worker of this index needs to be given; its successor is given the same."""

    def forget_requests(self, index: int) -> None:
        """Make room: what waits for a model worker that is gone will be asked for again."""

    def close(self) -> None:
        """Release everything but the lines."""

    @staticmethod
    def env_worker(fds: Sequence[int]) -> EnvWorkerEnds:
        """In the env worker's process, from ``Line.worker_fds``."""

    @staticmethod
    def model_worker(index: int, fds: Sequence[int], *others: int) -> tuple[ModelInbox, Sender]:
        """In the model worker's process, from ``model_fds``: its inbox, and the way to the collector.

        The inbox waits for ``others``, too.
        """


def exchange(channel: TokenChannel) -> type[Exchange]:
    """The implementation of this name. Raises ConfigError where its package cannot be imported."""
    try:
        if channel == "pipes":
            from fastcollect.memory.tokens.pipes import PipeExchange

            return PipeExchange
        from fastcollect.memory.tokens.fifo import FifoExchange

        return FifoExchange
    except ImportError as error:
        raise ConfigError([f"tokens is {channel!r}, which cannot be imported here: {error}"]) from error
