"""Policies in JAX for model workers: the batched twins of ``fastcollect.policies``.

A policy class here declares the same parameters, noise and extras as its NumPy twin, and is given to a
model worker by import path; nothing else brings JAX into one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0


def mlp(parameters: Mapping[str, jax.Array], x: jax.Array) -> jax.Array:
    """ReLU layers kernel_0, bias_0, ... on x (batch, inputs); the last layer is linear."""
    depth = len(parameters) // 2
    for i in range(depth):
        x = x @ parameters[f"kernel_{i}"] + parameters[f"bias_{i}"]
        if i < depth - 1:
            x = jax.nn.relu(x)
    return x


def tanh_gaussian(head: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(action, log probability, mean action) in [-1, 1] of a squashed Gaussian.

    head: (batch, 2 k) mean and log standard deviation; noise: (batch, k) standard normals.
    Haarnoja et al. 2018, appendix C; log(1 - tanh(u)^2) in the form that does not cancel.
    """
    mean, log_std = jnp.split(head, 2, axis=-1)
    log_std = jnp.clip(log_std, LOG_STD_MIN, LOG_STD_MAX)
    raw = mean + jnp.exp(log_std) * noise
    squash = 2 * (math.log(2) - raw - jax.nn.softplus(-2 * raw))
    density = -0.5 * jnp.square(noise) - log_std - 0.5 * math.log(2 * math.pi)
    return jnp.tanh(raw), (density - squash).sum(-1), jnp.tanh(mean)


def categorical(logits: jax.Array, uniform: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(action, log probability) by inversion; logits (batch, k), uniform (batch, 1) in [0, 1)."""
    log_probs = jax.nn.log_softmax(logits)
    cumulative = jnp.cumsum(jnp.exp(log_probs), -1)
    # Scaled by the rounded total, last column left out: an action beyond the last cannot come out.
    action = (uniform * cumulative[:, -1:] >= cumulative[:, :-1]).sum(-1)
    return action, jnp.take_along_axis(log_probs, action[:, None], -1)[:, 0]


class MLPPolicy:
    """Inference for model workers, one compiled function per batch size; weights stay on the device.

    spec: the environment's spec (action.discrete, .shape, .low, .high are read).
    extras: any of "log_prob", "mean_action"; other names are the engine's own.
    """

    def __init__(self, spec: Any, *, hidden: Sequence[int], extras: Sequence[str] = ()) -> None:
        del hidden  # the weights say it
        action = spec.action
        self._shape = tuple(action.shape)
        self._parameters: dict[str, jax.Array] = {}
        if action.discrete:
            centre, half_width = None, None
        else:
            centre = jnp.asarray((action.low + action.high) / 2, jnp.float32).reshape(-1)
            half_width = jnp.asarray((action.high - action.low) / 2, jnp.float32).reshape(-1)

        def act(parameters: Any, observation: jax.Array, noise: jax.Array) -> dict[str, jax.Array]:
            head = mlp(parameters, observation.reshape(observation.shape[0], -1).astype(jnp.float32))
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
        self._parameters = {name: jnp.array(value) for name, value in parameters.items()}

    def act(
        self,
        observation: np.ndarray,
        noise: np.ndarray,
        action: np.ndarray,
        extras: Mapping[str, np.ndarray],
    ) -> None:
        """Write actions (b, *shape) and extras for observations (b, ...) and noise (b, k)."""
        outputs = self._act(self._parameters, observation, noise)
        action[...] = np.asarray(outputs["action"]).reshape(action.shape)
        for name, out in extras.items():
            if name in outputs:
                out[...] = np.asarray(outputs[name]).reshape(out.shape)
