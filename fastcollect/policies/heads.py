"""What a network's last layer becomes: the part that the NumPy policies share.

Boxes get a tanh-squashed Gaussian (Haarnoja et al. 2018, "Soft Actor-Critic Algorithms and Applications",
appendix C), discrete actions a categorical sampled by inversion of its cumulative distribution.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping, Sequence

import numpy as np

from fastcollect.envs.base import ActionSpec, EnvSpec
from fastcollect.memory.segment import FieldSpec
from fastcollect.policies.base import POLICY_VERSION, Parameters

LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0
_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
_KNOWN_EXTRAS = ("log_prob", "mean_action", POLICY_VERSION)


def head_width(action: ActionSpec) -> int:
    """Outputs of the last layer: one logit for each choice, or (mean, log std) of each number of a box."""
    return 2 * math.prod(action.shape) if action.num_actions is None else action.num_actions


def head_extras(action: ActionSpec, names: Sequence[str]) -> dict[str, FieldSpec]:
    """Shapes of the extras that a network's policy can give. Raises ValueError for an unknown name."""
    if unknown := [name for name in names if name not in _KNOWN_EXTRAS]:
        raise ValueError(f"unknown extras {unknown}; a network's policy gives any of {list(_KNOWN_EXTRAS)}")
    if "mean_action" in names and action.discrete:
        raise ValueError("a discrete action has no mean_action")
    fields = {
        "log_prob": FieldSpec((), np.dtype(np.float32)),
        "mean_action": FieldSpec(action.shape, np.dtype(np.float32)),
        POLICY_VERSION: FieldSpec((), np.dtype(np.int64)),
    }
    return {name: fields[name] for name in names}


def lecun_normal(fields: Mapping[str, FieldSpec], seed: int) -> dict[str, np.ndarray]:
    """Kernels (..., fan in, out) with standard deviation 1/sqrt(fan in, windows included), biases zero."""
    rng = np.random.default_rng(seed)
    return {
        name: np.zeros(field.shape, field.dtype)
        if len(field.shape) == 1
        else (rng.standard_normal(field.shape) / math.sqrt(math.prod(field.shape[:-1]))).astype(field.dtype)
        for name, field in fields.items()
    }


def action_scale(action: ActionSpec) -> tuple[np.ndarray, np.ndarray] | None:
    """(centre, half width) of a bounded box as float32, or None where tanh's own [-1, 1] is the space."""
    low, high = np.asarray(action.low, np.float64), np.asarray(action.high, np.float64)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ValueError(
            f"a tanh-Gaussian policy needs a bounded action space, this one reaches from {low} to {high}"
        )
    if (low == -1).all() and (high == 1).all():
        return None
    return ((low + high) / 2).astype(np.float32), ((high - low) / 2).astype(np.float32)


class NetworkPolicy(abc.ABC):
    """Everything of a policy but its network: a subclass computes the head from the observations.

    parameters: the network's fields, kernel_i and bias_i by turns, the head's last.
    deterministic: the mean action, or the most probable one, without noise and without extras.

    Raises ValueError for extras that it cannot give and for a box without bounds.
    """

    def __init__(
        self, spec: EnvSpec, parameters: dict[str, FieldSpec], extras: Sequence[str], deterministic: bool
    ) -> None:
        if deterministic and extras:
            raise ValueError(f"a deterministic policy has no extras, {list(extras)} were asked for")
        self.parameters = parameters
        self.extras = head_extras(spec.action, extras)
        self._action = spec.action
        self._size = 1 if spec.action.discrete else math.prod(spec.action.shape)
        drawn = ("uniform", 1) if spec.action.discrete else ("normal", self._size)
        self.noise = None if deterministic else drawn
        self._scale = None if spec.action.discrete else action_scale(spec.action)
        self._layers: list[tuple[np.ndarray, np.ndarray]] = []

    def initial_parameters(self, seed: int) -> dict[str, np.ndarray]:
        """See lecun_normal."""
        return lecun_normal(self.parameters, seed)

    def load(self, parameters: Parameters) -> None:
        """Copy the weights; they are the engine's."""
        depth = len(self.parameters) // 2
        self._layers = [
            (parameters[f"kernel_{i}"].copy(), parameters[f"bias_{i}"].copy()) for i in range(depth)
        ]

    @abc.abstractmethod
    def _forward(self, observation: np.ndarray) -> np.ndarray:
        """The head, (b, head_width) float32, for observations (b, ...); ``act`` may overwrite it."""

    def act(
        self,
        observation: np.ndarray,
        noise: np.ndarray | None,
        action: np.ndarray,
        extras: Mapping[str, np.ndarray],
    ) -> None:
        """See Policy.act."""
        head = self._forward(observation)
        if self.noise is None:
            self._most_likely(head, action)
            return
        assert noise is not None, "the noise that was declared is given"
        if self._action.discrete:
            self._sample_categorical(head, noise, action, extras)
        else:
            self._sample_gaussian(head, noise, action, extras)

    def _most_likely(self, head: np.ndarray, action: np.ndarray) -> None:
        if self._action.discrete:
            action[...] = np.where(np.isnan(head).any(-1), -1, head.argmax(-1))  # -1: refused by the engine
        else:
            self._squash(head[:, : self._size], action)

    def _sample_gaussian(
        self, head: np.ndarray, noise: np.ndarray, action: np.ndarray, extras: Mapping[str, np.ndarray]
    ) -> None:
        mean, log_std = head[:, : self._size], head[:, self._size :]
        np.clip(log_std, LOG_STD_MIN, LOG_STD_MAX, out=log_std)
        raw = np.exp(log_std)
        raw *= noise
        raw += mean
        if "log_prob" in extras:
            # log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2u)), which does not cancel for large u.
            squash = 2 * (math.log(2) - raw - np.logaddexp(0, -2 * raw))
            density = -0.5 * np.square(noise) - log_std - _HALF_LOG_2PI
            extras["log_prob"][...] = (density - squash).sum(-1) - self._log_half_width()
        self._squash(raw, action)
        if "mean_action" in extras:
            self._squash(mean, extras["mean_action"])

    def _log_half_width(self) -> float:
        return 0.0 if self._scale is None else float(np.log(self._scale[1]).sum())

    def _squash(self, raw: np.ndarray, out: np.ndarray) -> None:
        squashed = np.tanh(raw).reshape(out.shape)
        if self._scale is not None:
            # Rounding must not carry an action over the edge of its box.
            squashed = np.clip(
                self._scale[0] + self._scale[1] * squashed, self._action.low, self._action.high
            )
        out[...] = squashed

    def _sample_categorical(
        self, head: np.ndarray, noise: np.ndarray, action: np.ndarray, extras: Mapping[str, np.ndarray]
    ) -> None:
        head -= head.max(-1, keepdims=True)
        weights = np.exp(head)
        cumulative = np.cumsum(weights, -1)
        total = cumulative[:, -1:]
        # The last column is left out: rounding must not yield an action that does not exist.
        choice = (noise[:, :1] * total >= cumulative[:, :-1]).sum(-1)
        choice[np.isnan(total[:, 0])] = -1  # an action that the engine refuses, not a silent 0
        action[...] = choice
        if "log_prob" in extras:
            chosen = np.take_along_axis(head, choice[:, None], -1)
            extras["log_prob"][...] = (chosen - np.log(total))[:, 0]
