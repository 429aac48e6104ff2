"""Gradients of SAC's losses with respect to trained weights, as a measure of what each is worth."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from engine.algorithms import sac
from engine.networks import Parameters


@partial(jax.jit, static_argnames="config")
def mean_absolute_gradients(
    config: sac.SACConfig, state: sac.SACState, batches: sac.Batch, mean: jax.Array, scale: jax.Array
) -> dict[str, Parameters]:
    """{"actor", "critic"} -> |dL/dw| averaged over K raw batches, (K, batch, ...); see sac.update_many.

    The absolute value is taken of each batch's gradient: near an optimum the gradients of batches cancel, and
    what is left of their mean is noise (Molchanov et al. 2017, section 2.2).
    """
    batches = sac.prepare(config, batches, mean, scale)
    keys = jax.random.split(jax.random.key(state.seed), batches.reward.shape[0])

    def add(total: dict[str, Parameters], each: tuple[sac.Batch, jax.Array]) -> tuple:
        batch, key = each
        noise = jax.random.normal(key, (2, *batch.action.shape))
        targets = sac.critic_targets(state, batch, noise[0])
        critic = jax.grad(sac.critic_loss, has_aux=True)(state.critic, batch, targets)[0]
        temperature = jnp.exp(state.log_temperature)
        actor = jax.grad(sac.actor_loss, has_aux=True)(
            state.actor, state.critic, temperature, batch.observation, noise[1]
        )[0]
        found = {"actor": actor, "critic": critic}
        return jax.tree.map(lambda t, g: t + jnp.abs(g), total, found), None

    zero = jax.tree.map(jnp.zeros_like, {"actor": state.actor, "critic": state.critic})
    total, _ = jax.lax.scan(add, zero, (batches, keys))
    return jax.tree.map(lambda t: t / batches.reward.shape[0], total)
