"""Parties that exchange tokens: a collector, env workers and model workers, in one process or in forks."""

import contextlib
import os
import signal
import time

from fastcollect.memory.tokens import exchange

COLLECTOR = ("collector", 0)


class Office:
    """A collector with env workers and model workers, each attached by descriptors alone."""

    def __init__(self, channel, workers=1, models=1):
        self._copies, self._attached = [], []
        kind = exchange(channel)
        self.exchange = kind(models)
        self.inbox = self.exchange.inbox()
        self.lines = [self.exchange.connect() for _ in range(workers)]
        self.workers = [kind.env_worker(self.copies(line.worker_fds())) for line in self.lines]
        self.models = [self.model(index) for index in range(models)]

    def copies(self, fds):
        """What a process is given through a socket: descriptors of its own."""
        self._copies += (own := [os.dup(fd) for fd in fds])
        return own

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for line in self.lines:
            line.close()
        self.exchange.close()
        for inbox in self._attached:
            for worker in range(len(self.lines)):
                inbox.detach(worker)
        for fd in self._copies:
            os.close(fd)

    def model(self, index):
        """(inbox, reports, answers by env worker): a model worker, or its successor."""
        kind = type(self.exchange)
        inbox, reports = kind.model_worker(index, self.copies(self.exchange.model_fds(index)))
        given = [[os.dup(fd) for fd in line.model_fds()] for line in self.lines]  # its own from now on
        answers = [inbox.attach(worker, fds) for worker, fds in enumerate(given)]
        self._attached.append(inbox)
        return inbox, reports, answers

    def send(self, sender, receiver, *token):
        """A token from one party to another; a party is ("collector", 0), ("worker", w) or ("model", m)."""
        (kind, index), (other, other_index) = sender, receiver
        if kind == "collector":
            end = self.lines[other_index]
        elif kind == "worker":
            worker = self.workers[index]
            end = worker.reports if other == "collector" else worker.models[other_index]
        else:
            _, reports, answers = self.models[index]
            end = reports if other == "collector" else answers[other_index]
        end.send(*token)

    def read(self, party):
        kind, index = party
        if kind == "collector":
            return [tuple(token) for token in self.inbox.read()]
        inbox = self.workers[index].inbox if kind == "worker" else self.models[index][0]
        return [tuple(token) for token in inbox.read()]


@contextlib.contextmanager
def process(function):
    """Runs in a fork, which ends with 0 if it returns; yields its number, and kills it in the end."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            function()
            os._exit(0)
        os._exit(1)
    try:
        yield pid
    finally:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGCONT)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def exit_code(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def read_until(inbox, count):
    """Tokens, at least that many of them."""
    tokens, until = [], time.monotonic() + 60
    while len(tokens) < count:
        assert time.monotonic() < until
        inbox.wait(1.0)
        tokens += inbox.read()
    return tokens
