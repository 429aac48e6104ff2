"""Tuned n, N and M, remembered for each machine, environment and policy."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from fastcollect.control.parallelism import Parallelism
from fastcollect.envs.registry import EnvConfig
from fastcollect.policies.base import PolicyConfig
from fastcollect.support.cpu import cpu_count
from fastcollect.support.files import file_name, write_file
from fastcollect.support.machine import cpu_model


def _file(env: EnvConfig, policy: PolicyConfig) -> tuple[Path, dict[str, Any]]:
    """The file of one profile, in the user's cache folder, and the key whose hash names it."""
    key = {
        "cpu": cpu_model(),
        "cpus": cpu_count(),
        "env": env.id,
        "env_kwargs": repr(sorted(env.kwargs.items())),
        "policy": policy.name,
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "fastcollect" / "profiles" / f"{file_name(env.id)}-{digest}.json", key


def save(env: EnvConfig, policy: PolicyConfig, best: Parallelism, fps: float) -> Path:
    """Remember the best, and what it reached when it was tuned; returns the file. Raises ConfigError."""
    file, key = _file(env, policy)
    write_file(file, json.dumps({"key": key, "best": {**best.as_dict(), "fps": fps}}, indent=2) + "\n")
    return file


def load(env: EnvConfig, policy: PolicyConfig) -> Parallelism | None:
    """The best that was saved, or None if there is none for this machine or the file is not one."""
    try:
        best = json.loads(_file(env, policy)[0].read_text())["best"]
        found = Parallelism(n=int(best["n"]), N=int(best["N"]), M=int(best["M"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if found.n >= 1 and found.N >= 1 and found.M >= 0 else None
