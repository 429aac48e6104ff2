"""Starts worker processes through a zygote, and learns how they end."""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cloudpickle

from fastcollect.control.zygote import MESSAGE_BYTES
from fastcollect.support.cpu import THREAD_CAPS
from fastcollect.support.errors import CONFIG_EXIT_CODE, ConfigError, LauncherLostError, WorkerError

_START_SECONDS = 60.0


class Exit(NamedTuple):
    """A worker ended. code: its exit code, or minus the number of the signal that ended it."""

    ident: int
    code: int


@dataclass(frozen=True)
class Process:
    """A started worker. words_fd: an unnamed file with its traceback, if it raised."""

    ident: int
    pid: int
    words_fd: int

    def last_words(self) -> str:
        """The worker's own account: the text of its exception or its stacks, empty if it left none."""
        size = os.fstat(self.words_fd).st_size
        return os.pread(self.words_fd, size, 0).decode(errors="replace").strip()

    def raise_last_words(self, code: int, name: str) -> None:
        """Raises ConfigError or WorkerError with them where the worker ended by itself, not by a signal."""
        words = self.last_words()
        if code == CONFIG_EXIT_CODE and words:
            raise ConfigError([words])
        if code > 0:
            raise WorkerError(words or f"{name} ended with exit code {code} and said nothing")


class Launcher:
    """Owns one zygote, which starts the workers. Every method raises LauncherLostError once it is gone.

    fd: becomes readable when there are exits to ``collect``. pid: the zygote's. ended: the numbers of all
    workers that are gone. preload: modules to import once, before any fork; they must start no threads.
    """

    def __init__(self, preload: Sequence[str] = ()) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sock = ours
        self._sock.settimeout(_START_SECONDS)
        path = os.pathsep.join(each or os.getcwd() for each in sys.path if isinstance(each, str))
        environment = {**os.environ, **THREAD_CAPS, "PYTHONPATH": path}
        with theirs:
            fd = theirs.fileno()
            command = [sys.executable, "-P", "-m", "fastcollect.control.zygote", str(fd), *preload]
            self._zygote = subprocess.Popen(command, pass_fds=[fd], stdin=subprocess.DEVNULL, env=environment)
        self.fd, self.pid = ours.fileno(), self._zygote.pid
        self._poll = select.poll()
        self._poll.register(ours, select.POLLIN)
        self._exits: list[Exit] = []
        self.ended: set[int] = set()
        self._next_ident = 0
        try:
            self._await("ready")
        except BaseException:
            self.close()
            raise

    def new_ident(self) -> int:
        """A number that no worker of this launcher had before."""
        self._next_ident += 1
        return self._next_ident

    def spawn(
        self, target: str, payload: Any, fds: Sequence[int], cpus: Sequence[int] = (), ident: int = 0
    ) -> Process:
        """Run ``module:function``(payload, fds) in a new process, on ``cpus`` only if any are given.

        ident: what ``new_ident`` returned, or 0.
        """
        ident = ident or self.new_ident()
        words_fd = os.memfd_create("fastcollect-words", os.MFD_CLOEXEC)
        with os.fdopen(os.memfd_create("fastcollect-payload", os.MFD_CLOEXEC), "wb") as file:
            file.write(cloudpickle.dumps(payload))
            file.flush()
            request = {"op": "spawn", "id": ident, "target": target, "cpus": list(cpus)}
            self._send(request, [file.fileno(), words_fd, *fds])
        return Process(ident, self._await("spawned")["pid"], words_fd)

    def kill(self, ident: int, signum: int = signal.SIGKILL) -> None:
        """Signal a worker; nothing happens if it has ended."""
        self._send({"op": "kill", "id": ident, "signal": int(signum)}, [])

    def collect(self, idents: Container[int]) -> list[Exit]:
        """Exits among these workers since the last call, without blocking."""
        while self._poll.poll(0):
            self._receive()
        mine = [event for event in self._exits if event.ident in idents]
        self._exits = [event for event in self._exits if event.ident not in idents]
        return mine

    def wait(self, seconds: float) -> None:
        """Block until a worker ends, or until time is up."""
        self._poll.poll(seconds * 1000)

    def close(self) -> None:
        """End what is left of the workers, then the zygote; all are gone on return. Idempotent."""
        self._sock.close()
        try:
            self._zygote.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._zygote.kill()
            self._zygote.wait()

    def _send(self, request: dict, fds: list[int]) -> None:
        with _lost():
            socket.send_fds(self._sock, [json.dumps(request).encode()], fds)

    def _await(self, event: str) -> dict:
        while (message := self._receive())["event"] != event:
            pass
        return message

    def _receive(self) -> dict:
        with _lost():
            data = self._sock.recv(MESSAGE_BYTES)
            if not data:
                raise ConnectionError("end of file")
        message = json.loads(data)
        if message["event"] == "exit":
            self._exits.append(Exit(message["id"], message["code"]))
            self.ended.add(message["id"])
        return message


@contextlib.contextmanager
def _lost() -> Iterator[None]:
    try:
        yield
    except (ConnectionError, TimeoutError) as error:
        text = "the process that starts the workers is gone, and the workers with it"
        raise LauncherLostError(text) from error
