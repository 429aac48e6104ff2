"""How the original study trains, step for step, on the same losses: what its wall clock is spent on.

Eight stock environments under Gymnasium's synchronous vector; one actor call for each of them, not compiled;
one batch, one compiled update and one read of every metric at a time; the normaliser updated from each
batch. Nothing here is used by the product.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

from engine.algorithms import sac
from engine.networks import mlp, tanh_gaussian
from engine.normalizer import Moments
from fastcollect.support.command import parse_kwargs
from fastcollect.support.errors import ConfigError

_ENVS = 8


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
    """Steps and updates as the original's loop makes them. env_kwargs: see ``stock_arguments``."""

    def __init__(
        self,
        env: str,
        config: sac.SACConfig,
        updates_per_step: float,
        env_kwargs: Sequence[str] = (),
        capacity: int = 200_000,
    ) -> None:
        import metaworld  # noqa: F401  (registers its environments)

        self._envs = gymnasium.make_vec(
            "Meta-World/MT1",
            env_name=env,
            num_envs=_ENVS,
            vectorization_mode="sync",
            **stock_arguments(env_kwargs),
        )
        self._observation, _ = self._envs.reset(seed=0)
        size, actions = self._observation.shape[1], self._envs.single_action_space.shape[0]
        self._config, self._ratio = config, updates_per_step
        self._state = sac.init(config, 0, size, actions)
        self._update = jax.jit(
            lambda state, batch: sac.update(
                config, state, sac.DENSE, batch, sac.noises(state, 1, batch.action.shape)[0]
            )
        )
        self._moments = Moments.empty(size)
        self._rng, self._key = np.random.default_rng(0), jax.random.key(0)
        self._replay = {
            "observation": np.zeros((capacity, size), np.float32),
            "action": np.zeros((capacity, actions), np.float32),
            "reward": np.zeros(capacity, np.float32),
            "next_observation": np.zeros((capacity, size), np.float32),
            "bootstrap": np.zeros(capacity, np.float32),
        }
        self.env_steps = self.updates = 0

    def run(self, seconds: float) -> dict[str, Any]:
        """Go on for that long, one update at least; returns steps, updates and seconds of this call."""
        began, steps, updates, elapsed = time.perf_counter(), self.env_steps, self.updates, 0.0
        while self.updates == updates or elapsed < seconds:
            self._step()
            while self.env_steps * self._ratio >= self.updates + 1:
                self._learn()
            elapsed = time.perf_counter() - began
        return {
            "env_steps": self.env_steps - steps,
            "updates": self.updates - updates,
            "seconds": elapsed,
        }

    def close(self) -> None:
        """Close the environments."""
        self._envs.close()

    def _step(self) -> None:
        mean, scale = self._moments.scaling(1e-4)
        actions = []
        for row in self._observation:  # one environment at a time, operation by operation
            self._key, key = jax.random.split(self._key)
            head = mlp(self._state.actor, jnp.asarray((row - mean) * scale, jnp.float32)[None])
            noise = jax.random.normal(key, (1, head.shape[1] // 2))
            actions.append(np.asarray(tanh_gaussian(head, noise)[0])[0])
        action = np.stack(actions)
        observation, reward, terminated, _, _ = self._envs.step(action)
        capacity = len(self._replay["reward"])
        rows = (self.env_steps + np.arange(_ENVS)) % capacity
        self._replay["observation"][rows] = self._observation
        self._replay["action"][rows] = action
        self._replay["reward"][rows] = reward
        self._replay["next_observation"][rows] = observation
        self._replay["bootstrap"][rows] = self._config.discount * ~terminated
        self._observation = observation
        self.env_steps += _ENVS

    def _learn(self) -> None:
        held = min(self.env_steps, len(self._replay["reward"]))
        rows = self._rng.integers(held, size=self._config.batch_size)
        batch = {name: array[rows] for name, array in self._replay.items()}
        for name in ("observation", "next_observation"):
            self._moments = self._moments.update(batch[name])
        mean, scale = self._moments.scaling(1e-4)
        prepared = sac.prepare(self._config, sac.Batch(**batch), mean, scale)
        self._state, metrics = self._update(self._state, prepared)
        for value in metrics.values():
            float(value)
        self.updates += 1
