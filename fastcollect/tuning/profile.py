"""Tuned n, N and M, remembered for each machine, environment and policy."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastcollect.envs.registry import EnvConfig
from fastcollect.policies.base import PolicyConfig
from fastcollect.support.cpu import cpu_count
from fastcollect.support.files import write_file
from fastcollect.support.machine import cpu_model


@dataclass(frozen=True, kw_only=True)
class Profile:
    """num_envs: n. num_env_workers: N. num_model_workers: M. fps: what they reached when tuned."""

    num_envs: int
    num_env_workers: int
    num_model_workers: int
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
    write_file(target, json.dumps({"key": _key(env, policy), "best": asdict(profile)}, indent=2) + "\n")
    return target


def load(env: EnvConfig, policy: PolicyConfig) -> Profile | None:
    """The saved profile, or None if there is none for this machine or the file is not one."""
    try:
        best = json.loads(path(env, policy).read_text())["best"]
        profile = Profile(
            num_envs=int(best["num_envs"]),
            num_env_workers=int(best["num_env_workers"]),
            num_model_workers=int(best["num_model_workers"]),
            fps=float(best["fps"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    in_range = profile.num_envs >= 1 and profile.num_env_workers >= 1 and profile.num_model_workers >= 0
    return profile if in_range else None
