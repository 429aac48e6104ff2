"""What the network policies in NumPy share: parameters, the head, and what they write beside each action."""

import abc
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastcollect.envs.base import ActionSpec, EnvSpec
from fastcollect.memory.segment import FieldSpec
from fastcollect.policies.base import POLICY_VERSION, Parameters
from fastcollect.policies.heads import Density, Head, head_of

_FLOAT32 = np.dtype(np.float32)


@dataclass(frozen=True)
class Extra:
    """What a network policy can write beside each action.

    compute: the values (b, *shape) from the head that has just drawn b actions.
    network: the values are the outputs of a network of their own, whose parameters carry the extra's name as
        prefix ("value/kernel_0"). The engine writes an extra that has neither ``compute`` nor ``network``.
    like_action: a value has the shape of an action of a box, which there must be; otherwise it is a scalar.
    """

    compute: Callable[[Any], np.ndarray] | None = None
    network: bool = False
    like_action: bool = False
    dtype: type[np.generic] = np.float32

    def field(self, name: str, action: ActionSpec) -> FieldSpec:
        """Shape and dtype of one value. Raises ValueError where there is no such value."""
        if self.like_action and action.discrete:
            raise ValueError(f"a discrete action has no {name}")
        return FieldSpec(action.shape if self.like_action else (), np.dtype(self.dtype))


EXTRAS = {
    "log_prob": Extra(lambda head: head.log_prob()),
    "mean_action": Extra(lambda head: head.most_likely(head.outputs), like_action=True),
    "value": Extra(network=True),
    POLICY_VERSION: Extra(dtype=np.int64),
}
"""Every extra by name. One that is computed has a twin in ``engine.policies.drawn``."""


class NetworkPolicy(abc.ABC):
    """A policy except for the networks themselves, whose outputs a subclass computes.

    kernels: (prefix, outputs) -> the shapes (..., in, out) of a network's kernels. The actor's prefix is "";
        an extra with a network of its own has its name and a slash.
    extras: names in EXTRAS.
    deterministic: take the mean or the most probable action, without noise and extras.

    The parameters of a network are kernel_i and bias_i (out,) in turn, float32, under its prefix.
    Raises ValueError for extras that it cannot give and for a box without bounds.
    """

    _head_of: Callable[[ActionSpec], Head] = staticmethod(head_of)

    def __init__(
        self,
        spec: EnvSpec,
        kernels: Callable[[str, int], Sequence[tuple[int, ...]]],
        extras: Sequence[str],
        deterministic: bool,
    ) -> None:
        if deterministic and extras:
            raise ValueError(f"a deterministic policy has no extras, {list(extras)} were asked for")
        if unknown := [name for name in extras if name not in EXTRAS]:
            raise ValueError(f"unknown extras {unknown}; a network's policy gives any of {list(EXTRAS)}")
        self._head = self._head_of(spec.action)
        if "log_prob" in extras and not isinstance(self._head, Density):
            raise ValueError("actions that are clipped have no density, and so no log_prob")
        self.noise = None if deterministic else self._head.noise
        self.extras = {name: EXTRAS[name].field(name, spec.action) for name in extras}
        outputs = {"": self._head.width}
        outputs |= {f"{name}/": math.prod(f.shape) for name, f in self.extras.items() if EXTRAS[name].network}
        self.parameters: dict[str, FieldSpec] = {}
        for prefix, width in outputs.items():
            for i, shape in enumerate(kernels(prefix, width)):
                self.parameters[f"{prefix}kernel_{i}"] = FieldSpec(shape, _FLOAT32)
                self.parameters[f"{prefix}bias_{i}"] = FieldSpec(shape[-1:], _FLOAT32)
        self.parameters |= self._head.parameters
        self._networks: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}

    def initial_parameters(self, seed: int) -> dict[str, np.ndarray]:
        """Zero biases and LeCun-normal kernels: the deviation is 1/sqrt(fan in), windows included."""
        rng = np.random.default_rng(seed)
        weights = {name: np.zeros(field.shape, field.dtype) for name, field in self.parameters.items()}
        for name, field in self.parameters.items():
            if len(field.shape) > 1:
                weights[name][...] = rng.standard_normal(field.shape) / math.prod(field.shape[:-1]) ** 0.5
        return weights

    def load(self, parameters: Parameters) -> None:
        """Copy the weights, because their arrays are the engine's."""
        self._head.load(parameters)
        self._networks = {}
        for name in self.parameters:
            prefix, kernel, number = name.partition("kernel_")
            if kernel:
                layer = parameters[name].copy(), parameters[f"{prefix}bias_{number}"].copy()
                self._networks.setdefault(prefix, []).append(layer)

    @abc.abstractmethod
    def _forward(self, observation: np.ndarray, prefix: str = "") -> np.ndarray:
        """The outputs (b, k), float32, of one network for observations (b, ...); ``act`` may overwrite them.

        The actor's are computed first.
        """

    def act(
        self,
        observation: np.ndarray,
        noise: np.ndarray | None,
        action: np.ndarray,
        extras: Mapping[str, np.ndarray],
    ) -> None:
        """See Policy.act."""
        outputs = self._forward(observation)
        if noise is None or self.noise is None:
            action[...] = self._head.most_likely(outputs)
            return
        action[...] = self._head.draw(outputs, noise)
        for name, out in extras.items():
            if EXTRAS[name].network:
                out[...] = self._forward(observation, f"{name}/").reshape(out.shape)
            elif compute := EXTRAS[name].compute:
                out[...] = compute(self._head)
