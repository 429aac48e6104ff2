"""EnvPool's environments as a ``BatchedEnv``; needs the extra ``fastcollect[envpool]``.

EnvPool resets an episode that ended in the following step: that step ignores the row's action and
returns the new episode's first observation with reward 0 (gymnasium's NEXT_STEP). A ``reset(env_id)`` of
the rows that ended, right after the step, does the same at once and cancels the pending one, so here
every step is a real one and the true last observation is kept.

A row depends on its seed alone, of which EnvPool takes the low 31 bits. Where an episode ends at its
horizon, EnvPool reports ``truncated`` and never ``terminated`` as well. Importing EnvPool imports JAX if
that is installed; this package's own modules never do.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode

from fastcollect.envs.base import StepBuffers, check_action, checked_seeds
from fastcollect.envs.gym_vector import SUCCESS_KEYS, GymVectorEnv, space_spec

_SEED_BITS = 0x7FFFFFFF


def make(seeds: np.ndarray, *, env_id: str, num_threads: int = 1, **kwargs: Any) -> "EnvPoolEnv":
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
    has_success = any(f"info:{key}" in pool.spec.state_array_spec for key in SUCCESS_KEYS)
    horizon = pool.config.get("max_episode_steps")
    spec = space_spec(pool.observation_space, pool.action_space, horizon, has_success)
    return EnvPoolEnv(seeds, pool, spec, AutoresetMode.NEXT_STEP)


class EnvPoolEnv(GymVectorEnv):
    """A ``BatchedEnv`` over one EnvPool; see ``make``.

    An action that is no choice of a discrete space is found before EnvPool, whose native code would index
    with it, and raises EnvStepError.
    """

    def _seeded_reset(self) -> np.ndarray:
        return self._env.reset()[0]  # the pool was made with its seeds

    def _act(self, action: np.ndarray) -> tuple[Any, ...]:
        check_action(action, self.num_envs, self.spec.action)
        return self._env.step(action)

    def _restart(self, rows: np.ndarray, info: Mapping[str, Any], out: StepBuffers) -> None:
        out.final_observation[rows] = out.observation[rows]
        first, first_info = self._env.reset(rows.astype(np.int32))
        out.observation[first_info["env_id"]] = first
