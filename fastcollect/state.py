"""What a collector's continuation depends on, as a flat dict of named plain arrays.

Everything is kept by group of environments, under the global index of the group's first one, and nothing by
worker. The keys:

- ``config/NAME``: what must be the same where the state is restored; ``life``: which life the environments
  are in, see GroupsConfig.
- ``version``, ``published/NAME``, ``staged`` (bool), ``staged/NAME``: see WeightsBoard.get_state.
- ``group/FIRST/NAME``: see Group.get_state; in lockstep only.

Between processes such a dict travels as an npz archive in a memfd.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from fastcollect.board import WeightsBoard, mismatches
from fastcollect.config import CollectorConfig
from fastcollect.envs.base import State, StateUnsupportedError
from fastcollect.envs.registry import EnvConfig
from fastcollect.errors import ConfigError
from fastcollect.group import Group
from fastcollect.policies.base import Policy


def common_state(config: CollectorConfig, life: int, board: WeightsBoard) -> State:
    """Everything but the groups. config: with its environment resolved."""
    identity = {f"config/{name}": np.asarray(value) for name, value in _identity(config).items()}
    return {**identity, "life": np.array(life), **board.get_state()}


def check_fits(state: Mapping[str, np.ndarray], config: CollectorConfig, policy: Policy) -> int:
    """The life that its environments go on with: in lockstep the saved one, else the next.

    Raises ConfigError that names everything in which the state differs from this configuration.
    """
    problems = [
        f"the saved state has no {name!r}" for name in ("life", "version", "staged") if name not in state
    ]
    for name, value in _identity(config).items():
        saved = state.get(f"config/{name}")
        if saved is None or not np.array_equal(saved, value):
            text = "missing" if saved is None else _short(saved)
            problems.append(f"{name} is {_short(value)} here, {text} in the saved state")
    for kind in ("published", "staged"):
        parameters = entries(state, f"{kind}/")
        if kind == "published" or parameters:
            problems += [f"{kind} weights: {text}" for text in mismatches(parameters, policy.parameters)]
    if config.lockstep and not problems:
        sizes = config.groups * config.num_env_workers
        keys = [f"group/{first}/first_step" for first in itertools.accumulate((0, *sizes[:-1]))]
        problems = [f"the saved state has no {key!r}" for key in keys if key not in state]
    if problems:
        raise ConfigError(problems)
    return int(state["life"]) + (not config.lockstep)


def saved_blocks(state: Mapping[str, np.ndarray], config: CollectorConfig) -> int:
    """How many blocks each group had published, in lockstep."""
    return int(state["group/0/first_step"]) // config.block_length


def between_rounds_only(taken: int, groups: int) -> RuntimeError:
    """The error for asking for a lockstep collector's state too early."""
    return RuntimeError(
        "a lockstep collector has a state only between two rounds of blocks, and of this round "
        f"{taken} of {groups} were taken: take the others first"
    )


def save_groups(groups: Sequence[Group], env_id: str) -> State:
    """``group/...`` of these groups. Raises ConfigError where an environment cannot save its state."""
    state = {}
    for group in groups:
        with _naming(group, env_id, StateUnsupportedError):
            saved = group.get_state()
            if objects := [name for name, array in saved.items() if array.dtype.hasobject]:
                raise StateUnsupportedError(f"its state holds Python objects, not plain arrays, in {objects}")
        state |= {f"group/{group.first_env}/{name}": array for name, array in saved.items()}
    return state


def restore_groups(groups: Sequence[Group], env_id: str, state: Mapping[str, np.ndarray]) -> None:
    """The reverse, of groups just made. Raises ConfigError where an environment refuses its state."""
    for group in groups:
        with _naming(group, env_id, StateUnsupportedError, ValueError, KeyError):
            group.set_state(entries(state, f"group/{group.first_env}/"))


@contextmanager
def _naming(group: Group, env_id: str, *kinds: type[Exception]) -> Iterator[None]:
    try:
        yield
    except kinds as error:
        last = group.first_env + group.env.num_envs - 1
        name = f"environments {group.first_env} to {last} ({env_id})"
        raise ConfigError([f"{name}: {type(error).__name__}: {error}"]) from error


def groups_between(state: Mapping[str, np.ndarray], first_env: int, end: int) -> State:
    """The ``group/...`` entries of groups whose first environment is in first_env .. end - 1."""
    keys = [key for key in state if key.startswith("group/") and first_env <= int(key.split("/")[1]) < end]
    return {key: state[key] for key in keys}


def entries(state: Mapping[str, np.ndarray], prefix: str) -> State:
    """What stands below a prefix, without it."""
    return {key.removeprefix(prefix): state[key] for key in state if key.startswith(prefix)}


def write_arrays(fd: int, arrays: Mapping[str, np.ndarray]) -> None:
    """Fill an empty memfd with an npz archive."""
    with os.fdopen(os.dup(fd), "wb") as file:
        file.seek(0)  # the position is shared with the process at the other end
        np.savez(file, **arrays)


def read_arrays(fd: int) -> State:
    """Take out of a memfd what ``write_arrays`` left there; {} if it is empty, as it is after this."""
    if os.fstat(fd).st_size == 0:
        return {}
    with os.fdopen(os.dup(fd), "rb") as file:
        file.seek(0)
        with np.load(file, allow_pickle=False) as archive:
            arrays = dict(archive)
    os.ftruncate(fd, 0)
    return arrays


def _identity(config: CollectorConfig) -> dict[str, Any]:
    same = {"env": _describe(config.env), "seed": config.seed, "lockstep": config.lockstep}
    if config.lockstep:
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
