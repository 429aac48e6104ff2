"""Policies in JAX for model workers: the batched twins of ``fastcollect.policies``.

The NumPy twin declares parameters, noise and extras, and refuses what cannot be, before model workers start.
The one here does the same arithmetic with the parameters that it is given.
"""

import abc
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from engine.networks import linear, mlp, tanh_gaussian

_STRIDES = (4, 2)
"""Of a CNN policy's convolutions."""


class NetworkPolicy(abc.ABC):
    """Inference for model workers, one compiled function per batch size; weights stay on the device.

    spec: the environment's spec (action.discrete, .low and .high are read).
    extras: what to write beside each action.
    deterministic: take the mean or the most probable action, without noise.
    widths: those that the NumPy twin takes; here the parameters tell them.
    """

    def __init__(
        self, spec: Any, *, extras: Sequence[str] = (), deterministic: bool = False, **widths: Any
    ) -> None:
        self._action = spec.action
        self._weights: dict[str, jax.Array] = {}
        box = None if spec.action.discrete else _box(spec.action)

        def act(parameters: Any, observation: jax.Array, noise: jax.Array) -> dict[str, Any]:
            head = self._forward(parameters, observation)
            if deterministic:
                return {"action": _most_likely(head, box)}
            known = self._drawn(parameters, head, noise, box)
            outputs = {name: known[name] for name in ("action", *extras) if name in known}
            for name in extras:
                if f"{name}/kernel_0" in parameters:
                    outputs[name] = self._forward(parameters, observation, f"{name}/")
            return outputs

        self._act = jax.jit(act)

    @abc.abstractmethod
    def _forward(self, parameters: Any, observation: jax.Array, prefix: str = "") -> jax.Array:
        """Outputs (b, k) of the network with this prefix, the actor's being "", for observations (b, ...)."""

    def _drawn(
        self, parameters: Any, head: jax.Array, noise: jax.Array, box: "Box | None"
    ) -> dict[str, jax.Array]:
        """What is known of the actions drawn from the actor's outputs; see ``drawn``."""
        return drawn(head, noise, box)

    def load(self, parameters: Mapping[str, np.ndarray]) -> None:
        """Copy the weights to the device."""
        # JAX reads a NumPy array later than the call, or for ever; the caller's may change at once.
        self._weights = jax.device_put({name: value.copy() for name, value in parameters.items()})

    def act(
        self,
        observation: np.ndarray,
        noise: np.ndarray | None,
        action: np.ndarray,
        extras: Mapping[str, np.ndarray],
    ) -> None:
        """Write actions (b, *shape) and extras for observations (b, ...) and noise (b, k)."""
        outputs = self._act(self._weights, observation, noise)
        for name, out in {"action": action, **extras}.items():
            host = np.asarray(outputs[name]).reshape(out.shape)
            if name in ("action", "mean_action") and not self._action.discrete:
                # Rounding must not carry an action over the edge of its box.
                host = np.clip(host, self._action.low, self._action.high)
            out[...] = host


class MLPPolicy(NetworkPolicy):
    """ReLU layers on flat observations; see NetworkPolicy for the rest."""

    def _forward(self, parameters: Any, observation: jax.Array, prefix: str = "") -> jax.Array:
        return mlp(parameters, observation.reshape(observation.shape[0], -1).astype(jnp.float32), prefix)


class NoisyMLPPolicy(MLPPolicy):
    """A deterministic actor on a box, whose noise has the spread among its parameters; see ``noisy``."""

    def _drawn(
        self, parameters: Any, head: jax.Array, noise: jax.Array, box: "Box | None"
    ) -> dict[str, jax.Array]:
        assert box is not None  # the NumPy twin refuses what has none
        return noisy(head, parameters["spread"], noise, box)


class CNNPolicy(NetworkPolicy):
    """Two convolutions on images (b, h, w, c) up to 255, a dense layer, ReLUs, and one layer for each output.

    See NetworkPolicy for the rest.
    """

    def _forward(self, parameters: Any, observation: jax.Array, prefix: str = "") -> jax.Array:
        x = observation.astype(jnp.float32) / 255
        for i, stride in enumerate(_STRIDES):
            kernel, bias = parameters[f"kernel_{i}"], parameters[f"bias_{i}"]
            x = jax.lax.conv_general_dilated(
                x, kernel, (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = jax.nn.relu(x + bias)
        dense = len(_STRIDES)
        x = linear(x.reshape(x.shape[0], -1), parameters[f"kernel_{dense}"]) + parameters[f"bias_{dense}"]
        last = 0 if prefix else dense + 1
        x = linear(jax.nn.relu(x), parameters[f"{prefix}kernel_{last}"])
        return x + parameters[f"{prefix}bias_{last}"]


Box = tuple[jax.Array, jax.Array]
"""Centre and half width of a box of actions, (k,) float32 each."""


def _box(action: Any) -> Box:
    low, high = (np.asarray(side, np.float64).reshape(-1) for side in (action.low, action.high))
    return jnp.asarray((low + high) / 2, jnp.float32), jnp.asarray((high - low) / 2, jnp.float32)


def drawn(head: jax.Array, noise: jax.Array, box: Box | None) -> dict[str, jax.Array]:
    """What is known of the actions drawn for b observations, and can be an extra; discrete ones have no box.

    action: (b, k) or (b,). log_prob: (b,). mean_action: (b, k), the actions without noise; of a box.
    """
    if box is None:
        return dict(zip(("action", "log_prob"), categorical(head, noise), strict=True))
    centre, half_width = box
    squashed, log_prob, mean = tanh_gaussian(head, noise)
    log_prob = log_prob - jnp.log(half_width).sum()
    action, mean_action = centre + half_width * squashed, centre + half_width * mean
    return {"action": action, "log_prob": log_prob, "mean_action": mean_action}


def noisy(head: jax.Array, spread: jax.Array, noise: jax.Array, box: Box) -> dict[str, jax.Array]:
    """The same of actions clip(tanh(mean + before n) + after n, -1, 1), which have no density.

    head: means (b, k); spread: (2,) before and after; noise: n, (b, k) standard normals.
    """
    centre, half_width = box
    action = jnp.clip(jnp.tanh(head + spread[0] * noise) + spread[1] * noise, -1, 1)
    return {"action": centre + half_width * action, "mean_action": centre + half_width * jnp.tanh(head)}


def categorical(logits: jax.Array, uniform: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(action, log probability) by inversion; logits (batch, k), uniform (batch, 1) in [0, 1)."""
    log_probs = jax.nn.log_softmax(logits)
    cumulative = jnp.cumsum(jnp.exp(log_probs), -1)
    # Scaled by the rounded total, last column left out: an action beyond the last cannot come out.
    action = (uniform * cumulative[:, -1:] >= cumulative[:, :-1]).sum(-1)
    # An action that the engine refuses, not a silent 0.
    action = jnp.where(jnp.isnan(cumulative[:, -1]), -1, action)
    return action, jnp.take_along_axis(log_probs, action[:, None], -1)[:, 0]


def _most_likely(head: jax.Array, box: Box | None) -> jax.Array:
    if box is None:
        # An action that the engine refuses, not a silent 0.
        return jnp.where(jnp.isnan(head).any(-1), -1, head.argmax(-1))
    centre, half_width = box
    return centre + half_width * jnp.tanh(head[:, : len(centre)])
