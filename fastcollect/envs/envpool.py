"""EnvPool's environments as a ``BatchedEnv``; needs the extra ``fastcollect[envpool]``.

EnvPool resets an episode that ended in the following step: that step ignores the row's action and
returns the new episode's first observation with reward 0 (gymnasium's NEXT_STEP). An explicit
``reset(env_id)`` of the rows that ended, right after the step, does the same at once and cancels the
pending one, so here every step is a real one and the true last observation is kept.

Each environment has a seed and a generator of its own, so a row depends on its seed alone. EnvPool's
seeds are 32 bits: the low 31 bits of ours are used. Where an episode ends at its horizon, EnvPool
reports ``truncated`` and never ``terminated`` as well. Importing EnvPool imports JAX if that is
installed; this package's own modules never do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastcollect.envs.base import EnvSpec, EnvStepError, State, StateUnsupportedError, StepBuffers
from fastcollect.envs.gym_vector import SUCCESS_KEYS, action_spec, checked_seeds, observation_bounds

_SEED_BITS = 0x7FFFFFFF


def make(seeds: np.ndarray, *, env_id: str, num_threads: int = 1, **kwargs: Any) -> EnvPoolEnv:
    """Build one synchronous pool of ``len(seeds)`` environments.

    seeds: (n,) int64. env_id: a name of ``envpool.list_all_envs()``. num_threads: EnvPool's own threads;
    one is right where the caller runs a process for each core. kwargs: the environment's options.
    Raises ImportError without EnvPool, UnknownEnvError for an unknown name, UnsupportedSpaceError for
    spaces the engine cannot carry, ValueError for several players in one environment.
    """
    try:
        import envpool
    except ImportError as exc:
        raise ImportError(
            "the EnvPool backend needs EnvPool: pip install envpool (the extra fastcollect[envpool])"
        ) from exc
    seeds = checked_seeds(seeds)
    if env_id not in (names := envpool.list_all_envs()):
        from fastcollect.envs.registry import UnknownEnvError, nearest

        raise UnknownEnvError(f"envpool:{env_id}", [f"envpool:{name}" for name in nearest(env_id, names)])
    pool = envpool.make(
        env_id,
        env_type="gymnasium",
        num_envs=seeds.size,
        num_threads=num_threads,
        seed=[int(seed) & _SEED_BITS for seed in seeds],
        **kwargs,
    )
    if pool.config["max_num_players"] != 1:
        pool.close()
        raise ValueError(f"{env_id} has several players in one environment, which is not supported")
    return EnvPoolEnv(pool, seeds.size)


class EnvPoolEnv:
    """A ``BatchedEnv`` over one EnvPool; see ``make``.

    An exception of EnvPool is passed on as it is, since nothing says which row it belongs to; an action
    that is no choice of a discrete space is found beforehand and raises EnvStepError.
    """

    def __init__(self, pool: Any, num_envs: int) -> None:
        shape, dtype, low, high = observation_bounds(pool.observation_space)
        keys = [key for key in SUCCESS_KEYS if f"info:{key}" in pool.spec.state_array_spec]
        self._success_key = keys[0] if keys else None
        self.num_envs = num_envs
        self.spec = EnvSpec(
            observation_shape=shape,
            observation_dtype=dtype,
            observation_low=low,
            observation_high=high,
            action=action_spec(pool.action_space),
            max_episode_steps=pool.config.get("max_episode_steps"),
            has_success=self._success_key is not None,
        )
        self._pool = pool
        self._started = False

    def reset(self, observation: np.ndarray) -> None:
        """Start a new episode in every row; write (n, *observation_shape)."""
        observation[...] = self._pool.reset()[0]
        self._started = True

    def step(self, action: np.ndarray, out: StepBuffers) -> None:
        """Step every row; ``action`` is (n, *action.shape)."""
        if not self._started:
            raise RuntimeError("reset() must be called before step()")
        self._check(action)
        observation, reward, terminated, truncated, info = self._pool.step(action)
        out.observation[...] = observation
        out.reward[...] = reward
        out.terminated[...] = terminated
        out.truncated[...] = truncated
        if self._success_key is not None:
            out.success[...] = info[self._success_key].astype(np.bool_)
        rows = np.flatnonzero(out.terminated | out.truncated)
        if rows.size:
            out.final_observation[rows] = out.observation[rows]
            first, first_info = self._pool.reset(rows.astype(np.int32))
            out.observation[first_info["env_id"]] = first

    def _check(self, action: np.ndarray) -> None:
        """EnvPool indexes with the action in native code and does not check it."""
        spec = self.spec.action
        if action.shape != (self.num_envs, *spec.shape):
            raise ValueError(f"actions must have shape {(self.num_envs, *spec.shape)}, got {action.shape}")
        if spec.num_actions is not None and (action.min() < 0 or action.max() >= spec.num_actions):
            row = int(np.flatnonzero((action < 0) | (action >= spec.num_actions))[0])
            choices = f"0 to {spec.num_actions - 1}"
            raise EnvStepError(row, f"action {action[row]} of row {row} is not one of {choices}")

    def get_state(self) -> State:
        """Always raises StateUnsupportedError."""
        raise StateUnsupportedError("EnvPool offers no way to save an environment's state")

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Always raises StateUnsupportedError."""
        del state
        raise StateUnsupportedError("EnvPool offers no way to restore an environment's state")

    def close(self) -> None:
        """Close the pool; idempotent."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()
