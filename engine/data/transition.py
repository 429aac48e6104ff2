"""Transitions as learners read them."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct


class Batch(struct.PyTreeNode):
    """Transitions of up to n steps, in arrays of NumPy or JAX; the leading axes are the caller's.

    observation, next_observation: (..., o) raw. action: (..., a) in [-1, 1]. rewards: (..., n) raw, those of
    each step in turn and 0 after the last one. steps: (...) int32, how many there are, from 1 to n.
    terminated: (...) bool, whether the last of them ended the episode for good, so that nothing follows.
    between: None, or (..., n - 1, o) raw, what each step after the first began with; after the last one its
    own again.
    """

    observation: Any
    action: Any
    rewards: Any
    steps: Any
    next_observation: Any
    terminated: Any
    between: Any = None


class Sample(struct.PyTreeNode):
    """A batch as a loss reads it: observations normalised, rewards scaled, discounted and summed.

    observation, next_observation: (..., o). action: (..., a). reward: (...). bootstrap: (...) the discount of
    what follows, which is ``discount`` to the number of steps, and 0 after a termination. between: None, or
    (..., n - 1, o). between_discount: (..., n - 1) that of each of them, and 0 after the last step.
    """

    observation: jax.Array
    action: jax.Array
    reward: jax.Array
    next_observation: jax.Array
    bootstrap: jax.Array
    between: Any = None
    between_discount: Any = None


def prepare(
    batch: Batch, mean: jax.Array, scale: jax.Array, discount: jax.Array, reward_scale: jax.Array
) -> Sample:
    """The sample of a raw batch, for n-step returns (Sutton and Barto 2018, equation 7.1).

    mean, scale: (o,) of the normaliser, which gives (observation - mean) * scale.
    """
    powers = [jnp.ones_like(discount)]
    for _ in range(batch.rewards.shape[-1]):
        powers.append(powers[-1] * discount)
    reward = batch.rewards[..., 0] * reward_scale
    for k in range(1, batch.rewards.shape[-1]):
        reward += powers[k] * (batch.rewards[..., k] * reward_scale)
    between = weights = None
    if batch.between is not None:
        between, later = (batch.between - mean) * scale, jnp.arange(1, len(powers) - 1)
        weights = jnp.where(later < batch.steps[..., None], jnp.stack(powers)[later], 0.0)
    return Sample(
        observation=(batch.observation - mean) * scale,
        action=batch.action,
        reward=reward,
        next_observation=(batch.next_observation - mean) * scale,
        bootstrap=jnp.where(batch.terminated, 0.0, jnp.stack(powers)[batch.steps]),
        between=between,
        between_discount=weights,
    )
