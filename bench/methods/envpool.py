"""EnvPool's own vector environments."""

from __future__ import annotations

import numpy as np

from bench.methods.base import (
    METAWORLD_TASKS,
    Request,
    Subject,
    UnsupportedError,
    draw_actions,
    stock_name,
)
from fastcollect.support.cpu import cpu_count


def envpool_name(env_id: str) -> str:
    """EnvPool's name: "reach-v3" is "MetaWorld/Reach-v3"; the others are called as in gymnasium."""
    if env_id not in METAWORLD_TASKS:
        return stock_name(env_id)
    task, _, version = env_id.rpartition("-")
    return "MetaWorld/" + "".join(word.capitalize() for word in task.split("-")) + f"-{version}"


def envpool(request: Request) -> Subject:
    """EnvPool with one thread for each processor."""
    try:
        import envpool
    except ImportError as error:
        raise UnsupportedError(f"EnvPool cannot be imported ({error}): pip install envpool") from error
    from fastcollect.envs.gym_vector import action_spec

    name = envpool_name(request.env)
    if name not in envpool.list_all_envs():
        raise UnsupportedError(f"EnvPool has no environment {name!r}")
    pool = envpool.make(name, env_type="gymnasium", num_envs=request.n, num_threads=cpu_count(), seed=0)
    pool.reset()
    # In the type that EnvPool stores, so that it has nothing to convert.
    dtype = np.dtype(pool.spec.action_array_spec["action"].dtype)
    actions = draw_actions(action_spec(pool.action_space), request.n, dtype)

    def step() -> int:
        pool.step(next(actions))
        return request.n

    return Subject(step, pool.close, request.n)
