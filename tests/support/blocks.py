"""Blocks made by hand, of a small box of actions."""

import numpy as np

from fastcollect.memory.block import Block, Episodes


def episodes(ends=(), observations=1):
    """ends: (row, return, length, success any, success last, first success) in the order of rows."""
    columns = list(zip(*ends, strict=True)) or [()] * 6
    kinds = (np.int64, np.float64, np.int64, bool, bool, np.int64)
    arrays = [np.array(column, kind) for column, kind in zip(columns, kinds, strict=True)]
    return Episodes(*arrays, final_observation=np.full((len(ends), observations), -7.0, np.float32))


def block(observation, action, *, env_index=None, first_step=0, reward=None, terminated=None, ends=()):
    """observation: (B + 1, b, o), action: (B, b, a); ends as for ``episodes``, truncations but where said."""
    steps, envs = action.shape[:2]
    terminated = np.zeros((steps, envs), bool) if terminated is None else terminated
    done = np.zeros(steps * envs, bool)
    done[[end[0] for end in ends]] = True
    return Block(
        worker=1,
        group=0,
        number=0,
        first_step=first_step,
        env_index=np.arange(envs) if env_index is None else np.asarray(env_index),
        observation=observation,
        action=action,
        reward=np.zeros((steps, envs)) if reward is None else reward,
        terminated=terminated,
        truncated=done.reshape(steps, envs) & ~terminated,
        success=np.zeros((steps, envs), bool),
        extras={},
        episodes=episodes(ends, observation.shape[2]),
    )
