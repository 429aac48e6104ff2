"""PufferLib's vector environments of stock environments, with the row's policy."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from bench.methods.base import Method, Parallelism, Request, Subject, worker_envs
from bench.methods.stock import Actor, make_stock
from fastcollect.envs.registry import METAWORLD_TASKS
from fastcollect.support.cpu import cpu_count


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


def pufferlib_vector(request: Request) -> Subject:
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


METHODS = (
    Method(
        "pufferlib",
        pufferlib_vector,
        "PufferLib 3's vector environments (package pufferlib-core), N processes of n stock environments, "
        "and the policy; resetting steps count",
        peer="pufferlib",
        role="peer",
        policy=True,
        sizes=lambda choice: [Parallelism(worker_envs(choice.env), cpu_count(), 0)],
    ),
)
