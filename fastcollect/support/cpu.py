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
_MEMBERSHIP = Path("/proc/self/cgroup")


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _cgroup_folders(root: Path, membership: Path, controller: str | None = None) -> list[Path]:
    """This process's control group and its ancestors; a limit on any of them binds.

    controller: of the first version of control groups, mounted at ``root / controller``; None for the second.
    """
    base, own = root if controller is None else root / controller, "/"
    for line in (_read(membership) or "").splitlines():
        hierarchy, controllers, path = line.split(":", 2)
        if hierarchy == "0" if controller is None else controller in controllers.split(","):
            own = path
    folder = base / own.lstrip("/")
    return [folder, *(p for p in folder.parents if p.is_relative_to(base))]


def cpu_quota(root: Path = _CGROUP, membership: Path = _MEMBERSHIP) -> float | None:
    """Processors' worth of time that the control groups grant, or None without a limit."""
    quotas = []
    for folder in _cgroup_folders(root, membership):
        quota, _, period = (_read(folder / "cpu.max") or "max").partition(" ")
        if quota != "max":
            quotas.append(int(quota) / int(period or 100_000))
    for folder in _cgroup_folders(root, membership, "cpu"):
        quota_us, period_us = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        if quota_us and period_us and int(quota_us) > 0:
            quotas.append(int(quota_us) / int(period_us))
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
    """Bytes that can still be taken: the host's available memory or what is left of the group's limit."""
    left = [psutil.virtual_memory().available]
    versions = (
        (None, "memory.max", "memory.current", "inactive_file"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    )
    for controller, limit_name, used_name, cache_name in versions:
        for folder in _cgroup_folders(root, membership, controller):
            limit, used = _read(folder / limit_name), _read(folder / used_name)
            if limit and used and limit != "max":
                left.append(int(limit) - int(used) + _file_cache(folder, cache_name))
    return max(0, min(left))


def _file_cache(folder: Path, name: str) -> int:
    """Bytes that count as used but are only copies of files, which the kernel drops when it needs room."""
    for line in (_read(folder / "memory.stat") or "").splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0
