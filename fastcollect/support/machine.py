"""What a result must say about where it was measured."""

import contextlib
import functools
import importlib.metadata
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import psutil

from fastcollect.support.cpu import allowed_cpus, cpu_count, cpu_quota

_NUMBERS = ("numpy", "scipy", "jax", "jaxlib", "flax", "optax")
_SIMULATORS = ("gymnasium", "metaworld", "mujoco", "envpool")
_ROOT = Path(__file__).resolve().parents[2]


def cpu_model() -> str:
    """The processor's name, as the kernel tells it."""
    with contextlib.suppress(OSError):
        if found := re.search(r"^model name\s*:(.*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
            return found[1].strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide speed and results; absent ones are left out."""
    found = {"python": platform.python_version()}
    for name in _NUMBERS + _SIMULATORS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


@functools.cache
def commit() -> str | None:
    """The commit of this source tree, with "+" if it was changed since; None outside a repository."""

    def git(*args: str) -> str:
        command = ["git", "-C", str(_ROOT), *args]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def machine() -> dict[str, Any]:
    """Processor, limits, memory, system, versions and commit, ready for JSON."""
    return {
        "cpu": cpu_model(),
        "cpus": cpu_count(),
        "cpus_allowed": len(allowed_cpus()),
        "cpu_quota": cpu_quota(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "versions": versions(),
        "commit": commit(),
    }
