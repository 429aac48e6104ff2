"""What the container allows, not what the host has: processors, memory, thread caps."""

import math
import os
from pathlib import Path

import psutil

THREAD_CAPS = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL", "NUMEXPR")}
"""Environment of a worker process. Thread pools size themselves when their library loads, by the host."""

_CGROUP = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
_MEMORY = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""In each version of control groups: the limit, what is used, and what of it are only copies of files, which
the kernel drops when it needs room (in memory.stat)."""


def _read(path: Path, default: str = "") -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return default


def _control_groups(root: Path, membership: Path) -> list[Path]:
    """This process's control groups of both versions and their ancestors; a limit on any of them binds."""
    own = {"": "/", "cpu": "/", "memory": "/"}  # the second version, and the first one's by controller
    for line in _read(membership).splitlines():
        _, controllers, path = line.split(":", 2)
        own |= dict.fromkeys(own.keys() & controllers.split(","), path)
    folders = []
    for controller, path in own.items():
        base = root / controller
        folder = base / path.lstrip("/")
        folders += [folder, *(p for p in folder.parents if p.is_relative_to(base))]
    return folders


def cpu_quota(root: Path = _CGROUP, membership: Path = _MEMBERSHIP) -> float | None:
    """Processors' worth of time that the control groups grant, or None without a limit."""
    quotas = []
    for group in _control_groups(root, membership):
        first = f"{_read(group / 'cpu.cfs_quota_us', '-1')} {_read(group / 'cpu.cfs_period_us')}"
        quota, _, period = _read(group / "cpu.max", first).partition(" ")
        if quota != "max" and int(quota) > 0:
            quotas.append(int(quota) / int(period or 100_000))
    return min(quotas, default=None)


def allowed_cpus() -> list[int]:
    """The processors this process may run on."""
    return sorted(os.sched_getaffinity(0))


def idle_cpus(seconds: float = 0.05) -> list[int]:
    """The processors this process may run on, those with least to do first.

    So that two runs side by side do not pin their workers to the same ones.
    """
    busy = psutil.cpu_percent(seconds, percpu=True)
    return sorted(allowed_cpus(), key=lambda cpu: round(busy[cpu], -1) if cpu < len(busy) else 0.0)


def cpu_count(root: Path = _CGROUP, membership: Path = _MEMBERSHIP) -> int:
    """How many processors' worth of work may run here at once, at least 1."""
    quota = cpu_quota(root, membership)
    count = len(allowed_cpus())
    return count if quota is None else max(1, min(count, math.ceil(quota)))


def memory_available(root: Path = _CGROUP, membership: Path = _MEMBERSHIP) -> int:
    """Bytes that can still be taken: the host's available memory, or less where a control group limits it."""
    left = [psutil.virtual_memory().available]
    for group in _control_groups(root, membership):
        stat = dict(line.split() for line in _read(group / "memory.stat").splitlines())
        for limit_name, used_name, cache_name in _MEMORY:
            limit, used = _read(group / limit_name, "max"), _read(group / used_name)
            if limit != "max" and used:
                left.append(int(limit) - int(used) + int(stat.get(cache_name, 0)))
    return max(0, min(left))
