"""Uniform random actions."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from fastcollect.envs.base import EnvSpec
from fastcollect.memory import FieldSpec
from fastcollect.policies.base import Parameters


class RandomPolicy:
    """Uniform over a discrete space or a box; an unbounded side of a box counts as +-1."""

    def __init__(self, spec: EnvSpec) -> None:
        action = spec.action
        self.parameters: dict[str, FieldSpec] = {}
        self.extras: dict[str, FieldSpec] = {}
        self.noise = ("uniform", 1 if action.discrete else math.prod(action.shape))
        self._action = action
        if not action.discrete:
            low = np.where(np.isfinite(action.low), action.low, -1.0)
            high = np.where(np.isfinite(action.high), action.high, 1.0)
            self._low, self._range = low.astype(np.float32), (high - low).astype(np.float32)

    def initial_parameters(self, seed: int) -> dict[str, np.ndarray]:
        """Nothing to learn."""
        return {}

    def load(self, parameters: Parameters) -> None:
        """Nothing to learn."""

    def act(
        self,
        observation: np.ndarray,
        noise: np.ndarray,
        action: np.ndarray,
        extras: Mapping[str, np.ndarray],
    ) -> None:
        """Scale the uniform numbers to the action space; see Policy.act."""
        if self._action.discrete:
            np.multiply(noise[:, 0], self._action.num_actions, out=action, casting="unsafe")
        else:
            action[...] = self._low + self._range * noise.reshape(action.shape)
