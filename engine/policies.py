"""Policies in JAX for model workers: the batched twins of ``fastcollect.policies``.

A policy class here declares the same parameters, noise and extras as its NumPy twin, and is given to a
model worker by import path; nothing else brings JAX into one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from engine.networks import mlp, tanh_gaussian


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


def mlp_parameters(spec: Any, hidden: Sequence[int]) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of kernel_i (in, out) and bias_i (out,); the last layer is (mean, log std) or logits."""
    action = spec.action
    outputs = action.num_actions if action.discrete else 2 * math.prod(action.shape)
    widths = [math.prod(spec.observation_shape), *hidden, outputs]
    fields = {}
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(widths)):
        fields[f"kernel_{i}"] = jax.ShapeDtypeStruct((fan_in, fan_out), np.float32)
        fields[f"bias_{i}"] = jax.ShapeDtypeStruct((fan_out,), np.float32)
    return fields


class MLPPolicy:
    """Inference for model workers, one compiled function per batch size; weights stay on the device.

    spec: the environment's spec (observation_shape, action.discrete, .shape, .low, .high and .num_actions
        are read).
    extras: any of "log_prob", "mean_action"; other names are the engine's own.
    deterministic: the mean action, or the most probable one, without noise and without extras.
    """

    def __init__(
        self, spec: Any, *, hidden: Sequence[int], extras: Sequence[str] = (), deterministic: bool = False
    ) -> None:
        if deterministic and extras:
            raise ValueError(f"a deterministic policy has no extras, {list(extras)} were asked for")
        action = spec.action
        size = 1 if action.discrete else math.prod(action.shape)
        self.parameters = mlp_parameters(spec, hidden)
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
            head = mlp(parameters, observation.reshape(observation.shape[0], -1).astype(jnp.float32))
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
