"""Starts worker processes through a zygote, and learns how they end."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any

import cloudpickle

from fastcollect.control.zygote import MESSAGE_BYTES
from fastcollect.support.cpu import THREAD_CAPS
from fastcollect.support.errors import LauncherLostError

_START_SECONDS = 60.0


@dataclass(frozen=True)
class Exit:
    """A worker ended: exit code, or minus the signal's number."""

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


class Launcher:
    """Owns one zygote. ``fd`` becomes readable when there are exits to ``collect``.

    ended: the numbers of all workers that are gone.

    preload: modules to import once, before any fork; they must start no threads.
    """

    def __init__(self, preload: Sequence[str] = ()) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sock = ours
        self._sock.settimeout(_START_SECONDS)
        environment = {
            **os.environ,
            **THREAD_CAPS,
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path if isinstance(path, str)),
        }
        with theirs:
            self._zygote = subprocess.Popen(
                [sys.executable, "-P", "-m", "fastcollect.control.zygote", str(theirs.fileno()), *preload],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=environment,
            )
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

    @property
    def fd(self) -> int:
        """The socket to wait on."""
        return self._sock.fileno()

    @property
    def pid(self) -> int:
        """The zygote's process id."""
        return self._zygote.pid

    def new_ident(self) -> int:
        """A number that no worker of this launcher had before."""
        self._next_ident += 1
        return self._next_ident

    def spawn(
        self,
        target: str,
        payload: Any,
        fds: Sequence[int],
        cpus: Sequence[int] = (),
        ident: int | None = None,
    ) -> Process:
        """Run ``module:function``(payload, fds) in a new process, on ``cpus`` only if any are given."""
        ident = self.new_ident() if ident is None else ident
        payload_fd = os.memfd_create("fastcollect-payload", os.MFD_CLOEXEC)
        words_fd = os.memfd_create("fastcollect-words", os.MFD_CLOEXEC)
        try:
            with os.fdopen(os.dup(payload_fd), "wb") as file:
                file.write(cloudpickle.dumps(payload))
            request = {"op": "spawn", "id": ident, "target": target, "cpus": list(cpus)}
            self._send(request, [payload_fd, words_fd, *fds])
        finally:
            os.close(payload_fd)
        return Process(ident, self._await("spawned")["pid"], words_fd)

    def kill(self, ident: int, signum: int = signal.SIGKILL) -> None:
        """Signal a worker; nothing happens if it has ended."""
        self._send({"op": "kill", "id": ident, "signal": int(signum)}, [])

    def collect(self, idents: Container[int]) -> list[Exit]:
        """Exits among these workers since the last call, without blocking. Raises LauncherLostError."""
        while self._poll.poll(0):
            try:
                self._take(self._sock.recv(MESSAGE_BYTES))
            except ConnectionError as error:
                raise self._lost() from error
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
        try:
            socket.send_fds(self._sock, [json.dumps(request).encode()], fds)
        except ConnectionError as error:
            raise self._lost() from error

    def _await(self, event: str) -> dict:
        while True:
            try:
                message = self._take(self._sock.recv(MESSAGE_BYTES))
            except (ConnectionError, TimeoutError) as error:
                raise self._lost() from error
            if message["event"] == event:
                return message

    def _take(self, data: bytes) -> dict:
        if not data:
            raise self._lost()
        message = json.loads(data)
        if message["event"] == "exit":
            self._exits.append(Exit(message["id"], message["code"]))
            self.ended.add(message["id"])
        return message

    def _lost(self) -> LauncherLostError:
        return LauncherLostError("the process that starts the workers is gone, and the workers with it")
