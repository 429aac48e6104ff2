"""Stable-Baselines3's vector environments of stock environments, with the row's policy."""

from __future__ import annotations

from functools import partial

from bench.methods.base import Actor, Request, Subject, make_stock


def sb3(request: Request) -> Subject:
    """DummyVecEnv or SubprocVecEnv, which reset an environment within the step that ends its episode."""
    from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

    kind = SubprocVecEnv if request.method == "sb3-subproc" else DummyVecEnv
    env = kind([partial(make_stock, request.env)] * request.n)
    act = Actor(request, env.observation_space, env.action_space, request.n)
    env.seed(0)
    observation = env.reset()

    def step() -> int:
        nonlocal observation
        observation, *_ = env.step(act(observation))
        return request.n

    return Subject(step, env.close, request.n)
