"""Uniform random actions."""

import math
from collections.abc import Mapping

import numpy as np

from fastcollect.envs.base import EnvSpec
from fastcollect.memory.segment import FieldSpec
from fastcollect.policies.base import Parameters


class RandomPolicy:
    """Uniform over a discrete space or a box.

    An unbounded side of a box counts as +-1, or as 2 away from the other side where that lies beyond it.
    """

    def __init__(self, spec: EnvSpec) -> None:
        action = spec.action
        self.parameters: dict[str, FieldSpec] = {}
        self.extras: dict[str, FieldSpec] = {}
        self.noise = ("uniform", math.prod(action.shape))
        self._num_actions = action.num_actions
        if not action.discrete:
            low, high = np.asarray(action.low, np.float64), np.asarray(action.high, np.float64)
            self._low = np.where(np.isfinite(low), low, np.where(high > -1, -1.0, high - 2))
            self._range = np.where(np.isfinite(high), high, np.where(low < 1, 1.0, low + 2)) - self._low

    def initial_parameters(self, seed: int) -> dict[str, np.ndarray]:
        """None."""
        return {}

    def load(self, parameters: Parameters) -> None:
        """Nothing to load."""

    def act(
        self,
        observation: np.ndarray,
        noise: np.ndarray,
        action: np.ndarray,
        extras: Mapping[str, np.ndarray],
    ) -> None:
        """Scale the uniform numbers to the action space; see Policy.act."""
        if self._num_actions is not None:
            np.multiply(noise[:, 0], self._num_actions, out=action, casting="unsafe")
        else:
            action[...] = self._low + self._range * noise.reshape(action.shape)
