"""The state of groups of environments as named plain arrays, and how it travels between processes.

The keys are ``group/FIRST/NAME``, FIRST being the global index of the group's first environment; see
Group.get_state for the names. Between processes such a dict travels as an npz archive in a memfd.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from fastcollect.envs.base import State, StateUnsupportedError
from fastcollect.support.errors import ConfigError
from fastcollect.support.named import below
from fastcollect.workers.group import Group

REFUSAL = "refusal"
"""The one entry of a state file whose worker could not save: a text that says why."""


def save_groups(groups: Sequence[Group], env_id: str) -> State:
    """``group/...`` of these groups. Raises ConfigError where an environment cannot save its state."""
    state: State = {}
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
            group.set_state(below(state, f"group/{group.first_env}/"))


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


def write_arrays(fd: int, arrays: Mapping[str, np.ndarray]) -> None:
    """Fill an empty memfd with an npz archive."""
    with os.fdopen(os.dup(fd), "wb") as file:
        file.seek(0)  # the position is shared with the process at the other end
        np.savez(file, allow_pickle=False, **arrays)


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
