"""How the original study trains, step for step, on the same losses: what its wall clock is spent on.

Eight stock environments under Gymnasium's synchronous vector; one actor call for each of them, not compiled;
one batch, one compiled update and one read of every metric at a time; the normaliser updated from each
batch. Nothing here is used by the product.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.methods.base import Method, Subject
from fastcollect import ConfigError
from fastcollect.envs.gym_vector import space_spec
from fastcollect.support.command import parse_kwargs


@dataclass(frozen=True, kw_only=True)
class StudyRequest:
    """A request to train as a study's dense stage does. flags: of train.py."""

    method: str
    flags: tuple[str, ...]
    num_envs: int = 8
    capacity: int = 200_000


def stock_arguments(env_kwargs: Sequence[str]) -> dict[str, Any]:
    """What stock environments take for our arguments of Meta-World, both as of the command line.

    ``physics`` is left out: stock has the exact one alone. Raises ConfigError naming what stock cannot do.
    """
    names = {"horizon": "max_episode_steps", "mt1_seed": "seed"}
    found, problems = {}, []
    for name, value in parse_kwargs(env_kwargs).items():
        if name in names:
            found[names[name]] = value
        elif name != "physics" and (name, value) not in (("goal_visible", True), ("goal_indices", None)):
            problems.append(f"--env-kwargs has {name}={value}: the original's protocol cannot do that")
    if problems:
        raise ConfigError(problems)
    return found


def build(request: StudyRequest) -> Subject:
    """Environment steps as the original's loop makes them, with the updates that they bring."""
    import gymnasium
    import metaworld  # noqa: F401  (registers its environments)

    from bench.product import single_updates, study

    arguments, _ = study(request.flags)
    stock = {"vectorization_mode": "sync", **stock_arguments(arguments.env_kwargs)}
    envs = gymnasium.make_vec("Meta-World/MT1", env_name=arguments.env, num_envs=request.num_envs, **stock)
    observation, _ = envs.reset(seed=0)
    spec = space_spec(envs.single_observation_space, envs.single_action_space)
    act, learn, batch_size = single_updates(arguments, spec)
    shapes = {"observation": spec.observation_shape, "action": spec.action.shape, "reward": ()}
    shapes |= {"next_observation": spec.observation_shape, "terminated": ()}
    replay = {name: np.zeros((request.capacity, *shape), np.float32) for name, shape in shapes.items()}
    env_steps, updates, rng = 0, 0, np.random.default_rng(0)

    def step() -> int:
        """Step until updates are due, and make them."""
        nonlocal observation, env_steps, updates
        before, updated = env_steps, updates
        while updates == updated:
            # One environment at a time, operation by operation.
            action = np.stack([act(row) for row in observation])
            following, reward, terminated, _, _ = envs.step(action)
            rows = (env_steps + np.arange(len(action))) % request.capacity
            transition = observation, action, reward, following, terminated
            for array, values in zip(replay.values(), transition, strict=True):
                array[rows] = values
            observation = following
            env_steps += len(action)
            while env_steps * arguments.updates_per_step >= updates + 1:
                rows = rng.integers(min(env_steps, request.capacity), size=batch_size)
                learn({name: array[rows] for name, array in replay.items()})
                updates += 1
        return env_steps - before

    return Subject(step, envs.close, request.num_envs, lambda: {"updates": updates})


METHODS = (Method("original-protocol", build, request=StudyRequest, role="peer", capped=False),)
