"""The vector environments of Gymnasium, Stable-Baselines3, PufferLib and EnvPool."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from bench.methods.base import Build, Method, Request, Subject, UnsupportedError, each_processor
from bench.methods.stock import Actor, draw_actions, make_stock, stock_name
from fastcollect import Parallelism
from fastcollect.envs.gym_vector import action_spec
from fastcollect.envs.registry import METAWORLD_TASKS
from fastcollect.support.cpu import cpu_count


def single(request: Request) -> Subject:
    """One stock environment, reset when an episode ends."""
    env = make_stock(request.env)
    act = Actor(request, env.observation_space, env.action_space, 1)
    observation, _ = env.reset(seed=0)

    def step() -> int:
        nonlocal observation
        observation, _, terminated, truncated, _ = env.step(act(observation[None])[0])
        if terminated or truncated:
            observation, _ = env.reset()
        return 1

    return Subject(step, env.close, 1)


def gymnasium_vector(request: Request) -> Subject:
    """SyncVectorEnv or AsyncVectorEnv."""
    from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv

    kind = AsyncVectorEnv if request.method == "gymnasium-async" else SyncVectorEnv
    env = kind([partial(make_stock, request.env)] * request.parallelism.n)
    act = Actor(request, env.single_observation_space, env.single_action_space, env.num_envs)
    return stepped(env, act, env.reset(seed=0)[0])


def sb3_vector(request: Request) -> Subject:
    """DummyVecEnv or SubprocVecEnv, which reset an environment within the step that ends its episode."""
    from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

    kind = SubprocVecEnv if request.method == "sb3-subproc" else DummyVecEnv
    env = kind([partial(make_stock, request.env)] * request.parallelism.n)
    act = Actor(request, env.observation_space, env.action_space, env.num_envs)
    env.seed(0)
    return stepped(env, act, env.reset())


def stepped(env: Any, act: Callable[[Any], Any], observation: Any) -> Subject:
    """A vector environment that is given an action for what its last step showed."""

    def step() -> int:
        nonlocal observation
        observation, *_ = env.step(act(observation))
        return env.num_envs

    return Subject(step, env.close, env.num_envs)


def make_puffer(env_id: str, buf: Any = None, seed: int = 0) -> Any:
    """A stock environment as PufferLib wraps those of its own collection."""
    import pufferlib.emulation
    from gymnasium.spaces import Box

    env = make_stock(env_id)
    space = env.observation_space
    # It checks the first observation, and Meta-World declares a goal of zeros that it then does not show.
    if env_id in METAWORLD_TASKS:
        env.observation_space = Box(-np.inf, np.inf, space.shape, space.dtype)
    # Without EpisodeStats every step's info would travel through a pipe.
    stats = pufferlib.pufferlib.EpisodeStats(env)
    return pufferlib.emulation.GymnasiumPufferEnv(env=stats, buf=buf, seed=seed)


def puffer_vector(request: Request) -> Subject:
    """The Multiprocessing backend: the policy acts for half of the N processes while the others step."""
    import pufferlib.vector

    # Two batches take turns, as it recommends; each must be whole processes.
    size = request.parallelism
    batch = size.n * (size.N // 2 if size.N % 2 == 0 else 1)
    env = pufferlib.vector.make(
        partial(make_puffer, request.env),
        num_envs=size.total,
        num_workers=size.N,
        batch_size=batch,
        backend=pufferlib.vector.Multiprocessing,
        sync_traj=False,  # take what is ready; its trainer needs them in order, which is slower
        overwork=True,  # its limit counts physical cores, which a container may not tell
    )
    act = Actor(request, env.single_observation_space, env.single_action_space, batch)
    env.async_reset(0)
    observation, *_, rows, _ = env.recv()
    # Whichever half is ready may be the same one for long, so that the other could still be starting.
    begun = set(rows)
    while len(begun) < size.total:
        env.send(act(observation))
        observation, *_, rows, _ = env.recv()
        begun.update(rows)

    def step() -> int:
        nonlocal observation
        env.send(act(observation))
        observation = env.recv()[0]
        return len(observation)

    return Subject(step, env.close, size.total)


def envpool_name(env_id: str) -> str:
    """EnvPool's name: "reach-v3" is "MetaWorld/Reach-v3"; the others are called as in gymnasium."""
    if env_id not in METAWORLD_TASKS:
        return stock_name(env_id)
    task, _, version = env_id.rpartition("-")
    return "MetaWorld/" + "".join(word.capitalize() for word in task.split("-")) + f"-{version}"


def envpool_vector(request: Request) -> Subject:
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


def _method(name: str, build: Build, envs: int, note: str, peer: str | None = None) -> Method:
    """n is all of its environments."""
    sizes = [Parallelism(envs, 1, 0)]
    return Method(name, build, note, peer, role="peer", policy=True, sizes=lambda env, _: sizes)


# Where there are fewer CPUs: with 8 processes AsyncVectorEnv was faster than with 32 on two of them.
_SEVERAL, _PROCESSES = 8, max(8, cpu_count())
_EACH = "a process for each stock environment,"
_RESETS = "and the policy; resetting steps count"
_PUFFER = f"PufferLib 3's (package pufferlib-core), N processes of n stock environments, {_RESETS}"
_POOL = "one thread per processor, random actions, no policy; resetting steps count"
_SB3 = "Stable-Baselines3's"
METHODS = (
    _method("gymnasium-single", single, 1, "one stock environment and the policy in one process"),
    _method("gymnasium-sync", gymnasium_vector, _SEVERAL, f"SyncVectorEnv of stock environments {_RESETS}"),
    _method("gymnasium-async", gymnasium_vector, _PROCESSES, f"AsyncVectorEnv, {_EACH} {_RESETS}"),
    _method("sb3-dummy", sb3_vector, _SEVERAL, f"{_SB3} DummyVecEnv and the policy", "learners"),
    _method("sb3-subproc", sb3_vector, _PROCESSES, f"{_SB3} SubprocVecEnv and the policy", "learners"),
    Method("pufferlib", puffer_vector, _PUFFER, "pufferlib", "peer", True, each_processor(0)),
    replace(_method("envpool", envpool_vector, 64, _POOL), policy=False, candidates=(256, 1024, 4096)),
)
