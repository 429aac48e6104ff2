"""A multilayer perceptron policy in NumPy: the inline twin of ``engine.policies.MLPPolicy``."""

import itertools
import math
from collections.abc import Sequence

import numpy as np

from fastcollect.envs.base import EnvSpec
from fastcollect.policies.heads import NoisyHead
from fastcollect.policies.network import NetworkPolicy


class MLPPolicy(NetworkPolicy):
    """ReLU layers of the widths ``hidden``, in every network; see NetworkPolicy for the rest."""

    def __init__(
        self, spec: EnvSpec, *, hidden: Sequence[int], extras: Sequence[str] = (), deterministic: bool = False
    ) -> None:
        def kernels(prefix: str, outputs: int) -> list[tuple[int, int]]:
            return list(itertools.pairwise([math.prod(spec.observation_shape), *hidden, outputs]))

        super().__init__(spec, kernels, extras, deterministic)
        self._scratch: dict[tuple[str, int], list[np.ndarray]] = {}

    def _forward(self, observation: np.ndarray, prefix: str = "") -> np.ndarray:
        batch, layers = len(observation), self._networks[prefix]
        scratch = self._scratch.get((prefix, batch))
        if scratch is None:
            widths = [layers[0][0].shape[0], *(kernel.shape[1] for kernel, _ in layers)]
            scratch = [np.empty((batch, width), np.float32) for width in widths]
            self._scratch[prefix, batch] = scratch
        np.copyto(scratch[0], observation.reshape(batch, -1), casting="same_kind")
        x = scratch[0]
        for (kernel, bias), out in zip(layers, scratch[1:], strict=True):
            np.matmul(x, kernel, out=out)
            out += bias
            if out is not scratch[-1]:
                np.maximum(out, 0, out=out)
            x = out
        return x


class NoisyMLPPolicy(MLPPolicy):
    """A deterministic actor, tried with noise of the spread that it is given; see NoisyHead."""

    _head_of = NoisyHead
