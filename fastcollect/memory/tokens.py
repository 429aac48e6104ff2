"""Tokens: sixteen bytes that say which slot is ready, carried by pipes.

Arrays never travel, tokens do. A pipe is a queue that the kernel owns: a write below PIPE_BUF is atomic,
one read takes every waiting token, and a process that is killed at any instant leaves no lock behind, as
one that dies inside a user-space queue's mutex does. ``python -m bench.tokens`` compares the two.
"""

from __future__ import annotations

import enum
import os
import select
import struct
from collections.abc import Iterable

_TOKEN = struct.Struct("<hihq")
_READ_BYTES = 65536  # the pipe's capacity: whole tokens, since every write is a multiple of one
CAPACITY = _READ_BYTES // _TOKEN.size
"""Tokens that fit into a pipe; who sends more without an answer may wait for ever."""


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


def pipe() -> tuple[int, int]:
    """(read end, write end); the read end never blocks, the write end does."""
    read, write = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(read, False)
    return read, write


class PeerGoneError(RuntimeError):
    """Nobody can ever read this pipe."""


def send(fd: int, kind: Kind, worker: int, group: int = 0, sequence: int = 0) -> None:
    """Put one token into a pipe. Raises PeerGoneError."""
    try:
        os.write(fd, _TOKEN.pack(kind, worker, group, sequence))
    except BrokenPipeError as error:
        raise PeerGoneError from error


class Inbox:
    """The reading end of one pipe, with whatever else the process waits for."""

    def __init__(self, fd: int, *others: int) -> None:
        self.fd = fd
        self._poll = select.poll()
        for each in (fd, *others):
            self._poll.register(each, select.POLLIN)

    def wait(self, seconds: float | None) -> set[int]:
        """Block in the kernel until a descriptor is readable or time is up (None: for ever)."""
        milliseconds = None if seconds is None else max(0.0, seconds) * 1000
        return {fd for fd, _ in self._poll.poll(milliseconds)}

    def read(self) -> Iterable[Token]:
        """Every token that waits, without blocking."""
        try:
            return _TOKEN.iter_unpack(os.read(self.fd, _READ_BYTES))
        except BlockingIOError:
            return ()
