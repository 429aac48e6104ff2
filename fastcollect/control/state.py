"""What a collector's continuation depends on, as a flat dict of named plain arrays.

Everything is kept by group of environments, under the global index of the group's first one, and nothing by
worker. The keys:

- ``config/NAME``: what must be the same where the state is restored; ``life``: which life the environments
  are in, see EnvWorkerConfig.
- ``version``, ``published/NAME``, ``staged`` (bool), ``staged/NAME``: see WeightsBoard.get_state.
- ``group/FIRST/NAME``: see Group.get_state; of a reproducible collector only.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from fastcollect.control.config import CollectorConfig
from fastcollect.envs.registry import EnvConfig
from fastcollect.memory.board import mismatches
from fastcollect.policies.base import Policy
from fastcollect.support.errors import ConfigError
from fastcollect.support.named import below


def check_fits(state: Mapping[str, np.ndarray], config: CollectorConfig, policy: Policy) -> int:
    """The life that its environments go on with: of a reproducible collector the saved one, else the next.

    Raises ConfigError that names everything in which the state differs from this configuration.
    """
    problems = [
        f"the saved state has no {name!r}" for name in ("life", "version", "staged") if name not in state
    ]
    for name, value in identity(config).items():
        saved = state.get(f"config/{name}")
        if saved is None or not np.array_equal(saved, value):
            text = "missing" if saved is None else _short(saved)
            problems.append(f"{name} is {_short(value)} here, {text} in the saved state")
    for kind in ("published", "staged"):
        parameters = below(state, f"{kind}/")
        if kind == "published" or parameters:
            problems += [f"{kind} weights: {text}" for text in mismatches(parameters, policy.parameters)]
    if config.reproducible and not problems:
        sizes = config.groups * config.num_env_workers
        firsts = itertools.accumulate((config.first_env, *sizes[:-1]))
        keys = [f"group/{first}/first_step" for first in firsts]
        problems = [f"the saved state has no {key!r}" for key in keys if key not in state]
    if problems:
        raise ConfigError(problems)
    return int(state["life"]) + (not config.reproducible)


def identity(config: CollectorConfig) -> dict[str, Any]:
    """What must be the same where a state is restored."""
    same = {
        "env": _describe(config.env),
        "seed": config.seed,
        "first_env": config.first_env,
        "schedule": config.schedule,
        "reproducible": config.reproducible,
    }
    if config.reproducible:
        sizes = config.groups * config.num_env_workers
        same |= {"block_length": config.block_length, "total_envs": config.total_envs, "group_sizes": sizes}
    return same


def _describe(env: EnvConfig) -> str:
    """A text that is the same in every process. What JSON does not know counts by its name or type."""

    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray | np.generic):
            return value.tolist()
        return getattr(value, "__qualname__", type(value).__qualname__)

    kwargs = dict(sorted(env.kwargs.items()))
    return json.dumps([env.id, env.entry_point, kwargs], default=plain, skipkeys=True)


def _short(value: Any) -> str:
    return np.array2string(np.asarray(value), threshold=8)
