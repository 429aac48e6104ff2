"""Advantages of what was collected by a policy on itself, from rewards and values; (T, E) arrays throughout.

T steps of E environments in the order of time, whose episodes end anywhere. ``next_value`` is that of what a
step led to: at a time limit the value of the true last observation, after a termination 0, and elsewhere the
next row's value. ``ended``: bool, whether the step was its episode's last, by either.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


def generalized_advantages(
    reward: jax.Array,
    value: jax.Array,
    next_value: jax.Array,
    ended: jax.Array,
    discount: jax.Array,
    decay: jax.Array,
) -> jax.Array:
    """Sums of (discount decay)^k delta_k up to the episode's end (Schulman et al. 2016, equation 16)."""
    delta = reward + discount * next_value - value
    return _summed(delta, jnp.where(ended, 0.0, discount * decay))


class Corrected(NamedTuple):
    """Targets of values, and advantages of the actions, of a policy other than the one that acted."""

    target: jax.Array
    advantage: jax.Array


def corrected(
    reward: jax.Array,
    value: jax.Array,
    next_value: jax.Array,
    ended: jax.Array,
    discount: jax.Array,
    decay: jax.Array,
    log_ratio: jax.Array,
    most: jax.Array,
) -> Corrected:
    """V-trace (Espeholt et al. 2018, arXiv:1802.01561, equation 1, section 4.2, lambda of remark 2).

    log_ratio: of the probability of each action now and when it acted. most: both clipping thresholds.
    """
    weight = jnp.minimum(jnp.exp(log_ratio), most)
    delta = weight * (reward + discount * next_value - value)
    trace = jnp.minimum(weight, 1.0)
    target = value + _summed(delta, jnp.where(ended, 0.0, discount * decay * trace))
    # The last row goes on in the next rollout, of which only the value is known.
    following = jnp.where(ended, next_value, jnp.concatenate([target[1:], next_value[-1:]]))
    return Corrected(target, weight * (reward + discount * following - value))


def _summed(delta: jax.Array, factor: jax.Array) -> jax.Array:
    """x_t = delta_t + factor_t x_{t+1}, from the last step on."""

    def back(later: jax.Array, step: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        now = step[0] + step[1] * later
        return now, now

    return jax.lax.scan(back, jnp.zeros_like(delta[0]), (delta, factor), reverse=True)[1]
