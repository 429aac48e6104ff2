"""Tokens through kernel pipes.

A pipe is a queue that the kernel owns: a write below PIPE_BUF is atomic, one read takes every waiting
token, and a process that is killed at any instant leaves no lock behind and loses no token that it sent.
All env workers share one pipe to each model worker and one to the collector.
"""

import os
from collections.abc import Iterable, Sequence

from fastcollect.memory.tokens import (
    CAPACITY,
    TOKEN,
    EnvWorkerEnds,
    Kind,
    ModelInbox,
    PeerGoneError,
    Token,
)

_READ_BYTES = CAPACITY * TOKEN.size  # a pipe's size: whole tokens, since every write is a multiple of one
_pack, _unpack = TOKEN.pack, TOKEN.iter_unpack


def _pipe() -> tuple[int, int]:
    """(read end, write end); the read end never blocks, the write end does."""
    read, write = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(read, False)
    return read, write


class _Sender:
    """The writing end of a pipe."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def send(self, kind: Kind, worker: int, group: int = 0, sequence: int = 0) -> None:
        try:
            os.write(self.fd, _pack(kind, worker, group, sequence))
        except BrokenPipeError as error:
            raise PeerGoneError from error


class PipeInbox(ModelInbox):
    """The reading end of one pipe, with whatever else the process waits for."""

    def __init__(self, fd: int, *others: int) -> None:
        super().__init__(fd, *others)
        self._fd = fd
        self._answers: dict[int, int] = {}  # env worker -> its inbox

    def read(self) -> Iterable[Token]:
        """See Inbox.read."""
        try:
            return _unpack(os.read(self._fd, _READ_BYTES))
        except BlockingIOError:
            return ()

    def attach(self, worker: int, fds: Sequence[int]) -> _Sender:
        """See ModelInbox.attach; requests of all env workers come through the same pipe."""
        (self._answers[worker],) = fds
        return _Sender(fds[0])

    def detach(self, worker: int) -> None:
        """See ModelInbox.detach."""
        os.close(self._answers.pop(worker))


class _Line(_Sender):
    """Both ends of an env worker's inbox. shared: the collector's inbox and every model worker's."""

    def __init__(self, shared: Sequence[int]) -> None:
        self._read, write = _pipe()
        super().__init__(write)
        self._shared = shared

    def worker_fds(self) -> list[int]:
        return [self._read, *self._shared]

    def model_fds(self) -> tuple[int, ...]:
        return (self.fd,)

    def close(self) -> None:
        os.close(self._read)
        os.close(self.fd)


class PipeExchange:
    """See Exchange. A pipe holds the requests of every env worker, or the reports of all workers."""

    shared = True

    def __init__(self, models: int) -> None:
        self.models = models
        self._reports = _pipe()
        self._requests = [_pipe() for _ in range(models)]

    def inbox(self, *others: int) -> PipeInbox:
        """See Exchange.inbox."""
        return PipeInbox(self._reports[0], *others)

    def connect(self) -> _Line:
        """See Exchange.connect."""
        return _Line([self._reports[1], *(write for _, write in self._requests)])

    def model_fds(self, index: int) -> list[int]:
        """See Exchange.model_fds: its inbox, the collector's."""
        return [self._requests[index][0], self._reports[1]]

    def forget_requests(self, index: int) -> None:
        """See Exchange.forget_requests."""
        PipeInbox(self._requests[index][0]).read()

    def close(self) -> None:
        """See Exchange.close."""
        for fd in (*self._reports, *(fd for ends in self._requests for fd in ends)):
            os.close(fd)

    @staticmethod
    def env_worker(fds: Sequence[int]) -> EnvWorkerEnds:
        """See Exchange.env_worker."""
        inbox, reports, *models = fds
        return EnvWorkerEnds(PipeInbox(inbox), _Sender(reports), [_Sender(fd) for fd in models])

    @staticmethod
    def model_worker(index: int, fds: Sequence[int], *others: int) -> tuple[PipeInbox, _Sender]:
        """See Exchange.model_worker."""
        inbox, reports = fds
        return PipeInbox(inbox, *others), _Sender(reports)
