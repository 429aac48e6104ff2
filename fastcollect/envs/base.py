"""The protocol of a batched environment, the types that cross it, and the checks that environments share.

A batched environment steps ``num_envs`` independent copies in one call and writes everything it
produces into arrays that the caller owns (slots of a shared-memory ring, usually). It resets a copy
whose episode ended within the same call (gymnasium's SAME_STEP), after it has saved the true last
observation of that episode to a place of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

State = dict[str, np.ndarray]
"""What ``get_state`` returns: named arrays of plain dtypes (no object arrays), ready for ``np.savez``."""


@dataclass(frozen=True, kw_only=True)
class ActionSpec:
    """One environment's action: a box of floats, or one of ``num_actions`` integers.

    low, high: arrays of ``shape``; None for a discrete action.
    num_actions: the number of choices of a discrete action (0 .. num_actions - 1); None for a box.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    num_actions: int | None = None

    @property
    def discrete(self) -> bool:
        """Whether the action is one of ``num_actions`` integers."""
        return self.num_actions is not None


@dataclass(frozen=True, kw_only=True)
class EnvSpec:
    """What the engine must know of an environment before it can size its memory.

    observation_shape, observation_dtype: one environment's observation, as the environment emits it.
    observation_low, observation_high: truthful bounds, broadcastable to the shape.
    max_episode_steps: the horizon after which an episode is truncated, if it is known.
    has_success: whether ``StepBuffers.success`` is written.
    """

    observation_shape: tuple[int, ...]
    observation_dtype: np.dtype
    observation_low: np.ndarray
    observation_high: np.ndarray
    action: ActionSpec
    max_episode_steps: int | None = None
    has_success: bool = False


@dataclass(frozen=True)
class StepBuffers:
    """Where ``BatchedEnv.step`` writes; n = num_envs, every array C-contiguous and owned by the caller.

    observation: (n, *observation_shape): the next observation, or, where an episode ended, the first
        observation of the next episode.
    reward: (n,) float64. terminated, truncated: (n,) bool.
    final_observation: (n, *observation_shape): the true last observation, written only in the rows
        whose episode ended; the other rows keep what they held.
    success: (n,) bool: the task's success signal at this step; left alone unless spec.has_success.
    """

    observation: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    final_observation: np.ndarray
    success: np.ndarray

    @classmethod
    def allocate(cls, spec: EnvSpec, num_envs: int) -> "StepBuffers":
        """Private buffers of the right shapes, for callers without a ring."""
        observation = (num_envs, *spec.observation_shape)
        return cls(
            observation=np.zeros(observation, spec.observation_dtype),
            reward=np.zeros(num_envs, np.float64),
            terminated=np.zeros(num_envs, np.bool_),
            truncated=np.zeros(num_envs, np.bool_),
            final_observation=np.zeros(observation, spec.observation_dtype),
            success=np.zeros(num_envs, np.bool_),
        )


@runtime_checkable
class BatchedEnv(Protocol):
    """``num_envs`` independent environments stepped together.

    Built by a factory ``factory(seeds, **kwargs)``: ``seeds`` is an int64 array of non-negative seeds
    below 2**63, one for each environment, and environment ``i`` depends on ``seeds[i]`` and on its own
    actions alone, never on the batch it happens to be in.
    """

    num_envs: int
    spec: EnvSpec

    def reset(self, observation: np.ndarray) -> None:
        """Start a new episode everywhere; write the first observations, (n, *observation_shape)."""

    def step(self, action: np.ndarray, out: StepBuffers) -> None:
        """Step every environment once; ``action`` is (n, *action.shape) and is not modified.

        Raises EnvStepError when one environment fails.
        """

    def get_state(self) -> State:
        """Everything that the continuation depends on, generators included, as a copy."""

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Continue bit for bit from ``get_state``'s result (same num_envs and kwargs)."""

    def close(self) -> None:
        """Release what the environments hold; idempotent."""


class EnvStepError(RuntimeError):
    """One environment of a batch raised; ``env_index`` is its row. The cause is chained."""

    def __init__(self, env_index: int, message: str) -> None:
        super().__init__(message)
        self.env_index = env_index


class UnsupportedSpaceError(ValueError):
    """An observation or action space that the engine cannot carry; the text says what it can."""


class StateUnsupportedError(RuntimeError):
    """This environment cannot save or restore its state; the text says why."""


def checked_seeds(seeds: np.ndarray) -> np.ndarray:
    """``seeds`` as (n,) int64. Raises ValueError where they are none, negative or not 1-d."""
    seeds = np.asarray(seeds, np.int64)
    if seeds.ndim != 1 or not seeds.size or seeds.min() < 0:
        raise ValueError(f"seeds must be a non-empty 1-d array of non-negative integers, got {seeds!r}")
    return seeds


def check_action(action: np.ndarray, num_envs: int, spec: ActionSpec) -> None:
    """Raises ValueError for a wrong shape, EnvStepError for what is no choice of a discrete action."""
    if action.shape != (num_envs, *spec.shape):
        raise ValueError(f"actions must have shape {(num_envs, *spec.shape)}, got {action.shape}")
    if spec.num_actions is not None and (action.min() < 0 or action.max() >= spec.num_actions):
        row = int(np.flatnonzero((action < 0) | (action >= spec.num_actions))[0])
        choices = f"0 to {spec.num_actions - 1}"
        raise EnvStepError(row, f"action {action[row]} of row {row} is not one of {choices}")


def restore_arrays(arrays: Mapping[str, np.ndarray], state: Mapping[str, np.ndarray]) -> None:
    """Copy the entries of ``state`` with these names into ``arrays``.

    Raises ValueError, before any is copied, where one is missing or of another shape or type.
    """
    for name, array in arrays.items():
        given = state.get(name)
        if given is None or given.shape != array.shape or given.dtype != array.dtype:
            found = "missing" if given is None else f"{given.dtype} of shape {given.shape}"
            raise ValueError(f"saved {name!r} is {found}; expected {array.dtype} of shape {array.shape}")
    for name, array in arrays.items():
        array[...] = state[name]
