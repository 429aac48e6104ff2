"""A multilayer perceptron policy in NumPy: the inline twin of ``engine.policies``."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from fastcollect.envs.base import EnvSpec
from fastcollect.memory.segment import FieldSpec
from fastcollect.policies.heads import NetworkPolicy, head_width


def mlp_parameters(spec: EnvSpec, hidden: Sequence[int]) -> dict[str, FieldSpec]:
    """kernel_i (in, out) and bias_i (out,), float32; the last layer is (mean, log std) or logits."""
    widths = [math.prod(spec.observation_shape), *hidden, head_width(spec.action)]
    fields = {}
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(widths)):
        fields[f"kernel_{i}"] = FieldSpec((fan_in, fan_out), np.dtype(np.float32))
        fields[f"bias_{i}"] = FieldSpec((fan_out,), np.dtype(np.float32))
    return fields


class MLPPolicy(NetworkPolicy):
    """ReLU layers of the widths ``hidden``; see NetworkPolicy for the rest."""

    def __init__(
        self,
        spec: EnvSpec,
        *,
        hidden: Sequence[int],
        extras: Sequence[str] = (),
        deterministic: bool = False,
    ) -> None:
        super().__init__(spec, mlp_parameters(spec, hidden), extras, deterministic)
        self._scratch: dict[int, list[np.ndarray]] = {}

    def _forward(self, observation: np.ndarray) -> np.ndarray:
        batch = len(observation)
        scratch = self._scratch.get(batch)
        if scratch is None:
            widths = [self._layers[0][0].shape[0], *(kernel.shape[1] for kernel, _ in self._layers)]
            scratch = self._scratch[batch] = [np.empty((batch, width), np.float32) for width in widths]
        np.copyto(scratch[0], observation.reshape(batch, -1), casting="same_kind")
        x = scratch[0]
        for (kernel, bias), out in zip(self._layers, scratch[1:], strict=True):
            np.matmul(x, kernel, out=out)
            out += bias
            if out is not scratch[-1]:
                np.maximum(out, 0, out=out)
            x = out
        return x
