"""A small convolutional policy for images in NumPy: the inline twin of ``engine.policies.CNNPolicy``."""

from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import as_strided

from fastcollect.envs.base import EnvSpec
from fastcollect.policies.base import Parameters
from fastcollect.policies.network import NetworkPolicy

_CONVOLUTIONS = ((8, 4), (4, 2))
"""Kernel size and stride of each."""
_SMALLEST = 20
"""Pixels on a side, below which the last convolution has nothing to see."""


class CNNPolicy(NetworkPolicy):
    """Two convolutions without padding, a dense layer, ReLUs, and the head on pixels scaled to [0, 1].

    The kernel sizes and strides are those of Mnih et al. 2013 (arXiv:1312.5602). channels: the widths of the
    convolutions, whose kernels are (size, size, in, out). dense: the width of the layer on them, on which the
    head stands, and one more layer for each extra with outputs of its own.

    Raises ValueError for observations other than (h, w, c) uint8 images of 20 pixels a side or more, and for
    other widths; see NetworkPolicy for the rest.
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
        shape, dtype = spec.observation_shape, np.dtype(spec.observation_dtype)
        if len(shape) != 3 or dtype != np.uint8 or min(shape[:2]) < _SMALLEST or shape[2] < 1:
            raise ValueError(
                f"a CNN policy needs (h, w, c) uint8 images of at least {_SMALLEST} x {_SMALLEST} pixels, "
                f"the observations are {dtype} of shape {shape}"
            )
        if len(channels) != len(_CONVOLUTIONS) or min(*channels, dense) < 1:
            raise ValueError(
                f"channels is {tuple(channels)}, dense {dense}; allowed: two positive widths, and one"
            )
        height, width, fan_in = shape
        convolutions: list[tuple[int, ...]] = []
        self._sides: list[tuple[int, int]] = []  # of each convolution's outputs
        for (size, stride), fan_out in zip(_CONVOLUTIONS, channels, strict=True):
            convolutions.append((size, size, fan_in, fan_out))
            height, width, fan_in = (height - size) // stride + 1, (width - size) // stride + 1, fan_out
            self._sides.append((height, width))
        below = [*convolutions, (height * width * fan_in, dense)]
        super().__init__(
            spec, lambda prefix, n: [*([] if prefix else below), (dense, n)], extras, deterministic
        )
        self._layers: list[tuple[np.ndarray, np.ndarray]] = []
        self._scratch: dict[int, tuple[list[np.ndarray], list[np.ndarray]]] = {}

    def load(self, parameters: Parameters) -> None:
        """Copy the weights. The scale of the pixels goes into the first kernel."""
        super().load(parameters)
        first = self._networks[""][0][0]
        first *= np.float32(1 / 255)
        self._layers = [(kernel.reshape(-1, kernel.shape[-1]), bias) for kernel, bias in self._networks[""]]

    def _allocate(self, batch: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Every convolution's windows, (b, rows, columns, size, size * in), and every layer's outputs."""
        windows, outputs = [], []
        for (size, _), sides, (kernel, bias) in zip(_CONVOLUTIONS, self._sides, self._layers, strict=False):
            windows.append(np.empty((batch, *sides, size, len(kernel) // size), np.float32))
            outputs.append(np.empty((batch, *sides, len(bias)), np.float32))
        outputs += [np.empty((batch, len(bias)), np.float32) for _, bias in self._layers[len(windows) :]]
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
            if i < len(windows):
                # One pass gathers the windows and turns pixels into floats.
                np.copyto(windows[i], _windows(x, windows[i].shape, _CONVOLUTIONS[i][1]))
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
