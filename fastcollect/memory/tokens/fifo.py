"""Tokens through ``faster_fifo`` queues in shared memory.

Where they lie. faster_fifo allocates with ``multiprocessing.RawArray``, which reaches other processes by
fork only. Ours come from a zygote and are given descriptors, so the queues of an env worker lie in one
Segment: a pair, one to and one from the worker, for the collector and for each model worker. A queue's own
words are sizes, a mutex and conditions that are shared between processes; such must work at any address, so
they hold none, and a copy of the words of a fresh queue is a fresh queue.

What a kill does. faster_fifo's mutex has no owner: what held it when it was killed holds it for ever. So
nobody enters a queue without a second, robust mutex. Whoever comes after a dead owner makes the queue fresh,
whatever state it was in; the tokens in it are lost. Each queue joins two processes, so those are tokens to or
from the dead one, and the supervisor makes up for them: it counts the published blocks of a dead env worker
in its ring, and has asked again whatever a dead model worker was asked.

How one waits. These queues have no descriptor, and a process waits for several of them beside a socket. So
each has a bell, an eventfd, that a writer rings after every token, and sleeps in poll. A reader that finds a
queue taken passes it by: the writer is inside, and will ring. A worker that writes waits until the reader
has left. The collector does not, for a reader may be stopped there: it keeps its tokens and offers them
again later.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import queue
import select
import time
from collections import deque
from collections.abc import Sequence

import faster_fifo
import numpy as np

from fastcollect.memory.segment import FieldSpec, Layout, Segment
from fastcollect.memory.tokens.base import CAPACITY, TOKEN, EnvWorkerEnds, Kind, ModelWorkerEnds, Token
from fastcollect.memory.tokens.mutex import MUTEX_BYTES, RobustMutex, init_mutex

_TO_WORKER, _FROM_WORKER = range(2)
_HEADER_BYTES = 512  # at least what faster_fifo's own words take
_BUFFER_BYTES = CAPACITY * (TOKEN.size + ctypes.sizeof(ctypes.c_size_t))  # it adds a length to each
_BYTE = np.dtype(np.uint8)
_PAIR = Layout(
    {
        "mutex": FieldSpec((2, MUTEX_BYTES), _BYTE),
        "header": FieldSpec((2, _HEADER_BYTES), _BYTE),
        "fresh": FieldSpec((_HEADER_BYTES,), _BYTE),  # what a header is when its queue is empty
        "buffer": FieldSpec((2, _BUFFER_BYTES), _BYTE),
    }
)
_PATIENCE = 0.05  # seconds that the collector waits for a reader to leave
_PAUSE = 0.001  # seconds between two looks at a queue that a token does not fit into


class _Pairs:
    """The queues between one worker and its peers: pair 0 is the collector's, m + 1 model worker m's."""

    def __init__(self, count: int = 0, fd: int | None = None) -> None:
        nbytes = count * _PAIR.nbytes if fd is None else os.fstat(fd).st_size
        self.segment = Segment(nbytes, fd)
        for number in range(count):
            views = self._views(number)
            for mutex in views["mutex"]:
                init_mutex(mutex)
            views["fresh"][:] = views["header"][:] = _fresh_header()

    def _views(self, number: int) -> dict[str, np.ndarray]:
        return _PAIR.views(self.segment.buffer, number * _PAIR.nbytes)

    def queue(self, number: int, direction: int) -> _Queue:
        return _Queue(self._views(number), direction)


@functools.cache
def _fresh_header() -> np.ndarray:
    words = np.frombuffer(faster_fifo.Queue(_BUFFER_BYTES).queue_obj_buffer, np.uint8)
    return np.pad(words, (0, _HEADER_BYTES - len(words)))


@functools.cache
def _message_buffer() -> faster_fifo.TLSBuffer:
    """Where faster_fifo copies what it reads; one for all queues of this process, for none is read twice."""
    return faster_fifo.TLSBuffer(None)


class _Queue:
    """One faster_fifo.Queue of tokens."""

    def __init__(self, views: dict[str, np.ndarray], direction: int) -> None:
        self._header, self._fresh = views["header"][direction], views["fresh"]
        self._mutex = RobustMutex(views["mutex"][direction])
        # What Queue.__init__ does, with memory of ours.
        self._queue = faster_fifo.Queue.__new__(faster_fifo.Queue)
        self._queue.__dict__.update(
            max_size_bytes=_BUFFER_BYTES,
            max_bytes_to_read=_BUFFER_BYTES,
            queue_obj_buffer=(ctypes.c_ubyte * _HEADER_BYTES).from_buffer(self._header),
            shared_memory=(ctypes.c_ubyte * _BUFFER_BYTES).from_buffer(views["buffer"][direction]),
            message_buffer=_message_buffer(),
            last_error=None,
            loads=TOKEN.unpack,
            dumps=_dumps,
        )

    def _make_fresh(self) -> None:
        self._header[:] = self._fresh

    def put(self, token: Token, wait: bool) -> bool:
        """False: it is full, or, without ``wait``, its reader is inside."""
        if not self._mutex.acquire(wait, self._make_fresh):
            return False
        try:
            self._queue.put(token, block=False)
        except queue.Full:
            return False
        finally:
            self._mutex.release()
        return True

    def get(self) -> list[Token]:
        """Every token, none where the writer is inside."""
        # A look without the mutex: a token is counted before its writer rings.
        if not self._queue.qsize() or not self._mutex.acquire(False, self._make_fresh):
            return []
        tokens: list[Token] = []
        try:
            while self._queue.qsize():  # faster_fifo reads in parts until its buffer has grown
                tokens += self._queue.get_many(block=False)
        finally:
            self._mutex.release()
        return tokens


def _dumps(token: Token) -> bytes:
    return TOKEN.pack(*token)


def _new_bell() -> int:
    return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)


class FifoSender:
    """The writing end of one queue. patience: seconds to wait for its reader; None for ever."""

    def __init__(self, target: _Queue, bell: int, patience: float | None = None) -> None:
        self.bell = bell
        self._queue, self._patience = target, patience
        self.waiting: deque[Token] = deque()

    def send(self, kind: Kind, worker: int, group: int = 0, sequence: int = 0) -> None:
        """See Sender.send."""
        # Who already has tokens that were not taken does not wait again.
        patience = 0.0 if self.waiting and self._patience is not None else self._patience
        self.waiting.append((kind, worker, group, sequence))
        self.flush(patience)

    def flush(self, patience: float | None) -> None:
        """Put in what waits, as far as it goes."""
        start = None
        while self.waiting:
            done = self._queue.put(self.waiting[0], wait=patience is None)
            os.eventfd_write(self.bell, 1)  # also for a full one, which its reader may have passed by
            if done:
                self.waiting.popleft()
                continue
            start = time.monotonic() if start is None else start
            if patience is not None and time.monotonic() - start >= patience:
                return
            time.sleep(_PAUSE)


class FifoInbox:
    """Queues to read, the bell of the process, and what else it waits for.

    queues, senders: lists that their owner may change; senders are those whose tokens may wait.
    """

    def __init__(
        self, bell: int, others: Sequence[int], queues: list[_Queue], senders: Sequence[FifoSender] = ()
    ) -> None:
        self.queues = queues
        self._bell, self._senders = bell, senders
        self._poll = select.poll()
        for each in (bell, *others):
            self._poll.register(each, select.POLLIN)

    def wait(self, seconds: float | None) -> set[int]:
        """See Inbox.wait."""
        if any(sender.waiting for sender in self._senders):
            seconds = _PATIENCE if seconds is None else min(seconds, _PATIENCE)
        milliseconds = None if seconds is None else max(0.0, seconds) * 1000
        return {fd for fd, _ in self._poll.poll(milliseconds)}

    def read(self) -> list[Token]:
        """See Inbox.read."""
        for sender in self._senders:
            if sender.waiting:
                sender.flush(0.0)
        # Before the look, so that it rings for what comes after; a writer may have died before it rang.
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._bell)
        tokens: list[Token] = []
        for each in self.queues:
            tokens += each.get()
        return tokens


class FifoModelInbox(FifoInbox):
    """See ModelInbox."""

    def __init__(self, index: int, bell: int, others: Sequence[int]) -> None:
        super().__init__(bell, others, [])
        self._index = index
        self._requests: dict[int, tuple[_Queue, int]] = {}  # env worker -> its requests and its bell

    def attach(self, worker: int, fds: Sequence[int]) -> FifoSender:
        """See ModelInbox.attach."""
        pairs_fd, bell = fds
        pairs = _Pairs(fd=pairs_fd)
        pairs.segment.close()
        requests = pairs.queue(1 + self._index, _FROM_WORKER)
        self._requests[worker] = requests, bell
        self.queues.append(requests)
        return FifoSender(pairs.queue(1 + self._index, _TO_WORKER), bell)

    def detach(self, worker: int) -> None:
        """See ModelInbox.detach."""
        requests, bell = self._requests.pop(worker)
        self.queues.remove(requests)
        os.close(bell)


class FifoLine(FifoSender):
    """The collector's side of one env worker: its queues with everybody, and its bell."""

    def __init__(self, exchange: FifoExchange) -> None:
        self._exchange, self._pairs = exchange, _Pairs(1 + exchange.models)
        self._reports = self._pairs.queue(0, _FROM_WORKER)
        super().__init__(self._pairs.queue(0, _TO_WORKER), _new_bell(), _PATIENCE)
        exchange.reports.append(self._reports)
        exchange.lines.append(self)

    def worker_fds(self) -> list[int]:
        """See Line.worker_fds."""
        return [self._pairs.segment.fd, self.bell, *self._exchange.bells]

    def model_fds(self) -> tuple[int, ...]:
        """See Line.model_fds."""
        return self._pairs.segment.fd, self.bell

    def close(self) -> None:
        """See Line.close."""
        self._exchange.reports.remove(self._reports)
        self._exchange.lines.remove(self)
        self._pairs.segment.close()
        os.close(self.bell)


class FifoExchange:
    """See Exchange. bells: the collector's, then each model worker's. reports: queues to the collector."""

    shared = False

    def __init__(self, models: int) -> None:
        self.models = models
        self.bells = [_new_bell() for _ in range(1 + models)]
        self._pairs = [_Pairs(1) for _ in range(models)]  # of each model worker with the collector
        self.reports = [pairs.queue(0, _FROM_WORKER) for pairs in self._pairs]
        self.lines: list[FifoLine] = []

    def inbox(self, *others: int) -> FifoInbox:
        """See Exchange.inbox."""
        return FifoInbox(self.bells[0], others, self.reports, self.lines)

    def connect(self) -> FifoLine:
        """See Exchange.connect."""
        return FifoLine(self)

    def model_fds(self, index: int) -> list[int]:
        """See Exchange.model_fds."""
        return [self._pairs[index].segment.fd, self.bells[1 + index], self.bells[0]]

    def forget_requests(self, index: int) -> None:
        """See Exchange.forget_requests: each queue has room for them, and asking twice is harmless."""

    def close(self) -> None:
        """See Exchange.close."""
        for bell in self.bells:
            os.close(bell)
        for pairs in self._pairs:
            pairs.segment.close()

    @staticmethod
    def env_worker(fds: Sequence[int]) -> EnvWorkerEnds:
        """See Exchange.env_worker."""
        pairs_fd, bell, *bells = fds
        pairs = _Pairs(fd=pairs_fd)
        inbox = FifoInbox(bell, (), [pairs.queue(number, _TO_WORKER) for number in range(len(bells))])
        reports, *models = (
            FifoSender(pairs.queue(number, _FROM_WORKER), each) for number, each in enumerate(bells)
        )
        return EnvWorkerEnds(inbox, reports, models)

    @staticmethod
    def model_worker(index: int, fds: Sequence[int], *others: int) -> ModelWorkerEnds:
        """See Exchange.model_worker."""
        pairs_fd, bell, collector_bell = fds
        reports = FifoSender(_Pairs(fd=pairs_fd).queue(0, _FROM_WORKER), collector_bell)
        return ModelWorkerEnds(FifoModelInbox(index, bell, others), reports)
