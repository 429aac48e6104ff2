"""Gymnasium's stock environments: one, or in its own vector environments, with the row's policy."""

from __future__ import annotations

from bench.methods.base import Actor, Request, Subject, make_stock


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


def vector(request: Request) -> Subject:
    """SyncVectorEnv or AsyncVectorEnv of stock environments."""
    from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv

    kind = AsyncVectorEnv if request.method == "gymnasium-async" else SyncVectorEnv
    env = kind([lambda: make_stock(request.env)] * request.n)
    act = Actor(request, env.single_observation_space, env.single_action_space, request.n)
    observation, _ = env.reset(seed=0)

    def step() -> int:
        nonlocal observation
        observation, *_ = env.step(act(observation))
        return request.n

    return Subject(step, env.close, request.n)
