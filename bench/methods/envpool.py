"""EnvPool's own vector environments."""

import numpy as np

from bench.methods.base import Method, Parallelism, Request, Subject, UnsupportedError
from bench.methods.stock import draw_actions, stock_name
from fastcollect.envs.gym_vector import action_spec
from fastcollect.envs.registry import METAWORLD_TASKS
from fastcollect.support.cpu import cpu_count


def envpool_name(env_id: str) -> str:
    """EnvPool's name: "reach-v3" is "MetaWorld/Reach-v3"; the others are called as in gymnasium."""
    if env_id not in METAWORLD_TASKS:
        return stock_name(env_id)
    task, _, version = env_id.rpartition("-")
    return "MetaWorld/" + "".join(word.capitalize() for word in task.split("-")) + f"-{version}"


def build(request: Request) -> Subject:
    """EnvPool with one thread for each processor."""
    try:
        import envpool
    except ImportError as error:
        raise UnsupportedError(f"EnvPool cannot be imported ({error}): pip install envpool") from error
    name, size = envpool_name(request.env), request.parallelism.n
    if name not in envpool.list_all_envs():
        raise UnsupportedError(f"EnvPool has no environment {name!r}")
    pool = envpool.make(name, env_type="gymnasium", num_envs=size, num_threads=cpu_count(), seed=0)
    pool.reset()
    # In the type that EnvPool stores, so that it has nothing to convert.
    dtype = np.dtype(pool.spec.action_array_spec["action"].dtype)
    actions = draw_actions(action_spec(pool.action_space), size, dtype)

    def step() -> int:
        pool.step(next(actions))
        return size

    return Subject(step, pool.close, size)


_NOTE = "one thread per processor, random actions, no policy; resetting steps count"
METHODS = (
    Method(
        "envpool",
        build,
        _NOTE,
        role="peer",
        sizes=lambda choice: [Parallelism(64, 1, 0)],
        candidates=(256, 1024, 4096),
    ),
)
