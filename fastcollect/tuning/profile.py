"""Tuned n, N and M, remembered for each machine, environment and policy."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastcollect.control.parallelism import Parallelism
from fastcollect.envs.registry import EnvConfig
from fastcollect.policies.base import PolicyConfig
from fastcollect.support.cpu import cpu_count
from fastcollect.support.files import write_file
from fastcollect.support.machine import cpu_model


@dataclass(frozen=True, kw_only=True)
class Profile:
    """parallelism: the fastest n, N and M. fps: what they reached when tuned."""

    parallelism: Parallelism
    fps: float


def folder() -> Path:
    """Where profiles are kept: ``fastcollect/profiles`` in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "fastcollect" / "profiles"


def _key(env: EnvConfig, policy: PolicyConfig) -> dict[str, Any]:
    return {
        "cpu": cpu_model(),
        "cpus": cpu_count(),
        "env": env.id,
        "env_kwargs": repr(sorted(env.kwargs.items())),
        "policy": policy.name,
    }


def path(env: EnvConfig, policy: PolicyConfig) -> Path:
    """The file of one profile, named by a hash of its key."""
    digest = hashlib.sha256(json.dumps(_key(env, policy), sort_keys=True).encode()).hexdigest()[:16]
    name = "".join(c if c.isalnum() or c in "-_." else "_" for c in env.id)
    return folder() / f"{name}-{digest}.json"


def save(env: EnvConfig, policy: PolicyConfig, profile: Profile) -> Path:
    """Write the profile atomically; returns its path."""
    target = path(env, policy)
    best = {**profile.parallelism.as_dict(), "fps": profile.fps}
    write_file(target, json.dumps({"key": _key(env, policy), "best": best}, indent=2) + "\n")
    return target


def load(env: EnvConfig, policy: PolicyConfig) -> Profile | None:
    """The saved profile, or None if there is none for this machine or the file is not one."""
    try:
        best = json.loads(path(env, policy).read_text())["best"]
        found = Parallelism(n=int(best["n"]), N=int(best["N"]), M=int(best["M"]))
        profile = Profile(parallelism=found, fps=float(best["fps"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return profile if found.n >= 1 and found.N >= 1 and found.M >= 0 else None
