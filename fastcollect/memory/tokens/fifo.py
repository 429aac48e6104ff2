"""Tokens through ``faster_fifo`` queues in shared memory.

Where they lie. faster_fifo allocates with ``multiprocessing.RawArray``, which reaches other processes by
fork only. Ours come from a zygote and are given descriptors, so the queues of an env worker lie in one
Segment: a pair, one to and one from the worker, for the collector and for each model worker. A queue's own
words are sizes, a mutex and conditions that are shared between processes; such must work at any address, so
they hold none, and a copy of the words of a fresh queue is a fresh queue.

What a kill does. faster_fifo's mutex has no owner: what held it when it was killed holds it for ever. So
nobody enters a queue without a second, robust mutex of POSIX: when its owner is killed, the kernel gives it
to the next one that asks, and says so (pthread_mutexattr_setrobust(3)). Whoever comes after a dead owner
makes the queue fresh, whatever state it was in; the tokens in it are lost. Each queue joins two processes, so
those are tokens to or from the dead one, and the supervisor makes up for them: it counts the published blocks
of a dead env worker in its ring, and has asked again whatever a dead model worker was asked.

How one waits. These queues have no descriptor, and a process waits for several of them beside a socket. So
each has a bell, an eventfd, that a writer rings after every token, and sleeps in poll. A reader that finds a
queue taken passes it by: the writer is inside, and will ring. A worker that writes waits until the reader
has left. The collector does not, for a reader may be stopped there: it keeps its tokens and offers them
again later.
"""

import contextlib
import ctypes
import errno
import os
import queue
import time
from collections import deque
from collections.abc import Collection, Sequence

import faster_fifo
import numpy as np

from fastcollect.memory.segment import FieldSpec, Layout, Segment
from fastcollect.memory.tokens import CAPACITY, TOKEN, EnvWorkerEnds, Inbox, Kind, ModelInbox, Token

_TO_WORKER, _FROM_WORKER = range(2)
_MUTEX_BYTES = 64  # at least what a pthread_mutex_t or a pthread_mutexattr_t takes, on every platform
_HEADER_BYTES = 512  # at least what faster_fifo's own words take
_BUFFER_BYTES = CAPACITY * (TOKEN.size + ctypes.sizeof(ctypes.c_size_t))  # it adds a length to each
_BYTE = np.dtype(np.uint8)
_PAIR = Layout(
    {
        "mutex": FieldSpec((2, _MUTEX_BYTES), _BYTE),
        "header": FieldSpec((2, _HEADER_BYTES), _BYTE),
        "fresh": FieldSpec((_HEADER_BYTES,), _BYTE),  # what a header is when its queue is empty
        "buffer": FieldSpec((2, _BUFFER_BYTES), _BYTE),
    }
)
_PROCESS_SHARED = _ROBUST = 1
_libc = ctypes.PyDLL(None)  # keeps Python's own lock, for calls that return at once
_lock = ctypes.CDLL(None).pthread_mutex_lock  # may wait, and lets other threads run
_BELL = os.EFD_CLOEXEC | os.EFD_NONBLOCK
_PATIENCE = 0.05  # seconds that the collector waits for a reader to leave
_PAUSE = 0.001  # seconds between two looks at a queue that a token does not fit into
_messages = faster_fifo.TLSBuffer(None)  # where it copies what is read, from one queue after another


def _pairs(count: int) -> Segment:
    """The queues between one worker and its peers: pair 0 is the collector's, m + 1 model worker m's."""
    pairs = Segment(count * _PAIR.nbytes)
    words = np.frombuffer(faster_fifo.Queue(_BUFFER_BYTES).queue_obj_buffer, np.uint8)
    for number in range(count):
        views = _views(pairs, number)
        for mutex in views["mutex"]:
            _init_mutex(ctypes.c_void_p(mutex.ctypes.data))
        views["fresh"][: len(words)] = views["header"][:, : len(words)] = words
    return pairs


def _views(pairs: Segment, number: int) -> dict[str, np.ndarray]:
    return _PAIR.views(pairs.buffer[number * _PAIR.nbytes :])


def _init_mutex(address: ctypes.c_void_p) -> None:
    """Make a robust mutex of _MUTEX_BYTES of shared memory, once, before anybody else uses it."""
    attributes = ctypes.create_string_buffer(_MUTEX_BYTES)
    _check(_libc.pthread_mutexattr_init(attributes))
    _check(_libc.pthread_mutexattr_setpshared(attributes, _PROCESS_SHARED))
    _check(_libc.pthread_mutexattr_setrobust(attributes, _ROBUST))
    _check(_libc.pthread_mutex_init(address, attributes))


def _check(code: int) -> None:
    if code:
        raise OSError(code, os.strerror(code))


class _Queue:
    """One faster_fifo.Queue of tokens, which lies in the pair of this number."""

    def __init__(self, pairs: Segment, number: int, direction: int) -> None:
        views = _views(pairs, number)
        self._header, self._fresh = views["header"][direction], views["fresh"]
        self._mutex = ctypes.c_void_p(views["mutex"][direction].ctypes.data)
        # What Queue.__init__ does, with memory of ours.
        self._queue = faster_fifo.Queue.__new__(faster_fifo.Queue)
        self._queue.__dict__.update(
            max_size_bytes=_BUFFER_BYTES,
            max_bytes_to_read=_BUFFER_BYTES,
            queue_obj_buffer=(ctypes.c_ubyte * _HEADER_BYTES).from_buffer(self._header),
            shared_memory=(ctypes.c_ubyte * _BUFFER_BYTES).from_buffer(views["buffer"][direction]),
            message_buffer=_messages,
            last_error=None,
            loads=TOKEN.unpack,
            dumps=lambda token: TOKEN.pack(*token),
        )

    def acquire(self, wait: bool) -> bool:
        """Enter it; returns False, without ``wait``, where another process is inside."""
        code = _libc.pthread_mutex_trylock(self._mutex)
        if code == errno.EBUSY:
            if not wait:
                return False
            code = _lock(self._mutex)
        if code == errno.EOWNERDEAD:
            self._header[:] = self._fresh
            code = _libc.pthread_mutex_consistent(self._mutex)
        _check(code)
        return True

    def release(self) -> None:
        _libc.pthread_mutex_unlock(self._mutex)

    def put(self, token: Token, wait: bool) -> bool:
        """Returns False where it is full, or, without ``wait``, where its reader is inside."""
        if not self.acquire(wait):
            return False
        try:
            self._queue.put(token, block=False)
        except queue.Full:
            return False
        finally:
            self.release()
        return True

    def get(self) -> list[Token]:
        """Returns every token, or none where the writer is inside."""
        # A look without the mutex: a token is counted before its writer rings.
        if not self._queue.qsize() or not self.acquire(wait=False):
            return []
        tokens: list[Token] = []
        try:
            while self._queue.qsize():  # faster_fifo reads in parts until its buffer has grown
                tokens += self._queue.get_many(block=False)
        finally:
            self.release()
        return tokens


class _Sender:
    """A worker's writing end of one queue, and the bell of its reader."""

    def __init__(self, target: _Queue, bell: int) -> None:
        self.bell = bell
        self._queue = target

    def send(self, kind: Kind, worker: int, group: int = 0, sequence: int = 0) -> None:
        while not self._put((kind, worker, group, sequence), wait=True):
            time.sleep(_PAUSE)

    def _put(self, token: Token, wait: bool) -> bool:
        done = self._queue.put(token, wait)
        os.eventfd_write(self.bell, 1)  # also for a full one, which its reader may have passed by
        return done


class _Inbox(Inbox):
    """The queues that a process reads, its bell, and its lines, whose tokens may wait.

    Their owner may change what is in queues and lines.
    """

    def __init__(
        self, bell: int, queues: Collection[_Queue], *others: int, lines: Sequence["_Line"] = ()
    ) -> None:
        super().__init__(bell, *others)
        self._bell, self._queues, self._lines = bell, queues, lines

    def wait(self, seconds: float | None) -> set[int]:
        if any(line.waiting for line in self._lines):
            seconds = _PATIENCE if seconds is None else min(seconds, _PATIENCE)
        return super().wait(seconds)

    def read(self) -> list[Token]:
        for line in self._lines:
            if line.waiting:
                line.flush()
        # Before the look, so that it rings for what comes after; a writer may have died before it rang.
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._bell)
        tokens: list[Token] = []
        for each in self._queues:
            tokens += each.get()
        return tokens


class _ModelInbox(_Inbox, ModelInbox):
    def __init__(self, index: int, bell: int, *others: int) -> None:
        self._requests: dict[int, _Queue] = {}  # by env worker, as the next
        self._bells: dict[int, int] = {}
        super().__init__(bell, self._requests.values(), *others)
        self._pair = 1 + index

    def attach(self, worker: int, fds: Sequence[int]) -> _Sender:
        pairs, self._bells[worker] = Segment(0, fds[0]), fds[1]
        pairs.close()
        self._requests[worker] = _Queue(pairs, self._pair, _FROM_WORKER)
        return _Sender(_Queue(pairs, self._pair, _TO_WORKER), fds[1])

    def detach(self, worker: int) -> None:
        del self._requests[worker]
        os.close(self._bells.pop(worker))


class _Line(_Sender):
    """The collector's side of one env worker: its queues, its bell, and the tokens that wait for it."""

    def __init__(self, exchange: "FifoExchange") -> None:
        self._exchange, self._pairs = exchange, _pairs(1 + exchange.models)
        self._reports = _Queue(self._pairs, 0, _FROM_WORKER)
        super().__init__(_Queue(self._pairs, 0, _TO_WORKER), os.eventfd(0, _BELL))
        self.waiting: deque[Token] = deque()
        exchange.reports.append(self._reports)
        exchange.lines.append(self)

    def send(self, kind: Kind, worker: int, group: int = 0, sequence: int = 0) -> None:
        # Who already has tokens that were not taken is not waited for again.
        until = time.monotonic() + (0.0 if self.waiting else _PATIENCE)
        self.waiting.append((kind, worker, group, sequence))
        while not self.flush() and time.monotonic() < until:
            time.sleep(_PAUSE)

    def flush(self) -> bool:
        """Put in what waits, as far as it goes; returns whether that was all of it."""
        while self.waiting and self._put(self.waiting[0], wait=False):
            self.waiting.popleft()
        return not self.waiting

    def worker_fds(self) -> list[int]:
        return [self._pairs.fd, self.bell, *self._exchange.bells]

    def model_fds(self) -> tuple[int, ...]:
        return self._pairs.fd, self.bell

    def close(self) -> None:
        self._exchange.reports.remove(self._reports)
        self._exchange.lines.remove(self)
        self._pairs.close()
        os.close(self.bell)


class FifoExchange:
    """See Exchange. bells: the collector's, then each model worker's. reports: queues to the collector."""

    shared = False

    def __init__(self, models: int) -> None:
        self.models = models
        self.bells = [os.eventfd(0, _BELL) for _ in range(1 + models)]
        self._pairs = [_pairs(1) for _ in range(models)]  # of each model worker with the collector
        self.reports = [_Queue(pairs, 0, _FROM_WORKER) for pairs in self._pairs]
        self.lines: list[_Line] = []

    def inbox(self, *others: int) -> _Inbox:
        """See Exchange.inbox."""
        return _Inbox(self.bells[0], self.reports, *others, lines=self.lines)

    def connect(self) -> _Line:
        """See Exchange.connect."""
        return _Line(self)

    def model_fds(self, index: int) -> list[int]:
        """See Exchange.model_fds."""
        return [self._pairs[index].fd, self.bells[1 + index], self.bells[0]]

    def forget_requests(self, index: int) -> None:
        """See Exchange.forget_requests: each queue has room for them, and asking twice is harmless."""

    def close(self) -> None:
        """See Exchange.close."""
        for bell in self.bells:
            os.close(bell)
        for pairs in self._pairs:
            pairs.close()

    @staticmethod
    def env_worker(fds: Sequence[int]) -> EnvWorkerEnds:
        """See Exchange.env_worker."""
        pairs, (bell, *bells) = Segment(0, fds[0]), fds[1:]
        inbox = _Inbox(bell, [_Queue(pairs, number, _TO_WORKER) for number in range(len(bells))])
        reports, *models = (
            _Sender(_Queue(pairs, number, _FROM_WORKER), each) for number, each in enumerate(bells)
        )
        return EnvWorkerEnds(inbox, reports, models)

    @staticmethod
    def model_worker(index: int, fds: Sequence[int], *others: int) -> tuple[_ModelInbox, _Sender]:
        """See Exchange.model_worker."""
        pairs_fd, bell, collector_bell = fds
        reports = _Sender(_Queue(Segment(0, pairs_fd), 0, _FROM_WORKER), collector_bell)
        return _ModelInbox(index, bell, *others), reports
