"""Tokens say which slot is ready; arrays never travel. One protocol (``base``), two carriers of it.

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

from __future__ import annotations

from fastcollect.memory.tokens.base import (
    CAPACITY,
    EnvWorkerEnds,
    Exchange,
    Inbox,
    Kind,
    Line,
    ModelInbox,
    ModelWorkerEnds,
    PeerGoneError,
    Sender,
    Token,
    TokenChannel,
)
from fastcollect.memory.tokens.pipes import PipeExchange
from fastcollect.support.errors import ConfigError

__all__ = [
    "CAPACITY",
    "EnvWorkerEnds",
    "Exchange",
    "Inbox",
    "Kind",
    "Line",
    "ModelInbox",
    "ModelWorkerEnds",
    "PeerGoneError",
    "Sender",
    "Token",
    "TokenChannel",
    "exchange",
]


def exchange(channel: TokenChannel) -> type[Exchange]:
    """The implementation of this name. Raises ConfigError where its package cannot be imported."""
    if channel == "pipes":
        return PipeExchange
    try:
        from fastcollect.memory.tokens.fifo import FifoExchange
    except ImportError as error:
        raise ConfigError([f"tokens is {channel!r}, which cannot be imported here: {error}"]) from error
    return FifoExchange
