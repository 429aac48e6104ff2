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
from fastcollect.support.command import parse_kwargs
from fastcollect.support.errors import ConfigError


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


class OriginalProtocol:
    """Steps and updates as the original's loop makes them."""

    def __init__(self, request: StudyRequest) -> None:
        import gymnasium
        import metaworld  # noqa: F401  (registers its environments)

        from bench.product import SingleUpdates, study

        arguments, _ = study(request.flags)
        self.envs = gymnasium.make_vec(
            "Meta-World/MT1",
            env_name=arguments.env,
            num_envs=request.num_envs,
            vectorization_mode="sync",
            **stock_arguments(arguments.env_kwargs),
        )
        self._observation, _ = self.envs.reset(seed=0)
        size, actions = self._observation.shape[1], self.envs.single_action_space.shape[0]
        self._learner, self._ratio = SingleUpdates(arguments, size, actions), arguments.updates_per_step
        self._rng, self._capacity = np.random.default_rng(0), request.capacity
        shapes = {"observation": (size,), "action": (actions,), "reward": (), "bootstrap": ()}
        shapes["next_observation"] = (size,)
        self._replay = {
            name: np.zeros((self._capacity, *shape), np.float32) for name, shape in shapes.items()
        }
        self.env_steps = self.updates = 0

    def turn(self) -> int:
        """Step until updates are due, and make them; returns the environment steps."""
        before, updates = self.env_steps, self.updates
        while self.updates == updates:
            self._step()
            while self.env_steps * self._ratio >= self.updates + 1:
                self._learn()
        return self.env_steps - before

    def _step(self) -> None:
        # One environment at a time, operation by operation.
        action = np.stack([self._learner.act(row) for row in self._observation])
        following, reward, terminated, _, _ = self.envs.step(action)
        rows = (self.env_steps + np.arange(len(action))) % self._capacity
        bootstrap = self._learner.config.discount * ~terminated
        transition = {"observation": self._observation, "action": action, "reward": reward}
        transition |= {"next_observation": following, "bootstrap": bootstrap}
        for name, values in transition.items():
            self._replay[name][rows] = values
        self._observation = following
        self.env_steps += len(action)

    def _learn(self) -> None:
        held = min(self.env_steps, self._capacity)
        rows = self._rng.integers(held, size=self._learner.config.batch_size)
        self._learner.learn({name: array[rows] for name, array in self._replay.items()})
        self.updates += 1


def build(request: StudyRequest) -> Subject:
    """Environment steps of the original's loop."""
    loop = OriginalProtocol(request)
    return Subject(loop.turn, loop.envs.close, request.num_envs)


METHODS = (Method("original-protocol", build, request=StudyRequest, role="peer", capped=False),)
