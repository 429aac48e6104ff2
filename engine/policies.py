"""Policies in JAX for model workers: the batched twins of ``fastcollect.policies``.

A policy class here declares the same parameters, noise and extras as its NumPy twin, and is given to a
model worker by import path; nothing else brings JAX into one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from engine.networks import linear, mlp, tanh_gaussian

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


class Drawn(NamedTuple):
    """What is known of actions drawn for b observations: action (b, k) or (b,), log_prob (b,).

    mean_action: (b, k) the actions without noise; None where they are discrete.
    """

    action: jax.Array
    log_prob: jax.Array
    mean_action: jax.Array | None


class Extra(NamedTuple):
    """One thing that a policy can write beside each action, as in ``fastcollect.policies.extras``.

    field: shape and dtype of one value, from the action space. compute: the values from what was drawn.
    network: they are the outputs of a network under the extra's name. in_box: they are actions.
    """

    field: Callable[[Any], jax.ShapeDtypeStruct]
    compute: Callable[[Drawn], jax.Array | None] | None = None
    network: bool = False
    in_box: bool = False


def _scalar(action: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((), np.float32)


def _like_action(action: Any) -> jax.ShapeDtypeStruct:
    if action.discrete:
        raise ValueError("a discrete action has no mean_action")
    return jax.ShapeDtypeStruct(action.shape, np.float32)


EXTRAS = {
    "log_prob": Extra(_scalar, lambda drawn: drawn.log_prob),
    "mean_action": Extra(_like_action, lambda drawn: drawn.mean_action, in_box=True),
    "value": Extra(_scalar, network=True),
    "policy_version": Extra(lambda action: jax.ShapeDtypeStruct((), np.int64)),  # the engine writes it
}
"""Every extra by name, as in ``fastcollect.policies.extras``."""


def _fields(kernels: Sequence[tuple[int, ...]], prefix: str = "") -> dict[str, jax.ShapeDtypeStruct]:
    fields = {}
    for i, shape in enumerate(kernels):
        fields[f"{prefix}kernel_{i}"] = jax.ShapeDtypeStruct(shape, np.float32)
        fields[f"{prefix}bias_{i}"] = jax.ShapeDtypeStruct(shape[-1:], np.float32)
    return fields


def _own_networks(action: Any, names: Sequence[str]) -> dict[str, int]:
    """Of these extras, those with a network of their own, and how many outputs it has."""
    own = [name for name in names if name in EXTRAS and EXTRAS[name].network]
    return {name: math.prod(EXTRAS[name].field(action).shape) for name in own}


def _head_width(action: Any) -> int:
    return action.num_actions if action.discrete else 2 * math.prod(action.shape)


def mlp_parameters(
    spec: Any, hidden: Sequence[int], extras: Sequence[str] = ()
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of kernel_i (in, out) and bias_i (out,); the last layer is (mean, log std) or logits.

    An extra with a network of its own adds one of the same hidden widths under its name ("value/kernel_0").
    """

    def kernels(outputs: int) -> list[tuple[int, ...]]:
        return list(itertools.pairwise([math.prod(spec.observation_shape), *hidden, outputs]))

    fields = _fields(kernels(_head_width(spec.action)))
    for name, outputs in _own_networks(spec.action, extras).items():
        fields |= _fields(kernels(outputs), f"{name}/")
    return fields


def cnn_parameters(
    spec: Any, channels: Sequence[int], dense: int, extras: Sequence[str] = ()
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of kernel_i (size, size, in, out) of the convolutions, then (in, out), and of bias_i (out,).

    An extra with outputs of its own adds one layer on the dense one under its name ("value/kernel_0").
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
    fields = _fields([*kernels, (height * width * fan_in, dense), (dense, _head_width(spec.action))])
    for name, outputs in _own_networks(spec.action, extras).items():
        fields |= _fields([(dense, outputs)], f"{name}/")
    return fields


class NetworkPolicy:
    """Inference for model workers, one compiled function per batch size; weights stay on the device.

    spec: the environment's spec (observation_shape, observation_dtype, action.discrete, .shape, .low, .high
        and .num_actions are read).
    parameters: the networks' fields. forward: (parameters, observations (b, ...), prefix) to the outputs
        (b, k) of the network whose parameters carry the prefix; the actor's is "", its outputs are the head.
    extras: names of EXTRAS. deterministic: the mean action, or the most probable one, without noise and
        without extras.

    Raises ValueError for extras that it cannot give and for a box without bounds.
    """

    def __init__(
        self,
        spec: Any,
        parameters: dict[str, jax.ShapeDtypeStruct],
        forward: Callable[[Any, jax.Array, str], jax.Array],
        extras: Sequence[str],
        deterministic: bool,
    ) -> None:
        if deterministic and extras:
            raise ValueError(f"a deterministic policy has no extras, {list(extras)} were asked for")
        if unknown := [name for name in extras if name not in EXTRAS]:
            raise ValueError(f"unknown extras {unknown}; a network's policy gives any of {list(EXTRAS)}")
        action = spec.action
        self.parameters = parameters
        noise = ("uniform", 1) if action.discrete else ("normal", math.prod(action.shape))
        self.noise = None if deterministic else noise
        self.extras = {name: EXTRAS[name].field(action) for name in extras}
        self._action = action
        self._weights: dict[str, jax.Array] = {}
        box = None if action.discrete else _box(action)

        def act(parameters: Any, observation: jax.Array, noise: jax.Array) -> dict[str, jax.Array]:
            head = forward(parameters, observation, "")
            if deterministic:
                return {"action": _most_likely(head, box)}
            drawn = _draw(head, noise, box)
            outputs: dict[str, Any] = {"action": drawn.action}
            for name in extras:
                if EXTRAS[name].network:
                    outputs[name] = forward(parameters, observation, f"{name}/")
                elif compute := EXTRAS[name].compute:
                    outputs[name] = compute(drawn)
            return outputs

        self._act = jax.jit(act)

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
        self._write(outputs["action"], action, in_box=not self._action.discrete)
        for name, out in extras.items():
            self._write(outputs[name], out, in_box=EXTRAS[name].in_box)

    def _write(self, values: jax.Array, out: np.ndarray, *, in_box: bool) -> None:
        host = np.asarray(values).reshape(out.shape)
        if in_box:
            # Rounding must not carry an action over the edge of its box.
            host = np.clip(host, self._action.low, self._action.high)
        out[...] = host


Box = tuple[jax.Array, jax.Array]
"""(centre, half width), (k,) float32 each."""


def _box(action: Any) -> Box:
    low, high = (np.asarray(side, np.float64).reshape(-1) for side in (action.low, action.high))
    if not np.isfinite([low, high]).all():
        raise ValueError(
            "a tanh-Gaussian policy needs a bounded action space, "
            f"this one reaches from {action.low} to {action.high}"
        )
    return jnp.asarray((low + high) / 2, jnp.float32), jnp.asarray((high - low) / 2, jnp.float32)


def _draw(head: jax.Array, noise: jax.Array, box: Box | None) -> Drawn:
    if box is None:
        return Drawn(*categorical(head, noise), None)
    centre, half_width = box
    squashed, log_prob, mean = tanh_gaussian(head, noise)
    log_prob = log_prob - jnp.log(half_width).sum()
    return Drawn(centre + half_width * squashed, log_prob, centre + half_width * mean)


def _most_likely(head: jax.Array, box: Box | None) -> jax.Array:
    if box is None:
        # An action that the engine refuses, not a silent 0.
        return jnp.where(jnp.isnan(head).any(-1), -1, head.argmax(-1))
    centre, half_width = box
    return centre + half_width * jnp.tanh(head[:, : len(centre)])


class MLPPolicy(NetworkPolicy):
    """ReLU layers of the widths ``hidden`` on flat observations; see NetworkPolicy for the rest."""

    def __init__(
        self, spec: Any, *, hidden: Sequence[int], extras: Sequence[str] = (), deterministic: bool = False
    ) -> None:
        def forward(parameters: Any, observation: jax.Array, prefix: str) -> jax.Array:
            return mlp(parameters, observation.reshape(observation.shape[0], -1).astype(jnp.float32), prefix)

        super().__init__(spec, mlp_parameters(spec, hidden, extras), forward, extras, deterministic)


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
        super().__init__(spec, cnn_parameters(spec, channels, dense, extras), _cnn, extras, deterministic)


def _cnn(parameters: Mapping[str, jax.Array], images: jax.Array, prefix: str) -> jax.Array:
    """The head, or an extra's outputs on the same dense layer, (b, k), of images (b, h, w, c) up to 255."""
    x = images.astype(jnp.float32) / 255
    for i, (_, stride) in enumerate(CONVOLUTIONS):
        kernel, bias = parameters[f"kernel_{i}"], parameters[f"bias_{i}"]
        x = jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(x + bias)
    dense = len(CONVOLUTIONS)
    x = linear(x.reshape(x.shape[0], -1), parameters[f"kernel_{dense}"]) + parameters[f"bias_{dense}"]
    last = 0 if prefix else dense + 1
    x = linear(jax.nn.relu(x), parameters[f"{prefix}kernel_{last}"])
    return x + parameters[f"{prefix}bias_{last}"]
