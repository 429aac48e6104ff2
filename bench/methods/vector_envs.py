"""Stock environments, one or in the vector environments of Gymnasium and Stable-Baselines3."""

from functools import partial
from typing import Any

from bench.methods.base import Method, Parallelism, Request, Subject
from bench.methods.stock import Actor, make_stock
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
    return _stepped(env, act, env.reset(seed=0)[0])


def sb3_vector(request: Request) -> Subject:
    """DummyVecEnv or SubprocVecEnv, which reset an environment within the step that ends its episode."""
    from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

    kind = SubprocVecEnv if request.method == "sb3-subproc" else DummyVecEnv
    env = kind([partial(make_stock, request.env)] * request.parallelism.n)
    act = Actor(request, env.observation_space, env.action_space, env.num_envs)
    env.seed(0)
    return _stepped(env, act, env.reset())


def _stepped(env: Any, act: Actor, observation: Any) -> Subject:
    def step() -> int:
        nonlocal observation
        observation, *_ = env.step(act(observation))
        return env.num_envs

    return Subject(step, env.close, env.num_envs)


def _method(name: str, build: Any, envs: int, note: str, peer: str | None = None) -> Method:
    """n is all of its environments."""
    return Method(name, build, note, peer, "peer", True, lambda choice: [Parallelism(envs, 1, 0)])


# Where there are fewer CPUs: with 8 processes AsyncVectorEnv was faster than with 32 on two of them.
_SEVERAL, _PROCESSES = 8, max(8, cpu_count())
_SYNC = "SyncVectorEnv of stock environments and the policy; resetting steps count"
_ASYNC = "AsyncVectorEnv, a process for each stock environment, and the policy; resetting steps count"
_DUMMY = "Stable-Baselines3's DummyVecEnv of stock environments and the policy"
_SUBPROC = "Stable-Baselines3's SubprocVecEnv, a process for each stock environment, and the policy"
METHODS = (
    _method("gymnasium-single", single, 1, "one stock environment and the policy in one process"),
    _method("gymnasium-sync", gymnasium_vector, _SEVERAL, _SYNC),
    _method("gymnasium-async", gymnasium_vector, _PROCESSES, _ASYNC),
    _method("sb3-dummy", sb3_vector, _SEVERAL, _DUMMY, "learners"),
    _method("sb3-subproc", sb3_vector, _PROCESSES, _SUBPROC, "learners"),
)
