"""Policies in JAX for model workers: the batched twins of ``fastcollect.policies``.

A policy class here declares the same parameters, noise and extras as its NumPy twin, and is given to a
model worker by import path; nothing else brings JAX into one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from engine.networks import mlp, tanh_gaussian

CONVOLUTIONS = ((8, 4), (4, 2))
"""Kernel size and stride of each of a CNN policy's."""
SMALLEST = 20
"""Pixels on a side, below which the last convolution has nothing to see."""


def categorical(logits: jax.Array, uniform: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(action, log probability) by inversion; logits (batch, k), uniform (batch, 1) in [0, 1)."""
    log_probs = jax.nn.log_softmax(logits)
    cumulative = jnp.cumsum(jnp.exp(log_probs), -1)
    # Scaled by the rounded total, last column left out: an action beyond the last cannot come out.
    action = (uniform * cumulative[:, -1:] >= cumulative[:, :-1]).sum(-1)
    # An action that the engine refuses, not a silent 0.
    action = jnp.where(jnp.isnan(cumulative[:, -1]), -1, action)
    return action, jnp.take_along_axis(log_probs, action[:, None], -1)[:, 0]


_EXTRAS = {
    "log_prob": lambda action: jax.ShapeDtypeStruct((), np.float32),
    "mean_action": lambda action: jax.ShapeDtypeStruct(action.shape, np.float32),
    "policy_version": lambda action: jax.ShapeDtypeStruct((), np.int64),
}


def _fields(kernels: Sequence[tuple[int, ...]]) -> dict[str, jax.ShapeDtypeStruct]:
    fields = {}
    for i, shape in enumerate(kernels):
        fields[f"kernel_{i}"] = jax.ShapeDtypeStruct(shape, np.float32)
        fields[f"bias_{i}"] = jax.ShapeDtypeStruct(shape[-1:], np.float32)
    return fields


def _head_width(action: Any) -> int:
    return action.num_actions if action.discrete else 2 * math.prod(action.shape)


def mlp_parameters(spec: Any, hidden: Sequence[int]) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of kernel_i (in, out) and bias_i (out,); the last layer is (mean, log std) or logits."""
    widths = [math.prod(spec.observation_shape), *hidden, _head_width(spec.action)]
    return _fields(list(itertools.pairwise(widths)))


def cnn_parameters(spec: Any, channels: Sequence[int], dense: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of kernel_i (size, size, in, out) of the convolutions, then (in, out), and of bias_i (out,).

    Raises ValueError where the observation is no (h, w, c) uint8 image of at least SMALLEST pixels a side.
    """
    shape, dtype = spec.observation_shape, np.dtype(spec.observation_dtype)
    if len(shape) != 3 or dtype != np.uint8 or min(shape[:2]) < SMALLEST or shape[2] < 1:
        raise ValueError(
            f"a CNN policy needs (h, w, c) uint8 images of at least {SMALLEST} x {SMALLEST} pixels, "
            f"the observations are {dtype} of shape {shape}"
        )
    (height, width, fan_in), kernels = shape, []
    for (size, stride), fan_out in zip(CONVOLUTIONS, channels, strict=True):
        kernels.append((size, size, fan_in, fan_out))
        height, width, fan_in = (height - size) // stride + 1, (width - size) // stride + 1, fan_out
    return _fields([*kernels, (height * width * fan_in, dense), (dense, _head_width(spec.action))])


class NetworkPolicy:
    """Inference for model workers, one compiled function per batch size; weights stay on the device.

    spec: the environment's spec (observation_shape, observation_dtype, action.discrete, .shape, .low, .high
        and .num_actions are read).
    parameters: the network's fields. forward: (parameters, observations (b, ...)) to the head (b, outputs).
    extras: any of "log_prob", "mean_action"; other names are the engine's own.
    deterministic: the mean action, or the most probable one, without noise and without extras.
    """

    def __init__(
        self,
        spec: Any,
        parameters: dict[str, jax.ShapeDtypeStruct],
        forward: Callable[[Any, jax.Array], jax.Array],
        extras: Sequence[str],
        deterministic: bool,
    ) -> None:
        if deterministic and extras:
            raise ValueError(f"a deterministic policy has no extras, {list(extras)} were asked for")
        action = spec.action
        size = 1 if action.discrete else math.prod(action.shape)
        self.parameters = parameters
        self.noise = ("uniform", 1) if action.discrete else ("normal", size)
        if deterministic:
            self.noise = None
        self.extras = {name: _EXTRAS[name](action) for name in extras}
        self._action = action
        self._weights: dict[str, jax.Array] = {}
        if action.discrete:
            centre, half_width = None, None
        else:
            low, high = (np.asarray(side, np.float64).reshape(-1) for side in (action.low, action.high))
            if not np.isfinite([low, high]).all():
                raise ValueError(
                    "a tanh-Gaussian policy needs a bounded action space, "
                    f"this one reaches from {action.low} to {action.high}"
                )
            centre = jnp.asarray((low + high) / 2, jnp.float32)
            half_width = jnp.asarray((high - low) / 2, jnp.float32)

        def act(parameters: Any, observation: jax.Array, noise: jax.Array) -> dict[str, jax.Array]:
            head = forward(parameters, observation)
            if action.discrete and deterministic:
                # An action that the engine refuses, not a silent 0.
                return {"action": jnp.where(jnp.isnan(head).any(-1), -1, head.argmax(-1))}
            if deterministic:
                return {"action": centre + half_width * jnp.tanh(head[:, :size])}
            if action.discrete:
                chosen, log_prob = categorical(head, noise)
                return {"action": chosen, "log_prob": log_prob}
            squashed, log_prob, mean = tanh_gaussian(head, noise)
            return {
                "action": centre + half_width * squashed,
                "log_prob": log_prob - jnp.log(half_width).sum(),
                "mean_action": centre + half_width * mean,
            }

        wanted = ("action", *extras)

        def act_wanted(parameters: Any, observation: jax.Array, noise: jax.Array) -> dict[str, jax.Array]:
            # Only what is asked for is an output, so that the compiler drops the rest.
            return {k: v for k, v in act(parameters, observation, noise).items() if k in wanted}

        self._act = jax.jit(act_wanted)

    def load(self, parameters: Mapping[str, np.ndarray]) -> None:
        """Copy the weights to the device."""
        # JAX reads a NumPy array later than the call, or for ever; the caller's may change at once.
        self._weights = {name: jnp.asarray(value.copy()) for name, value in parameters.items()}

    def act(
        self,
        observation: np.ndarray,
        noise: np.ndarray,
        action: np.ndarray,
        extras: Mapping[str, np.ndarray],
    ) -> None:
        """Write actions (b, *shape) and extras for observations (b, ...) and noise (b, k)."""
        outputs = self._act(self._weights, observation, noise)
        self._write(outputs["action"], action)
        if "log_prob" in extras:
            extras["log_prob"][...] = np.asarray(outputs["log_prob"])
        if "mean_action" in extras:
            self._write(outputs["mean_action"], extras["mean_action"])

    def _write(self, action: jax.Array, out: np.ndarray) -> None:
        action = np.asarray(action).reshape(out.shape)
        if not self._action.discrete:
            # Rounding must not carry an action over the edge of its box.
            action = np.clip(action, self._action.low, self._action.high)
        out[...] = action


class MLPPolicy(NetworkPolicy):
    """ReLU layers of the widths ``hidden`` on flat observations; see NetworkPolicy for the rest."""

    def __init__(
        self, spec: Any, *, hidden: Sequence[int], extras: Sequence[str] = (), deterministic: bool = False
    ) -> None:
        def forward(parameters: Any, observation: jax.Array) -> jax.Array:
            return mlp(parameters, observation.reshape(observation.shape[0], -1).astype(jnp.float32))

        super().__init__(spec, mlp_parameters(spec, hidden), forward, extras, deterministic)


class CNNPolicy(NetworkPolicy):
    """Convolutions of the widths ``channels`` on images, a layer of the width ``dense``, ReLUs, the head.

    See cnn_parameters for the observations it takes, NetworkPolicy for the rest.
    """

    def __init__(
        self,
        spec: Any,
        *,
        channels: Sequence[int],
        dense: int,
        extras: Sequence[str] = (),
        deterministic: bool = False,
    ) -> None:
        super().__init__(spec, cnn_parameters(spec, channels, dense), _cnn, extras, deterministic)


def _cnn(parameters: Mapping[str, jax.Array], images: jax.Array) -> jax.Array:
    """The head, (b, outputs), of images (b, h, w, c) with values up to 255."""
    x = images.astype(jnp.float32) / 255
    for i, (_, stride) in enumerate(CONVOLUTIONS):
        kernel, bias = parameters[f"kernel_{i}"], parameters[f"bias_{i}"]
        x = jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(x + bias)
    first = len(CONVOLUTIONS)
    rest = {f"{kind}_{j}": parameters[f"{kind}_{first + j}"] for j in range(2) for kind in ("kernel", "bias")}
    return mlp(rest, x.reshape(x.shape[0], -1))
