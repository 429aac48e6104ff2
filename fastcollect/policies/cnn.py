"""A small convolutional policy for images in NumPy: the inline twin of ``engine.policies.CNNPolicy``.

Two convolutions without padding and a dense layer, the widths of Mnih et al. 2013, "Playing Atari with Deep
Reinforcement Learning"; pixels are scaled to [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import as_strided

from fastcollect.envs.base import EnvSpec
from fastcollect.memory.segment import FieldSpec
from fastcollect.policies.base import Parameters
from fastcollect.policies.extras import own_networks
from fastcollect.policies.heads import Layers, NetworkPolicy, head_width, network_fields

CONVOLUTIONS = ((8, 4), (4, 2))
"""Kernel size and stride of each."""
SMALLEST = 20
"""Pixels on a side, below which the last convolution has nothing to see."""


def cnn_parameters(
    spec: EnvSpec, channels: Sequence[int], dense: int, extras: Sequence[str] = ()
) -> dict[str, FieldSpec]:
    """kernel_i (size, size, in, out) of the convolutions, then (in, out), and bias_i (out,), float32.

    An extra with outputs of its own adds one layer on the dense one under its name ("value/kernel_0").
    Raises ValueError where the observation is no (h, w, c) uint8 image of at least SMALLEST pixels a side, or
    where ``channels`` does not fit the convolutions.
    """
    shape, dtype = spec.observation_shape, np.dtype(spec.observation_dtype)
    if len(shape) != 3 or dtype != np.uint8 or min(shape[:2]) < SMALLEST or shape[2] < 1:
        raise ValueError(
            f"a CNN policy needs (h, w, c) uint8 images of at least {SMALLEST} x {SMALLEST} pixels, "
            f"the observations are {dtype} of shape {shape}"
        )
    if len(channels) != len(CONVOLUTIONS) or min(*channels, dense) < 1:
        raise ValueError(
            f"channels is {tuple(channels)}, dense {dense}; allowed: two positive widths, and one"
        )
    height, width, fan_in = shape
    shapes: list[tuple[int, ...]] = []
    for (size, stride), fan_out in zip(CONVOLUTIONS, channels, strict=True):
        shapes.append((size, size, fan_in, fan_out))
        height, width, fan_in = (height - size) // stride + 1, (width - size) // stride + 1, fan_out
    shapes += [(height * width * fan_in, dense), (dense, head_width(spec.action))]
    fields = network_fields(shapes)
    for name, outputs in own_networks(spec.action, extras).items():
        fields |= network_fields([(dense, outputs)], f"{name}/")
    return fields


class CNNPolicy(NetworkPolicy):
    """Convolutions of the widths ``channels``, a layer of the width ``dense``, ReLUs, the head.

    See cnn_parameters for the observations it takes, NetworkPolicy for the rest.
    """

    def __init__(
        self,
        spec: EnvSpec,
        *,
        channels: Sequence[int],
        dense: int,
        extras: Sequence[str] = (),
        deterministic: bool = False,
    ) -> None:
        super().__init__(spec, cnn_parameters(spec, channels, dense, extras), extras, deterministic)
        self._image = tuple(spec.observation_shape)
        self._layers: Layers = []
        self._scratch: dict[int, tuple[list[np.ndarray], list[np.ndarray]]] = {}

    def load(self, parameters: Parameters) -> None:
        """Copy the weights; they are the engine's. The scale of the pixels goes into the first kernel."""
        super().load(parameters)
        self._layers = [(kernel.reshape(-1, kernel.shape[-1]), bias) for kernel, bias in self._networks[""]]
        kernel = self._layers[0][0]
        kernel *= np.float32(1 / 255)

    def _allocate(self, batch: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Every convolution's windows, (b, rows, columns, size, size * in), and every layer's outputs."""
        windows, outputs = [], []
        height, width, channels = self._image
        for (size, stride), (_, bias) in zip(CONVOLUTIONS, self._layers, strict=False):
            height, width = (height - size) // stride + 1, (width - size) // stride + 1
            windows.append(np.empty((batch, height, width, size, size * channels), np.float32))
            channels = len(bias)
            outputs.append(np.empty((batch, height, width, channels), np.float32))
        outputs += [np.empty((batch, len(bias)), np.float32) for _, bias in self._layers[len(CONVOLUTIONS) :]]
        return windows, outputs

    def _forward(self, observation: np.ndarray, prefix: str = "") -> np.ndarray:
        batch = len(observation)
        if prefix:  # the actor's pass has left the dense layer's outputs in its scratch
            ((kernel, bias),) = self._networks[prefix]
            return self._scratch[batch][1][-2] @ kernel + bias
        scratch = self._scratch.get(batch)
        if scratch is None:
            scratch = self._scratch[batch] = self._allocate(batch)
        windows, outputs = scratch
        x = np.ascontiguousarray(observation)
        for i, ((kernel, bias), out) in enumerate(zip(self._layers, outputs, strict=True)):
            if i < len(CONVOLUTIONS):
                # One pass gathers the windows and, of the pixels, makes numbers.
                np.copyto(windows[i], _windows(x, windows[i].shape, CONVOLUTIONS[i][1]))
                x = windows[i]
            flat = out.reshape(-1, len(bias))
            np.matmul(x.reshape(-1, len(kernel)), kernel, out=flat)
            flat += bias
            if i < len(self._layers) - 1:
                np.maximum(flat, 0, out=flat)
            x = out
        return x


def _windows(x: np.ndarray, shape: tuple[int, ...], stride: int) -> np.ndarray:
    """The windows of images (b, h, w, c) as a view of this shape; neighbours in a row are one run."""
    image, row, pixel, number = x.strides
    return as_strided(x, shape, (image, stride * row, stride * pixel, row, number), writeable=False)
