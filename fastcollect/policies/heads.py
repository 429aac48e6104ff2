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
from fastcollect.policies.base import Parameters
from fastcollect.policies.extras import EXTRAS, Drawn, extra_fields

LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0
_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
Layers = list[tuple[np.ndarray, np.ndarray]]
"""(kernel, bias) of each layer, the last one's last."""


def head_width(action: ActionSpec) -> int:
    """Outputs of the last layer: one logit for each choice, or (mean, log std) of each number of a box."""
    return 2 * math.prod(action.shape) if action.num_actions is None else action.num_actions


def network_fields(kernels: Sequence[tuple[int, ...]], prefix: str = "") -> dict[str, FieldSpec]:
    """kernel_i of these shapes (..., in, out) and bias_i (out,), float32, by turns, under a prefix."""
    fields = {}
    for i, shape in enumerate(kernels):
        fields[f"{prefix}kernel_{i}"] = FieldSpec(tuple(shape), np.dtype(np.float32))
        fields[f"{prefix}bias_{i}"] = FieldSpec(tuple(shape[-1:]), np.dtype(np.float32))
    return fields


def copy_layers(parameters: Parameters, prefix: str = "") -> Layers:
    """Copies of kernel_i and bias_i under a prefix, in the order of i."""
    depth = sum(name.startswith(f"{prefix}kernel_") for name in parameters)
    return [
        (parameters[f"{prefix}kernel_{i}"].copy(), parameters[f"{prefix}bias_{i}"].copy())
        for i in range(depth)
    ]


def lecun_normal(fields: Mapping[str, FieldSpec], seed: int) -> dict[str, np.ndarray]:
    """Kernels (..., fan in, out) with standard deviation 1/sqrt(fan in, windows included), biases zero."""
    rng = np.random.default_rng(seed)
    return {
        name: np.zeros(field.shape, field.dtype)
        if len(field.shape) == 1
        else (rng.standard_normal(field.shape) / math.sqrt(math.prod(field.shape[:-1]))).astype(field.dtype)
        for name, field in fields.items()
    }


class Box:
    """A bounded box of actions, to which numbers of the whole line are squashed by tanh.

    Raises ValueError for a box without bounds.
    """

    def __init__(self, action: ActionSpec) -> None:
        low, high = np.asarray(action.low, np.float64), np.asarray(action.high, np.float64)
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise ValueError(
                f"a tanh-Gaussian policy needs a bounded action space, this one reaches from {low} to {high}"
            )
        self._action = action
        self._scale: tuple[np.ndarray, np.ndarray] | None = None  # centre and half width, if not tanh's own
        self.log_half_width = 0.0
        if not ((low == -1).all() and (high == 1).all()):
            self._scale = ((low + high) / 2).astype(np.float32), ((high - low) / 2).astype(np.float32)
            self.log_half_width = float(np.log(self._scale[1]).sum())

    def squash(self, raw: np.ndarray) -> np.ndarray:
        """Actions (b, *action.shape) of numbers (b, k)."""
        squashed = np.tanh(raw).reshape(len(raw), *self._action.shape)
        if self._scale is None:
            return squashed
        # Rounding must not carry an action over the edge of its box.
        return np.clip(self._scale[0] + self._scale[1] * squashed, self._action.low, self._action.high)


class Gaussian:
    """Drawn from a head (b, 2 k), which is overwritten, with standard normals (b, k); see Drawn."""

    def __init__(self, head: np.ndarray, noise: np.ndarray, box: Box) -> None:
        size = head.shape[1] // 2
        self._mean, self._log_std = head[:, :size], head[:, size:]
        self._noise, self._box = noise, box
        np.clip(self._log_std, LOG_STD_MIN, LOG_STD_MAX, out=self._log_std)
        self._raw = np.exp(self._log_std)
        self._raw *= noise
        self._raw += self._mean

    def action(self) -> np.ndarray:
        """See Drawn."""
        return self._box.squash(self._raw)

    def log_prob(self) -> np.ndarray:
        """See Drawn."""
        # log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2u)), which does not cancel for large u.
        squash = 2 * (math.log(2) - self._raw - np.logaddexp(0, -2 * self._raw))
        density = -0.5 * np.square(self._noise) - self._log_std - _HALF_LOG_2PI
        return (density - squash).sum(-1) - self._box.log_half_width

    def mean_action(self) -> np.ndarray:
        """See Drawn."""
        return self._box.squash(self._mean)


class Categorical:
    """Drawn from logits (b, k), which are overwritten, with uniform numbers (b, 1); see Drawn."""

    def __init__(self, head: np.ndarray, noise: np.ndarray) -> None:
        head -= head.max(-1, keepdims=True)
        self._logits = head
        cumulative = np.cumsum(np.exp(head), -1)
        self._total = cumulative[:, -1:]
        # The last column is left out: rounding must not yield an action that does not exist.
        self._choice = (noise[:, :1] * self._total >= cumulative[:, :-1]).sum(-1)
        self._choice[np.isnan(self._total[:, 0])] = -1  # an action that the engine refuses, not a silent 0

    def action(self) -> np.ndarray:
        """See Drawn."""
        return self._choice

    def log_prob(self) -> np.ndarray:
        """See Drawn."""
        chosen = np.take_along_axis(self._logits, self._choice[:, None], -1)
        return (chosen - np.log(self._total))[:, 0]

    def mean_action(self) -> np.ndarray:
        """Raises ValueError: there is none."""
        raise ValueError("a discrete action has no mean_action")


class NetworkPolicy(abc.ABC):
    """Everything of a policy but its networks: a subclass computes their outputs from the observations.

    parameters: the networks' fields. The actor's are kernel_i and bias_i by turns, the head's last; those of
        an extra with a network of its own (see EXTRAS) follow, under its name.
    deterministic: the mean action, or the most probable one, without noise and without extras.

    Raises ValueError for extras that it cannot give and for a box without bounds.
    """

    def __init__(
        self, spec: EnvSpec, parameters: dict[str, FieldSpec], extras: Sequence[str], deterministic: bool
    ) -> None:
        if deterministic and extras:
            raise ValueError(f"a deterministic policy has no extras, {list(extras)} were asked for")
        self.parameters = parameters
        self.extras = extra_fields(spec.action, extras)
        drawn = ("uniform", 1) if spec.action.discrete else ("normal", math.prod(spec.action.shape))
        self.noise = None if deterministic else drawn
        self._box = None if spec.action.discrete else Box(spec.action)
        self._networks: dict[str, Layers] = {}

    def initial_parameters(self, seed: int) -> dict[str, np.ndarray]:
        """See lecun_normal."""
        return lecun_normal(self.parameters, seed)

    def load(self, parameters: Parameters) -> None:
        """Copy the weights; they are the engine's."""
        own = (f"{name}/" for name in self.extras if EXTRAS[name].network)
        self._networks = {prefix: copy_layers(parameters, prefix) for prefix in ("", *own)}

    @abc.abstractmethod
    def _forward(self, observation: np.ndarray, prefix: str = "") -> np.ndarray:
        """The outputs (b, k) float32 of one network for observations (b, ...); ``act`` may overwrite them.

        prefix: of the network's parameters; the actor's, "", is always computed first.
        """

    def act(
        self,
        observation: np.ndarray,
        noise: np.ndarray | None,
        action: np.ndarray,
        extras: Mapping[str, np.ndarray],
    ) -> None:
        """See Policy.act."""
        head = self._forward(observation)
        if noise is None or self.noise is None:
            action[...] = self._most_likely(head)
            return
        drawn: Drawn = Categorical(head, noise) if self._box is None else Gaussian(head, noise, self._box)
        action[...] = drawn.action()
        for name, out in extras.items():
            if EXTRAS[name].network:
                out[...] = self._forward(observation, f"{name}/").reshape(out.shape)
            elif compute := EXTRAS[name].compute:
                out[...] = compute(drawn)

    def _most_likely(self, head: np.ndarray) -> np.ndarray:
        if self._box is None:
            return np.where(np.isnan(head).any(-1), -1, head.argmax(-1))  # -1: refused by the engine
        return self._box.squash(head[:, : head.shape[1] // 2])
