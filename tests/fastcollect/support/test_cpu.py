"""Processors and memory are what the container allows."""

import os
import subprocess
import sys

import psutil
import pytest

from fastcollect.support.cpu import THREAD_CAPS, allowed_cpus, cpu_count, cpu_quota, memory_available

GIB = 2**30


class Host:
    """A tree of control group files, and the membership of a process in it."""

    def __init__(self, folder):
        self.root = folder / "cgroup"
        self.membership = folder / "membership"
        self.root.mkdir()

    def member_of(self, *lines):
        self.membership.write_text("\n".join(lines) + "\n")

    def write(self, path, text):
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")

    def ask(self, function):
        return function(self.root, self.membership)


@pytest.fixture
def host(tmp_path):
    made = Host(tmp_path)
    made.member_of("0::/")
    return made


def allowed(count):
    """A quota's worth of processors, where there are as many."""
    return min(count, len(os.sched_getaffinity(0)))


def test_without_control_groups_the_affinity_counts(host):
    assert host.ask(cpu_quota) is None
    assert host.ask(cpu_count) == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("text", "quota", "count"),
    [
        ("max 100000", None, 1000),
        ("400000 100000", 4.0, 4),
        ("250000 100000", 2.5, 3),
        ("100000 100000", 1.0, 1),
        ("150000 100000", 1.5, 2),
        ("20000 100000", 0.2, 1),
        ("1000 1000000", 0.001, 1),
        ("3200000 100000", 32.0, 32),
        ("50000 10000", 5.0, 5),
        ("300000", 3.0, 3),  # the period may be left out
    ],
)
def test_the_quota_of_the_second_version(host, text, quota, count):
    host.write("cpu.max", text)
    assert host.ask(cpu_quota) == quota
    assert host.ask(cpu_count) == allowed(count)


def test_a_limit_on_any_ancestor_binds(host):
    host.member_of("0::/pods/mine/inner")
    host.write("pods/mine/inner/cpu.max", "max 100000")
    host.write("pods/mine/cpu.max", "600000 100000")
    host.write("pods/cpu.max", "300000 100000")
    host.write("pods/other/cpu.max", "100000 100000")  # not ours
    assert host.ask(cpu_quota) == 3
    host.write("pods/mine/inner/cpu.max", "100000 100000")
    assert host.ask(cpu_quota) == host.ask(cpu_count) == 1


def test_a_group_named_as_the_host_sees_it_falls_back_to_what_is_mounted(host):
    host.member_of("0::/docker/0123456789")
    host.write("cpu.max", "100000 100000")
    assert host.ask(cpu_quota) == host.ask(cpu_count) == 1


@pytest.mark.parametrize(
    ("quota", "period", "count"),
    [(-1, 100_000, 1000), (200_000, 100_000, 2), (150_000, 100_000, 2), (1000, 100_000, 1)],
)
@pytest.mark.parametrize("folder", ["cpu", "cpu/docker/abc", "cpu/docker"])
def test_the_quota_of_the_first_version(host, quota, period, count, folder):
    host.member_of("7:cpu,cpuacct:/docker/abc", "4:memory:/elsewhere", "0::/")
    host.write(f"{folder}/cpu.cfs_quota_us", quota)
    host.write(f"{folder}/cpu.cfs_period_us", period)
    assert host.ask(cpu_count) == allowed(count)


def test_the_affinity_of_a_real_process():
    cpus = sorted(os.sched_getaffinity(0))
    code = (
        "import os, sys\n"
        "os.sched_setaffinity(0, {int(sys.argv[1])})\n"
        "from fastcollect.support.cpu import allowed_cpus, cpu_count\n"
        "print(allowed_cpus(), cpu_count())\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    for cpu in cpus[:2]:
        done = subprocess.run(
            [sys.executable, "-c", code, str(cpu)],
            capture_output=True,
            text=True,
            env=environment,
            check=True,
        )
        assert done.stdout.split() == [f"[{cpu}]", "1"]
    assert allowed_cpus() == cpus
    assert 1 <= cpu_count() <= len(cpus)


def test_memory_is_what_is_left_of_the_tightest_limit(host):
    host.member_of("0::/pods/mine")
    host.write("pods/mine/memory.max", "max")
    host.write("pods/mine/memory.current", GIB)
    assert host.ask(memory_available) == pytest.approx(psutil.virtual_memory().available, rel=0.2)
    host.write("pods/memory.max", 2**20)
    host.write("pods/memory.current", 2**18)
    assert host.ask(memory_available) == 3 * 2**18
    host.write("pods/mine/memory.max", 2**19)
    host.write("pods/mine/memory.current", 2**18)
    assert host.ask(memory_available) == 2**18
    host.write("pods/mine/memory.current", 2**21)  # a limit may be set below what is in use
    assert host.ask(memory_available) == 0


@pytest.mark.parametrize("folder", ["memory", "memory/docker", "memory/docker/abc"])
def test_memory_of_the_first_version(host, folder):
    host.member_of("4:memory:/docker/abc", "7:cpu,cpuacct:/", "0::/")
    host.write(f"{folder}/memory.limit_in_bytes", 2**20)
    host.write(f"{folder}/memory.usage_in_bytes", 2**18)
    assert host.ask(memory_available) == 3 * 2**18
    host.write(f"{folder}/memory.limit_in_bytes", 9223372036854771712)  # how no limit is written
    assert host.ask(memory_available) == pytest.approx(psutil.virtual_memory().available, rel=0.2)


def test_copies_of_files_are_not_counted_as_taken(host):
    host.write("memory.max", 2**20)
    host.write("memory.current", 2**20)
    host.write("memory.stat", f"anon 1234\ninactive_file {2**19}\nactive_file 77")
    assert host.ask(memory_available) == 2**19
    host.write("memory/memory.limit_in_bytes", 2**20)
    host.write("memory/memory.usage_in_bytes", 2**20)
    host.write("memory/memory.stat", f"inactive_file 5\ntotal_inactive_file {2**18}")
    assert host.ask(memory_available) == 2**18


def test_this_machine_has_memory_and_processors():
    assert memory_available() > 0
    assert cpu_quota() is None or cpu_quota() > 0


def test_every_cap_is_one_thread():
    assert set(THREAD_CAPS.values()) == {"1"}
    assert {"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"} <= set(THREAD_CAPS)
