"""Heads: what the outputs of a network's last layer mean as actions."""

import abc
import math
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from fastcollect.envs.base import ActionSpec
from fastcollect.memory.segment import FieldSpec

LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0
_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class Head(abc.ABC):
    """Turns outputs (b, width), float32, into actions; keeps what was drawn last.

    noise: kind and count of the numbers that each action is drawn with. parameters: its own, beside those of
    the network.
    """

    width: int
    noise: tuple[str, int]
    parameters: ClassVar[Mapping[str, FieldSpec]] = {}
    outputs: np.ndarray
    """What the last actions were drawn from."""

    def load(self, parameters: Mapping[str, np.ndarray]) -> None:
        """Copy its own parameters."""
        self._own = {name: parameters[name].copy() for name in self.parameters}

    @abc.abstractmethod
    def draw(self, outputs: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Actions (b, *action.shape); noise (b, count). ``outputs`` are overwritten."""

    @abc.abstractmethod
    def most_likely(self, outputs: np.ndarray) -> np.ndarray:
        """The mean or the most probable actions, (b, *action.shape)."""


class Density(Head):
    """A head whose actions have a probability or a density."""

    @abc.abstractmethod
    def log_prob(self) -> np.ndarray:
        """The logarithm of the probability or density of each action drawn last, (b,)."""


def head_of(action: ActionSpec) -> Head:
    """A tanh-squashed Gaussian for a box, a categorical distribution for discrete actions.

    Raises ValueError for a box without bounds.
    """
    return _Gaussian(action) if action.num_actions is None else _Categorical(action.num_actions)


class _Squashed(Head):
    """The first outputs are means, which tanh carries into the box."""

    outputs_per_action: ClassVar[int]

    def __init__(self, action: ActionSpec) -> None:
        if action.discrete:
            raise ValueError(
                f"this policy needs a box of actions, there are {action.num_actions} discrete ones"
            )
        low, high = np.asarray(action.low, np.float64), np.asarray(action.high, np.float64)
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise ValueError(
                f"a tanh-Gaussian policy needs a bounded action space, this one reaches from {low} to {high}"
            )
        self._action, self._size = action, math.prod(action.shape)
        self.width, self.noise = self.outputs_per_action * self._size, ("normal", self._size)
        self._scale: tuple[np.ndarray, np.ndarray] | None = None  # centre and half width, if not tanh's own
        self._log_half_width = 0.0
        if not ((low == -1).all() and (high == 1).all()):
            self._scale = ((low + high) / 2).astype(np.float32), ((high - low) / 2).astype(np.float32)
            self._log_half_width = float(np.log(self._scale[1]).sum())

    def most_likely(self, outputs: np.ndarray) -> np.ndarray:
        return self._in_box(np.tanh(outputs[:, : self._size]))

    def _in_box(self, squashed: np.ndarray) -> np.ndarray:
        """Actions for numbers in [-1, 1], (b, size)."""
        squashed = squashed.reshape(len(squashed), *self._action.shape)
        if self._scale is None:
            return squashed
        # Rounding must not carry an action over the edge of its box.
        return np.clip(self._scale[0] + self._scale[1] * squashed, self._action.low, self._action.high)


class _Gaussian(_Squashed, Density):
    """Outputs are means and log standard deviations (arXiv:1812.05905, appendix C)."""

    outputs_per_action = 2

    def draw(self, outputs: np.ndarray, noise: np.ndarray) -> np.ndarray:
        self.outputs, self._noise, self._log_std = outputs, noise, outputs[:, self._size :]
        np.clip(self._log_std, LOG_STD_MIN, LOG_STD_MAX, out=self._log_std)
        self._raw = np.exp(self._log_std)
        self._raw *= noise
        self._raw += outputs[:, : self._size]
        return self._in_box(np.tanh(self._raw))

    def log_prob(self) -> np.ndarray:
        # log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2u)), which does not cancel for large u.
        squash = 2 * (math.log(2) - self._raw - np.logaddexp(0, -2 * self._raw))
        density = -0.5 * np.square(self._noise) - self._log_std - _HALF_LOG_2PI
        return (density - squash).sum(-1) - self._log_half_width


class NoisyHead(_Squashed):
    """Outputs are means, and the noise has the same spread whatever is seen.

    An action is clip(tanh(mean + before n) + after n, -1, 1) for standard normals n; "spread" holds (before,
    after). Raises ValueError for discrete actions and for a box without bounds.
    """

    outputs_per_action = 1
    parameters: ClassVar = {"spread": FieldSpec((2,), np.dtype(np.float32))}

    def draw(self, outputs: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """See Head."""
        self.outputs, (before, after) = outputs, self._own["spread"]
        return self._in_box(np.clip(np.tanh(outputs + before * noise) + after * noise, -1, 1))


class _Categorical(Density):
    """Outputs are logits, from which actions are drawn by inversion of the cumulative distribution."""

    def __init__(self, num_actions: int) -> None:
        self.width, self.noise = num_actions, ("uniform", 1)

    def draw(self, outputs: np.ndarray, noise: np.ndarray) -> np.ndarray:
        outputs -= outputs.max(-1, keepdims=True)
        cumulative = np.cumsum(np.exp(outputs), -1)
        self.outputs, self._total = outputs, cumulative[:, -1:]
        # The last column is left out: rounding must not yield an action that does not exist.
        self._choice = (noise[:, :1] * self._total >= cumulative[:, :-1]).sum(-1)
        self._choice[np.isnan(self._total[:, 0])] = -1  # an action that is refused, not a silent 0
        return self._choice

    def log_prob(self) -> np.ndarray:
        chosen = np.take_along_axis(self.outputs, self._choice[:, None], -1)
        return (chosen - np.log(self._total))[:, 0]

    def most_likely(self, outputs: np.ndarray) -> np.ndarray:
        return np.where(np.isnan(outputs).any(-1), -1, outputs.argmax(-1))  # -1: refused
