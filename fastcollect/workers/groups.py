"""The groups of one env worker, or of the serial collector: how they are built, saved and restored."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from fastcollect.envs.base import EnvSpec, EnvStepError, State, StateUnsupportedError
from fastcollect.envs.registry import make_env, select_rows
from fastcollect.memory.ring import Ring
from fastcollect.support.errors import ConfigError
from fastcollect.support.named import below
from fastcollect.workers.group import EnvWorkerConfig, Group

_REFUSAL = "refusal"  # the one entry of a saved state whose worker could not save: a text that says why


def env_seeds(seed: int, first_env: int, num_envs: int, life: int) -> np.ndarray:
    """One int64 seed in [0, 2**63) for each environment, a function of (seed, index, life) alone."""
    words = [
        np.random.SeedSequence([seed, first_env + i, life]).generate_state(1, np.uint64)[0]
        for i in range(num_envs)
    ]
    return (np.array(words, np.uint64) >> np.uint64(1)).astype(np.int64)


def make_groups(config: EnvWorkerConfig, ring: Ring) -> list[Group]:
    """Build and reset every group of a worker."""
    groups, first = [], config.first_env
    for number, size in enumerate(config.ring.envs):
        seeds = env_seeds(config.seed, first, size, config.life)
        try:
            env = make_env(select_rows(config.env, first, size), seeds)
            _check_spec(env.spec, config.ring.spec, first)
            groups.append(Group(config, env, ring, number, first))
        except EnvStepError as error:
            error.add_note(f"environment {first + error.env_index}, step 0:")
            raise
        first += size
    return groups


def _check_spec(found: EnvSpec, expected: EnvSpec, first_env: int) -> None:
    def essence(spec: EnvSpec) -> tuple[Any, ...]:
        shape, dtype, action = spec.observation_shape, np.dtype(spec.observation_dtype), spec.action
        return shape, dtype, action.shape, np.dtype(action.dtype), action.num_actions, spec.has_success

    if essence(found) != essence(expected):
        differ = f"{first_env} on have {essence(found)}, environment 0 has {essence(expected)}"
        text = f"all environments of a run must have the same spaces: those from environment {differ}"
        raise ConfigError([text])


def save_groups(groups: Sequence[Group], env_id: str) -> State:
    """The state of these groups. Raises ConfigError where an environment cannot save its state."""
    state: State = {}
    for group in groups:
        with _naming(group, env_id, StateUnsupportedError):
            saved = group.get_state()
            if objects := [name for name, array in saved.items() if array.dtype.hasobject]:
                raise StateUnsupportedError(f"its state holds Python objects, not plain arrays, in {objects}")
        state |= {f"group/{group.first_env}/{name}": array for name, array in saved.items()}
    return state


def restore_groups(groups: Sequence[Group], env_id: str, state: Mapping[str, np.ndarray]) -> None:
    """Restore groups that were just made. Raises ConfigError where an environment refuses its state."""
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


def write_groups(fd: int, groups: Sequence[Group], env_id: str) -> None:
    """Fill a memfd with the state of these groups, or with the reason why it cannot be saved."""
    try:
        arrays = save_groups(groups, env_id)
    except ConfigError as error:  # no reason to end a worker
        arrays = {_REFUSAL: np.array(str(error))}
    write_arrays(fd, arrays)


def write_arrays(fd: int, arrays: Mapping[str, np.ndarray]) -> None:
    """Fill a memfd with an npz archive, and with nothing else."""
    os.ftruncate(fd, 0)
    with os.fdopen(os.dup(fd), "wb") as file:
        file.seek(0)  # the position is shared with the process at the other end
        np.savez(file, allow_pickle=False, **arrays)


def read_arrays(fd: int) -> State:
    """Take out of a memfd what was written there, or {}. Raises ConfigError where that is a reason."""
    if os.fstat(fd).st_size == 0:
        return {}
    with os.fdopen(os.dup(fd), "rb") as file:
        file.seek(0)
        with np.load(file, allow_pickle=False) as archive:
            arrays = dict(archive)
    os.ftruncate(fd, 0)
    if _REFUSAL in arrays:
        raise ConfigError([str(arrays[_REFUSAL])])
    return arrays
