"""A measurement's process: ``python -m bench.harness.child FD`` builds one method and measures its slices.

The first message on the connection FD is a request, answered once the first step is done. Each one after
that is two numbers of seconds, to run for unmeasured and then measured, and is answered; null is the last.
All of it is JSON.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import psutil

from bench.methods import METHODS, read_request
from bench.methods.base import Subject, die_with

_GUARD = """
import os, select, signal, sys
leader = int(sys.argv[1])
watched = os.pidfd_open(leader)
if os.getppid() == leader:
    select.select([watched], [], [])
os.killpg(0, signal.SIGKILL)
"""


def clock(subject: Subject, seconds: float) -> tuple[float, float]:
    """(counts per second, seconds) over at least so many seconds and one count; whole steps only.

    Everything that is counted, and nothing else, was computed between the two readings of the clock.
    """
    subject.wait()
    count, start = 0, time.perf_counter()
    while not count or time.perf_counter() - start < seconds:
        count += subject.step()
    subject.wait()
    elapsed = time.perf_counter() - start
    return count / elapsed, elapsed


def measure_slice(subject: Subject, warm_up: float, seconds: float, but: int = 0) -> dict[str, Any]:
    """A slice's rate, processors in use and memory, and the subject's facts; ``but``: see ``_over_tree``."""
    if warm_up:
        clock(subject, warm_up)
    begin = _over_tree(_processor_seconds, but)
    rate, elapsed = clock(subject, seconds)
    busy = (_over_tree(_processor_seconds, but) - begin) / elapsed
    memory = _over_tree(lambda process: process.memory_full_info().pss, but) / 2**20
    found = {"rate": rate, "cpus_busy": busy, "num_envs": subject.num_envs, "memory_mib": memory}
    return found | subject.facts()


def _processor_seconds(process: psutil.Process) -> float:
    return sum(process.cpu_times()[:2])


def _over_tree(read: Callable[[psutil.Process], float], but: int) -> float:
    """Sum over this process and everything that it started ``but`` one, as far as it can still be asked."""
    total, own = 0.0, psutil.Process()
    for process in (own, *own.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            total += read(process) if process.pid != but else 0.0
    return total


def _start_guard() -> int:
    """A process that outlives this one by a moment and ends what is left of its group; its number.

    The parent does as much, and dying with it takes along this process alone, not what a peer started.
    """
    command, null = [sys.executable, "-ISc", _GUARD, str(os.getpid())], subprocess.DEVNULL
    return subprocess.Popen(command, stdin=null, stdout=null, stderr=null).pid


def main() -> None:
    """The process's whole life."""
    parent = Connection(int(sys.argv[1]))
    os.set_inheritable(parent.fileno(), False)
    die_with(os.getppid())
    guard = _start_guard()
    request = read_request(json.loads(parent.recv_bytes()))

    def answer(content: dict[str, Any]) -> None:
        parent.send_bytes(json.dumps(content).encode())

    try:
        with contextlib.closing(METHODS[request.method].build(request)) as subject:
            clock(subject, 0)
            answer({"ready": True})
            while asked := json.loads(parent.recv_bytes()):
                warm_up, seconds = asked
                answer(measure_slice(subject, warm_up, seconds, guard))
    except Exception as error:
        # A ValueError of ours is a sentence for the user; anything else needs its name.
        text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        answer({"error": text})


if __name__ == "__main__":
    main()
