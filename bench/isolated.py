"""Runs one measurement in processes of its own, so that imports, thread pools and memory never leak.

The child reads a ``Request`` from its standard input, builds, says that it is ready, waits for the word to
go (so that several begin together), warms up, measures, answers. ``python -m bench.isolated FD`` is the
child; it answers on the descriptor FD, because libraries print to standard output as they like.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import psutil

from bench.methods import METHODS, Method, Request
from bench.methods.base import die_with
from fastcollect.support.cpu import THREAD_CAPS

_START_SECONDS = 300.0  # stock worlds of Crafter take seconds each
_SPARE_SECONDS = 60.0
_EXIT_SECONDS = 10.0
_ADDED = ("fps", "cpus_busy", "num_envs", "memory_mib")
_ROOT = Path(__file__).resolve().parent.parent
PEERS = _ROOT / ".venv-peers"


_GUARD = """
import os, select, signal, sys
leader = int(sys.argv[1])
watched = os.pidfd_open(leader)
if os.getppid() == leader:
    select.select([watched], [], [])
os.killpg(0, signal.SIGKILL)
"""


class MeasurementError(RuntimeError):
    """A measurement gave no number; the text says why."""


def measure(requests: Sequence[Request]) -> dict[str, Any]:
    """Run the requests at once, one process each, and add up their rates.

    Returns "start_seconds" (of the slowest), the sums of "fps", "cpus_busy" (mean processors in use),
    "num_envs" and "memory_mib", and the facts of the first. Raises MeasurementError.
    However this is left, no process stays behind.
    """
    start = time.monotonic()
    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(_child(request)) for request in requests]
        for child in children:
            child.receive(start + _START_SECONDS)
        start_seconds = time.monotonic() - start
        for child in children:
            child.send("go")
        deadline = time.monotonic() + requests[0].warm_up + requests[0].seconds + _SPARE_SECONDS
        answers = [child.receive(deadline) for child in children]
        for child in children:
            child.wait(_EXIT_SECONDS)
    sums = {key: sum(answer[key] for answer in answers) for key in _ADDED}
    return {**answers[0], **sums, "start_seconds": start_seconds}


@contextlib.contextmanager
def _child(request: Request) -> Iterator[_Child]:
    child = _Child(request)
    try:
        yield child
    finally:
        child.kill()


def _interpreter(method: Method) -> tuple[str, list[str]]:
    """(interpreter, its import paths) of a method. Raises MeasurementError where a peer is missing."""
    if method.peer is None:
        return sys.executable, [str(_ROOT), *(path for path in sys.path if path)]
    return str(peer_python(method.peer)), [str(_ROOT)]


def peer_python(peer: str) -> Path:
    """A peer's interpreter. Raises MeasurementError that says why it is missing."""
    folder = PEERS / peer
    if not (folder / ".installed").exists():
        log = folder / "install.log"
        why = log.read_text(errors="replace").strip().splitlines()[-1:] if log.exists() else []
        if why:
            raise MeasurementError(f"make peers could not install {peer}: {why[0]}")
        raise MeasurementError(f"{peer} is not installed; make peers installs it")
    return folder / "bin" / "python"


class _Child:
    """The parent's side of one process."""

    def __init__(self, request: Request) -> None:
        self._method = request.method
        python, paths = _interpreter(METHODS[request.method])
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 (closed in kill)
        self._read, write = os.pipe()
        try:
            self._process = subprocess.Popen(
                [python, "-P", "-m", "bench.isolated", str(write)],
                stdin=subprocess.PIPE,
                stdout=self._output,
                stderr=self._output,
                pass_fds=[write],
                env={**os.environ, **THREAD_CAPS, "PYTHONPATH": os.pathsep.join(paths)},
                start_new_session=True,  # a group to kill, which Ctrl-C does not reach by itself
            )
        finally:
            os.close(write)
        self._buffer = b""
        self.send(json.dumps(asdict(request)))

    def send(self, line: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has ended; receive says how
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()

    def receive(self, deadline: float) -> dict[str, Any]:
        """The next answer. Raises MeasurementError when it is an error or does not come."""
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0:
                raise MeasurementError(f"{self._method} did not answer in time{self._last_output()}")
            ended = self._ended()  # asked first: an answer written before the end is then in the pipe
            readable = bool(select.select([self._read], [], [], 0 if ended else min(left, 0.5))[0])
            data = os.read(self._read, 65536) if readable else b""
            self._buffer += data
            # Not by the end of file alone: a process that the child left behind may hold the pipe open.
            if not data and (ended or readable):
                self.wait(_EXIT_SECONDS)
                raise MeasurementError(f"{self._method} ended without an answer{self._last_output()}")
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer = json.loads(line)
        if "error" in answer:
            raise MeasurementError(answer["error"])
        return answer

    def wait(self, seconds: float) -> None:
        """Give it time to end by itself."""
        deadline = time.monotonic() + seconds
        while not self._ended() and time.monotonic() < deadline:
            time.sleep(0.01)

    def kill(self) -> None:
        """End the process and whatever it started."""
        # It is not reaped before its group is killed, so the number cannot have passed to another.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._output.close()
        os.close(self._read)

    def _ended(self) -> bool:
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self._process.pid, options) is not None

    def _last_output(self) -> str:
        self._output.seek(0)
        lines = self._output.read().decode(errors="replace").strip().splitlines()
        return ": " + " | ".join(lines[-3:]) if lines else ""


def clock(step: Callable[[], int], seconds: float) -> tuple[float, float]:
    """(steps per second, seconds) over at least ``seconds``, whole calls of ``step`` only."""
    steps, start = 0, time.perf_counter()
    while True:
        steps += step()
        elapsed = time.perf_counter() - start
        if elapsed >= seconds:
            return steps / elapsed, elapsed


def _start_guard() -> int:
    """A process that outlives this one by a moment and ends what is left of its group; its number.

    The parent does as much, and dying with it takes along this process alone, not what a peer started.
    """
    null = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    return subprocess.Popen([sys.executable, "-ISc", _GUARD, str(os.getpid())], **null).pid


def _over_tree(read: Callable[[psutil.Process], float], but: int) -> float:
    """Sum over this process and everything that it started ``but`` one, as far as it can still be asked."""
    total, own = 0.0, psutil.Process()
    for process in (own, *own.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            total += read(process) if process.pid != but else 0.0
    return total


def tree_seconds(but: int) -> float:
    """Processor seconds that this process and everything it started have used."""
    return _over_tree(lambda process: sum(process.cpu_times()[:2]), but)


def tree_memory(but: int) -> float:
    """MiB of this process and everything it started; a page that several share counts once (PSS)."""
    return _over_tree(lambda process: process.memory_full_info().pss, but) / 2**20


def main() -> None:
    """The child's whole life."""
    answers = os.fdopen(int(sys.argv[1]), "w", buffering=1)
    os.set_inheritable(answers.fileno(), False)
    die_with(os.getppid())
    guard = _start_guard()
    request = Request(**json.loads(sys.stdin.readline()))
    try:
        with contextlib.ExitStack() as stack:
            subject = resolve_name(METHODS[request.method].build)(request)
            stack.callback(subject.close)
            print(json.dumps({"ready": True}), file=answers)
            if not sys.stdin.readline():
                return
            clock(subject.step, request.warm_up)
            begin = tree_seconds(guard)
            fps, elapsed = clock(subject.step, request.seconds)
            busy = (tree_seconds(guard) - begin) / elapsed
            answer = {"fps": fps, "cpus_busy": busy, "num_envs": subject.num_envs}
            answer.update(memory_mib=tree_memory(guard), **subject.facts())
            print(json.dumps(answer), file=answers)
    except Exception as error:
        # A ValueError of ours is a sentence for the user; anything else needs its name.
        text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        print(json.dumps({"error": text}), file=answers)


if __name__ == "__main__":
    main()
