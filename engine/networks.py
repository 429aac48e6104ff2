"""Multilayer perceptrons as flat dicts of arrays: kernel_0 (in, out), bias_0 (out,), kernel_1, ...

A twin critic is one flat dict whose names carry the prefixes "q0/" and "q1/".
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

Parameters = dict[str, jax.Array]
"""Weights by name, float32."""

LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0
CRITICS = ("q0/", "q1/")
EPSILON = 1e-6
"""Added to the variance over a layer's units."""
_TRUNCATED_DEVIATION = 0.87962566103423978
"""Standard deviation of standard normals that are cut off at 2."""
_LEAST_DRAWN = 4096
_NARROW = 32
"""Outputs below which a layer's gradient is computed the other way around; see _linear_backward."""


def init_mlp(key: jax.Array, widths: Sequence[int], prefix: str = "") -> Parameters:
    """LeCun-normal kernels and zero biases for layers of these widths, inputs and outputs included.

    Bit for bit what ``jax.nn.initializers.lecun_normal`` draws with the key that a layer's number is folded
    into. It compiles for half a second, anew for each shape; a longer draw begins with the same numbers, so
    that one length serves all layers.
    """
    shapes = list(itertools.pairwise(widths))
    largest = max(rows * columns for rows, columns in shapes)
    size = 1 << (max(_LEAST_DRAWN, largest) - 1).bit_length()
    parameters: Parameters = {}
    for i, (rows, columns) in enumerate(shapes):
        normals = np.asarray(_truncated_normals(jax.random.fold_in(key, i), size))
        deviation = np.sqrt(np.float32(1 / rows)) / np.float32(_TRUNCATED_DEVIATION)
        kernel = normals[: rows * columns].reshape(rows, columns) * deviation
        parameters[f"{prefix}kernel_{i}"] = jax.device_put(kernel)
        parameters[f"{prefix}bias_{i}"] = jax.device_put(np.zeros(columns, np.float32))
    return parameters


@partial(jax.jit, static_argnums=1)
def _truncated_normals(key: jax.Array, size: int) -> jax.Array:
    return jax.random.truncated_normal(key, -2, 2, (size,), jnp.float32)


def init_critic(key: jax.Array, widths: Sequence[int]) -> Parameters:
    """Twin networks of these widths."""
    twins = [init_mlp(jax.random.fold_in(key, i), widths, prefix) for i, prefix in enumerate(CRITICS)]
    return twins[0] | twins[1]


@jax.custom_vjp
def linear(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x @ kernel; x (..., inputs), kernel (inputs, outputs)."""
    return x @ kernel


def _linear_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return x @ kernel, (x, kernel)


def _linear_backward(saved: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    rows, gradients = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
    if kernel.shape[1] < _NARROW:
        # XLA for CPUs takes several times longer for the same product the other way around; without the
        # barrier it turns this one.
        kernel_gradient = jax.lax.optimization_barrier(gradients.T @ rows).T
    else:
        kernel_gradient = rows.T @ gradients
    return gradient @ kernel.T, kernel_gradient


linear.defvjp(_linear_forward, _linear_backward)


def _mean(x: jax.Array) -> jax.Array:
    # XLA for CPUs adds along a row one by one, and in a matrix product many at a time.
    share = jnp.full((x.shape[-1], 1), 1 / x.shape[-1], x.dtype)
    return jnp.dot(x, share, precision=jax.lax.Precision.HIGHEST)


@jax.custom_vjp
def normalised_relu(x: jax.Array) -> jax.Array:
    """ReLU of x (..., units) less its mean over the units, over the root of its variance and EPSILON.

    Layer normalisation (Ba, Kiros and Hinton 2016, arXiv:1607.06450, equation 3) without gain and bias.
    """
    return _normalised_forward(x)[0]


def _normalised_forward(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    centred = x - _mean(x)
    # Of centred values: mean square less squared mean would lose what is small beside the mean.
    scale = jax.lax.rsqrt(_mean(jnp.square(centred)) + EPSILON)
    normal = centred * scale
    return jax.nn.relu(normal), (normal, scale)


def _normalised_backward(saved: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array]:
    # By hand, it takes one sum over the units less than what is derived of the lines above.
    normal, scale = saved
    gradient = jnp.where(normal > 0, gradient, 0)
    return (scale * (gradient - _mean(gradient) - normal * _mean(gradient * normal)),)


normalised_relu.defvjp(_normalised_forward, _normalised_backward)


def mlp(
    parameters: Mapping[str, jax.Array], x: jax.Array, prefix: str = "", normalise: bool = False
) -> jax.Array:
    """ReLU layers on x (..., inputs); the last layer is linear.

    normalise: what each ReLU is of, see ``normalised_relu``.
    """
    activation = normalised_relu if normalise else jax.nn.relu
    depth = sum(name.startswith(f"{prefix}kernel_") for name in parameters)
    for i in range(depth):
        x = linear(x, parameters[f"{prefix}kernel_{i}"]) + parameters[f"{prefix}bias_{i}"]
        if i < depth - 1:
            x = activation(x)
    return x


def q_values(
    critic: Mapping[str, jax.Array],
    observation: jax.Array,
    action: jax.Array,
    critics: Sequence[str] = CRITICS,
    normalise: bool = False,
) -> jax.Array:
    """Values of both critics or of these, (critics, batch); observation (batch, o), action (batch, a).

    normalise: as in ``mlp``.
    """
    x = jnp.concatenate([observation, action], -1)
    # Two networks of their own, not one stacked: a batched matrix product is slower on CPUs.
    return jnp.stack([mlp(critic, x, prefix, normalise)[..., 0] for prefix in critics])


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


def fold_normalizer(actor: Mapping[str, jax.Array], mean: jax.Array, scale: jax.Array) -> Parameters:
    """The actor that does on raw observations what ``actor`` does on (observation - mean) * scale."""
    kernel = actor["kernel_0"] * scale[:, None]
    bias = actor["bias_0"] - jnp.dot(mean, kernel, precision=jax.lax.Precision.HIGHEST)
    return {**actor, "kernel_0": kernel, "bias_0": bias}
