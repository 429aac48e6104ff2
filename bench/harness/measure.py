"""Measurements in processes of their own and in interleaved rounds.

So imports, thread pools and memory never leak, and a machine that drifts changes all methods alike. The other
side of the pipe is ``bench.harness.child``, run by our interpreter or by a peer's own.
"""

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.harness.results import console
from bench.methods import METHODS
from fastcollect.support.cpu import THREAD_CAPS

_START_SECONDS = 300.0  # stock worlds of Crafter take seconds each
_SPARE_SECONDS = 120.0  # a learner's step may be many updates
_EXIT_SECONDS = 10.0
_ADDED = ("rate", "cpus_busy", "num_envs", "memory_mib")
_ROOT = Path(__file__).resolve().parents[2]
PEERS = _ROOT / ".venv-peers"

Slice = Callable[[float, float], dict[str, Any]]
"""Measures once: seconds that do not count, seconds that do. Raises MeasurementError."""
Outcome = list[dict[str, Any]] | str
"""What every round gave, or the text of the first error."""


class MeasurementError(RuntimeError):
    """A measurement gave no number; the text says why."""


@contextlib.contextmanager
def started(requests: Sequence[Any]) -> Iterator[Slice]:
    """Start a process for each request; gives what measures a slice of all of them at the same time.

    A slice holds the sums of "rate", "cpus_busy" (mean processors in use), "num_envs" and "memory_mib",
    "start_seconds" (of the slowest), and the facts of the first. Raises MeasurementError where one does not
    start. However this is left, no process stays behind.
    """
    start = time.monotonic()
    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(contextlib.closing(_Child(request))) for request in requests]
        for child in children:
            child.receive(start + _START_SECONDS)
        start_seconds = time.monotonic() - start

        def measure_slice(warm_up: float, seconds: float) -> dict[str, Any]:
            for child in children:
                child.send([warm_up, seconds])
            deadline = time.monotonic() + warm_up + seconds + _SPARE_SECONDS
            answers = [child.receive(deadline) for child in children]
            sums = {key: sum(answer[key] for answer in answers) for key in _ADDED}
            return {**answers[0], **sums, "start_seconds": start_seconds}

        yield measure_slice
        for child in children:
            child.finish()


def measure(requests: Sequence[Any], warm_up: float, seconds: float) -> dict[str, Any]:
    """One slice of fresh processes; see ``started``."""
    with started(requests) as measure_slice:
        return measure_slice(warm_up, seconds)


def peer_python(peer: str) -> Path:
    """A peer's interpreter. Raises MeasurementError that says why it is missing."""
    folder = PEERS / peer
    if (folder / ".installed").exists():
        return folder / "bin" / "python"
    log = folder / "install.log"
    if log.exists() and (lines := log.read_text(errors="replace").strip().splitlines()):
        raise MeasurementError(f"make peers could not install {peer}: {lines[-1]}")
    raise MeasurementError(f"{peer} is not installed; make peers installs it")


def order(labels: Sequence[str], number: int) -> list[str]:
    """The turns of a round: rounds go forwards and backwards in pairs, each pair begins one label later.

    In twice as many rounds as there are labels, each of them is first twice and last twice.
    """
    first = number // 2 % max(1, len(labels))
    turned = [*labels[first:], *labels[:first]]
    return turned if number % 2 == 0 else turned[::-1]


def take_turns(
    turns: Mapping[str, Callable[[], dict[str, Any]]], rounds: int, guess: float, unit: str
) -> dict[str, Outcome]:
    """Every label's turn in every round; after its first MeasurementError a label is left out.

    A turn returns a slice with its "rate". What is running, how fast each was and about how many seconds are
    left is told on standard error; ``guess`` is what a turn may take until its first one tells.
    """
    screen, cost = console(stderr=True), dict.fromkeys(turns, guess)
    found: dict[str, Outcome] = {label: [] for label in turns}
    # Twice a second: drawing takes time from what is measured.
    with screen.status("starting", refresh_per_second=2) as status:
        for number in range(rounds):
            for label in order(list(turns), number):
                done = found[label]
                if isinstance(done, str):
                    continue
                going = ((each, len(got)) for each, got in found.items() if not isinstance(got, str))
                left = sum(cost[each] * (rounds - count) for each, count in going)
                head = f"round {number + 1}/{rounds}  {label}"
                status.update(f"{head}  (about {left:.0f} s left)")
                start = time.monotonic()
                try:
                    done.append(turns[label]())
                    text = f"{done[-1]['rate']:,.0f} {unit}"
                except MeasurementError as error:
                    found[label] = text = str(error)
                cost[label] = time.monotonic() - start
                screen.print(f"{head}: {text}", markup=False)
    return found


class _Child:
    """The parent's side of one process."""

    def __init__(self, request: Any) -> None:
        self._name, method = request.method, METHODS[request.method]
        python = sys.executable if method.peer is None else peer_python(method.peer)
        paths = [str(_ROOT)] if method.peer else [str(_ROOT), *filter(None, sys.path)]
        caps = THREAD_CAPS if method.capped else {}
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 (closed in close)
        self._pipe, theirs = multiprocessing.Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [python, "-P", "-m", "bench.harness.child", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
                pass_fds=[theirs.fileno()],
                env={**os.environ, **caps, "PYTHONPATH": os.pathsep.join(paths)},
                start_new_session=True,  # a group to kill, which Ctrl-C does not reach by itself
            )
        self.send(asdict(request))

    def send(self, content: Any) -> None:
        with contextlib.suppress(OSError):  # it has ended; receive says how
            self._pipe.send_bytes(json.dumps(content).encode())

    def receive(self, deadline: float) -> dict[str, Any]:
        """The next answer. Raises MeasurementError when it is an error or does not come."""
        try:
            # Asked first whether it ended: an answer written before that is then in the pipe. The end of file
            # alone does not tell, because a process that the child left behind may hold the pipe open.
            while not self._pipe.poll(0 if (ended := self._ended()) else 0.5):
                if ended:
                    raise EOFError
                if time.monotonic() > deadline:
                    raise MeasurementError(f"{self._name} did not answer in time{self._last_output()}")
            answer = json.loads(self._pipe.recv_bytes())
        except (EOFError, OSError):
            self._wait()
            raise MeasurementError(f"{self._name} ended without an answer{self._last_output()}") from None
        if "error" in answer:
            raise MeasurementError(answer["error"])
        return answer

    def finish(self) -> None:
        """Tell it that nothing more is asked, and give it time to end by itself."""
        self.send(None)
        self._wait()

    def close(self) -> None:
        """End the process and whatever it started."""
        # It is not reaped before its group is killed, so the number cannot have passed to another.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._output.close()
        self._pipe.close()

    def _wait(self) -> None:
        deadline = time.monotonic() + _EXIT_SECONDS
        while not self._ended() and time.monotonic() < deadline:
            time.sleep(0.01)

    def _ended(self) -> bool:
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self._process.pid, options) is not None

    def _last_output(self) -> str:
        self._output.seek(0)
        lines = self._output.read().decode(errors="replace").strip().splitlines()
        return ": " + " | ".join(lines[-3:]) if lines else ""
