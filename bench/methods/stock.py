"""Environments that come without gymnasium's interface, one copy each, for the peers that need it."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from fastcollect.envs.base import StepBuffers
from fastcollect.envs.registry import EnvConfig, make_env


class StockCrafter(gymnasium.Env):
    """Crafter as it comes."""

    def __init__(self, reward: bool) -> None:
        import crafter

        self._game = crafter.Env(reward=reward)
        self.observation_space = gymnasium.spaces.Box(0, 255, self._game.observation_space.shape, np.uint8)
        self.action_space = gymnasium.spaces.Discrete(self._game.action_space.n)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """See gymnasium.Env.reset; a seed is the game's from then on."""
        if seed is not None:
            self._game._seed = seed
        return self._game.reset(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """See gymnasium.Env.step."""
        observation, reward, done, info = self._game.step(action)
        dead = info["discount"] == 0
        return observation, reward, dead, done and not dead, {}


class OneCopy(gymnasium.Env):
    """One copy of an environment of the engine's own, for which there is no other implementation."""

    def __init__(self, env_id: str) -> None:
        self._env = make_env(EnvConfig(id=env_id), np.zeros(1, np.int64))
        spec = self._env.spec
        self.observation_space = gymnasium.spaces.Box(
            np.broadcast_to(spec.observation_low, spec.observation_shape).astype(spec.observation_dtype),
            np.broadcast_to(spec.observation_high, spec.observation_shape).astype(spec.observation_dtype),
            dtype=spec.observation_dtype.type,
        )
        self.action_space = gymnasium.spaces.Discrete(spec.action.num_actions)
        self._out = StepBuffers.allocate(spec, 1)
        self._begun = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """See gymnasium.Env.reset; the seed stays the first one."""
        if not self._begun:  # later episodes begin within the step that ends the one before
            self._env.reset(self._out.observation)
            self._begun = True
        return self._out.observation[0].copy(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """See gymnasium.Env.step."""
        out = self._out
        self._env.step(np.array([action]), out)
        ends = bool(out.terminated[0]), bool(out.truncated[0])
        observation = out.final_observation if any(ends) else out.observation
        return observation[0].copy(), float(out.reward[0]), *ends, {}

    def close(self) -> None:
        """Free the environment."""
        self._env.close()
