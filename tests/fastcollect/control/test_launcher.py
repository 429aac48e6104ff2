"""Workers start from the zygote, and how they end is known."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from support.processes import alive, wait_until_gone

from fastcollect.control.launcher import Launcher
from fastcollect.support.cpu import THREAD_CAPS
from fastcollect.support.errors import CONFIG_EXIT_CODE, ConfigError, LauncherLostError

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def launcher():
    made = Launcher()
    yield made
    made.close()


def spawn(launcher, function, fds=(), **options):
    """Run a function of this module's; a local one has no import path, so it travels by value."""
    return launcher.spawn("support.call:main", function, list(fds), **options)


def exit_code(launcher, process, seconds=20):
    """Wait for one worker's exit code; the worker's descriptor is closed by the caller."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for event in launcher.collect({process.ident}):
            assert event.ident == process.ident
            assert process.ident in launcher.ended
            return event.code
        launcher.wait(0.5)
    raise AssertionError("the worker did not end")


def sleeper():
    def sleep(fds):
        import time

        time.sleep(1000)

    return sleep


def answer(launcher, function, **options):
    """What a function writes as text into its first descriptor."""
    fd = os.memfd_create("answer")
    try:
        process = spawn(launcher, function, [fd], **options)
        code, words = exit_code(launcher, process), process.last_words()
        os.close(process.words_fd)
        assert (code, words) == (0, "")
        return os.pread(fd, 65536, 0).decode()
    finally:
        os.close(fd)


def test_a_function_of_the_caller_runs_by_value_with_its_arrays_and_descriptors(launcher):
    table = np.arange(6.0).reshape(2, 3)

    def total(fds):
        import os

        os.write(fds[0], str(float(table.sum())).encode())

    assert answer(launcher, total) == "15.0"


def test_a_worker_runs_in_a_process_of_its_own_with_capped_threads_on_its_processor(launcher):
    cpu = max(os.sched_getaffinity(0))
    names = list(THREAD_CAPS)

    def report(fds):
        import os

        words = [os.getpid(), os.getppid(), *os.sched_getaffinity(0), *(os.environ[n] for n in names)]
        os.write(fds[0], " ".join(map(str, words)).encode())

    pid, parent, *rest = map(int, answer(launcher, report, cpus=[cpu]).split())
    assert pid != os.getpid()
    assert parent == launcher.pid
    assert rest == [cpu, *[1] * len(names)]


def test_an_exception_is_exit_code_one_with_its_traceback_as_last_words(launcher):
    def explode(fds):
        error = ZeroDivisionError("the simulator exploded")
        error.add_note("worker 7, step 12:")
        raise error

    process = spawn(launcher, explode)
    assert exit_code(launcher, process) == 1
    words = process.last_words()
    assert words.splitlines()[0] == "worker 7, step 12:"
    assert "Traceback (most recent call last)" in words
    assert "in explode" in words
    assert words.endswith("ZeroDivisionError: the simulator exploded")
    os.close(process.words_fd)


def test_a_wrong_value_is_an_exit_code_of_its_own_without_traceback(launcher):
    def refuse(fds):
        raise ConfigError(["n is 0", "N is 0"])

    process = spawn(launcher, refuse)
    assert exit_code(launcher, process) == CONFIG_EXIT_CODE
    assert process.last_words() == "n is 0\nN is 0"
    os.close(process.words_fd)


def test_a_target_that_does_not_exist_is_told(launcher):
    process = launcher.spawn("no_such_module:main", None, [])
    assert exit_code(launcher, process) == 1
    assert "No module named 'no_such_module'" in process.last_words()
    os.close(process.words_fd)


def test_a_worker_that_leaves_has_its_own_code(launcher):
    def leave(fds):
        import os

        os._exit(17)

    process = spawn(launcher, leave)
    assert exit_code(launcher, process) == 17
    os.close(process.words_fd)


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_signal_is_a_negative_exit_code_and_a_kill_afterwards_is_harmless(launcher, signum):
    process = spawn(launcher, sleeper())
    assert alive(process.pid)
    launcher.kill(process.ident, signum)
    assert exit_code(launcher, process) == -signum
    assert not alive(process.pid)
    launcher.kill(process.ident)
    launcher.kill(10_000_000)
    os.close(process.words_fd)
    after = spawn(launcher, sleeper())
    launcher.kill(after.ident)
    assert exit_code(launcher, after) == -signal.SIGKILL
    os.close(after.words_fd)


def test_a_worker_that_sleeps_tells_its_stack_when_it_is_asked(launcher):
    def sleep_here(fds):
        import os
        import time

        os.write(fds[0], b"1")
        time.sleep(1000)

    fd = os.memfd_create("started")
    process = spawn(launcher, sleep_here, [fd])
    until = time.monotonic() + 20
    while not os.fstat(fd).st_size:
        assert time.monotonic() < until
        time.sleep(0.01)
    launcher.kill(process.ident, signal.SIGUSR1)
    while "sleep_here" not in process.last_words():
        assert time.monotonic() < until
        time.sleep(0.01)
    assert alive(process.pid)
    launcher.kill(process.ident)
    assert exit_code(launcher, process) == -signal.SIGKILL
    os.close(process.words_fd)
    os.close(fd)


def test_every_exit_is_told_once_even_while_others_start(launcher):
    def nothing(fds):
        pass

    processes = [spawn(launcher, nothing) for _ in range(20)]
    idents = {process.ident for process in processes}
    assert len(idents) == 20
    told, until = [], time.monotonic() + 20
    while len(told) < 20:
        assert time.monotonic() < until
        launcher.wait(0.5)
        assert launcher.collect({-1}) == []  # another collector's question takes nothing away
        told += launcher.collect(idents)
    assert {event.ident for event in told} == idents
    assert all(event.code == 0 for event in told)
    assert launcher.collect(idents) == []
    for process in processes:
        os.close(process.words_fd)


def test_closing_kills_the_workers_and_leaves_no_descriptor():
    descriptors = len(os.listdir("/proc/self/fd"))
    made = Launcher()
    processes = [spawn(made, sleeper()) for _ in range(3)]
    pids = [made.pid, *(process.pid for process in processes)]
    assert all(alive(pid) for pid in pids)
    made.close()
    assert not any(psutil.pid_exists(pid) for pid in pids)
    made.close()
    for process in processes:
        os.close(process.words_fd)
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_a_preload_that_fails_breaks_nothing(tmp_path, monkeypatch):
    (tmp_path / "broken_preload.py").write_text("raise RuntimeError('no display')\n")
    (tmp_path / "good_preload.py").write_text("import os\npid = os.getpid()\n")
    monkeypatch.syspath_prepend(tmp_path)

    def where(fds):
        import os
        import sys

        words = [sys.modules["good_preload"].pid, "broken_preload" in sys.modules]
        os.write(fds[0], " ".join(map(str, words)).encode())

    made = Launcher(["no_such_module_at_all", "broken_preload", "good_preload"])
    try:
        assert answer(made, where) == f"{made.pid} False"
    finally:
        made.close()


def test_a_lost_zygote_is_one_clear_error_and_takes_its_workers_along():
    made = Launcher()
    process = spawn(made, sleeper())
    os.kill(made.pid, signal.SIGKILL)
    wait_until_gone([made.pid, process.pid])
    with pytest.raises(LauncherLostError):
        made.collect(())
    with pytest.raises(LauncherLostError):
        made.kill(process.ident)
    made.close()
    os.close(process.words_fd)


PARENT = """
import os, time
from fastcollect.control.launcher import Launcher

launcher = Launcher()
process = launcher.spawn("support.call:main", lambda fds: __import__("time").sleep(1000), [])
fork = os.fork()
if fork == 0:
    time.sleep(1000)
print(launcher.pid, process.pid, fork, flush=True)
time.sleep(1000)
"""


def test_the_zygote_dies_with_its_parent_although_a_fork_of_it_holds_the_socket(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(textwrap.dedent(PARENT))
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])},
        start_new_session=True,
        text=True,
    )
    try:
        zygote, worker, fork = (int(word) for word in parent.stdout.readline().split())
        assert all(alive(pid) for pid in (zygote, worker, fork))
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait(timeout=20)
        wait_until_gone([zygote, worker])
        assert alive(fork)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(parent.pid, signal.SIGKILL)
        parent.stdout.close()
        parent.wait()
