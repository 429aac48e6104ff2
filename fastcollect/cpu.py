"""What the container allows, not what the host has: processors, memory, thread caps."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

import psutil

THREAD_CAPS: Mapping[str, str] = dict.fromkeys(
    (
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
        "NUMEXPR_NUM_THREADS",
        "VECLIB_MAXIMUM_THREADS",
    ),
    "1",
)
"""Environment of a worker process. Thread pools size themselves when their library loads, by the host."""

_CGROUP = Path("/sys/fs/cgroup")


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _cgroup_folders(root: Path) -> list[Path]:
    """This process's control group and its ancestors; a limit on any of them binds."""
    own = "/"
    for line in (_read(Path("/proc/self/cgroup")) or "").splitlines():
        hierarchy, _, path = line.split(":", 2)
        if hierarchy == "0":
            own = path
    folder = root / own.lstrip("/")
    return [folder, *(p for p in folder.parents if p.is_relative_to(root))]


def cpu_quota(root: Path = _CGROUP) -> float | None:
    """Processors' worth of time that the control groups grant, or None without a limit."""
    quotas = []
    for folder in _cgroup_folders(root):
        quota, _, period = (_read(folder / "cpu.max") or "max").partition(" ")
        if quota != "max":
            quotas.append(int(quota) / int(period or 100_000))
    v1 = root / "cpu"
    quota_us, period_us = _read(v1 / "cpu.cfs_quota_us"), _read(v1 / "cpu.cfs_period_us")
    if quota_us and period_us and int(quota_us) > 0:
        quotas.append(int(quota_us) / int(period_us))
    return min(quotas, default=None)


def allowed_cpus() -> list[int]:
    """The processors this process may run on."""
    return sorted(os.sched_getaffinity(0))


def cpu_count() -> int:
    """How many processors' worth of work may run here at once, at least 1."""
    quota = cpu_quota()
    count = len(allowed_cpus())
    return count if quota is None else max(1, min(count, math.ceil(quota)))


def memory_available(root: Path = _CGROUP) -> int:
    """Bytes that can still be taken: the host's available memory or what is left of the group's limit."""
    left = [psutil.virtual_memory().available]
    for folder in _cgroup_folders(root):
        limit, used = _read(folder / "memory.max"), _read(folder / "memory.current")
        if limit and used and limit != "max":
            left.append(int(limit) - int(used))
    v1 = root / "memory"
    limit, used = _read(v1 / "memory.limit_in_bytes"), _read(v1 / "memory.usage_in_bytes")
    if limit and used:
        left.append(int(limit) - int(used))
    return max(0, min(left))
