"""Two ways to carry 16-byte tokens between processes, behind one face, for ``bench.tokens``."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import struct
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkProcess
from typing import Any, Protocol

from fastcollect.memory.tokens import Inbox, Token, pipe, send

_fork = multiprocessing.get_context("fork")
_TOKEN = struct.Struct("<iiii")


class Channel(Protocol):
    """One direction; made before the fork, then used by one reader and any number of writers."""

    def send(self, token: Token) -> None:
        """Put one token in; waits while there is no room."""

    def receive_one(self, seconds: float) -> Token | None:
        """The next token, or None after ``seconds``."""

    def receive(self, seconds: float) -> list[Token]:
        """Every token that waits, at least one; none after ``seconds``."""

    def close(self) -> None:
        """Free it."""


class PipeChannel:
    """The engine's: ``fastcollect.memory.tokens``."""

    def __init__(self) -> None:
        self._read, self._write = pipe()
        self._inbox = Inbox(self._read)

    def send(self, token: Token) -> None:
        """See Channel.send."""
        send(self._write, *token)

    def receive_one(self, seconds: float) -> Token | None:
        """See Channel.receive_one."""
        tokens = self.receive(seconds)
        return tokens[0] if tokens else None

    def receive(self, seconds: float) -> list[Token]:
        """See Channel.receive."""
        self._inbox.wait(seconds)
        return list(self._inbox.read())

    def close(self) -> None:
        """Close both ends in this process."""
        os.close(self._read)
        os.close(self._write)


class FifoChannel:
    """faster_fifo.Queue, with the same 16 bytes for a token instead of a pickle, to do it justice."""

    def __init__(self) -> None:
        from faster_fifo import Queue

        self._queue = Queue(loads=_TOKEN.unpack, dumps=lambda token: _TOKEN.pack(*token))

    def send(self, token: Token) -> None:
        """See Channel.send."""
        while True:
            with contextlib.suppress(queue.Full):
                self._queue.put(token, timeout=1.0)
                return

    def receive_one(self, seconds: float) -> Token | None:
        """See Channel.receive_one."""
        try:
            return self._queue.get(timeout=seconds)
        except queue.Empty:
            return None

    def receive(self, seconds: float) -> list[Token]:
        """See Channel.receive."""
        try:
            return self._queue.get_many(timeout=seconds)
        except queue.Empty:
            return []

    def close(self) -> None:
        """Its memory goes with the object."""


CHANNELS: Mapping[str, Callable[[], Channel]] = {"pipe": PipeChannel, "faster_fifo": FifoChannel}


def fork_partner(target: Callable[..., None], *args: Any) -> ForkProcess:
    """Start a process that uses channels made before. Ctrl-C ends it without a word; its parent reports."""
    process = _fork.Process(target=_be_partner, args=(target, *args), daemon=True)
    process.start()
    return process


def _be_partner(target: Callable[..., None], *args: Any) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    target(*args)
