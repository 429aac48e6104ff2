"""What the weights of a network are worth to its loss."""

import jax
import jax.numpy as jnp

from engine.algorithms.base import AgentState, Algorithm
from engine.data.transition import Batch
from engine.networks import Parameters


def mean_absolute_gradients(algorithm: Algorithm, state: AgentState, batches: Batch) -> dict[str, Parameters]:
    """Prunable network -> |dL/dw| averaged over K raw batches, (K, batch, ...): what each weight is worth.

    The absolute value is taken of each batch's gradient: near an optimum the gradients of batches cancel, and
    what is left of their mean is noise (Molchanov et al. 2017, section 2.2).
    """
    mean, scale = state.normalizer.scaling(algorithm.variance_floor)
    return _mean_absolute(algorithm, state.replace(normalizer=None, env_steps=None), batches, mean, scale)


@jax.jit
def _mean_absolute(
    algorithm: Algorithm, state: AgentState, batches: Batch, mean: jax.Array, scale: jax.Array
) -> dict[str, Parameters]:
    samples = algorithm.prepare(batches, mean, scale)
    count = batches.action.shape[0]
    keys = jax.random.split(jax.random.key(state.seed), count)
    noise = jax.vmap(lambda key: algorithm.noise(key, batches.action.shape[1:]))(keys)

    def add(total: dict[str, Parameters], each: tuple) -> tuple:
        found = algorithm.gradients(state, *each)
        return jax.tree.map(lambda t, g: t + jnp.abs(g), total, found), None

    zero = {name: jax.tree.map(jnp.zeros_like, state.parameters[name]) for name in algorithm.prunable}
    total, _ = jax.lax.scan(add, zero, (samples, noise))
    return jax.tree.map(lambda t: t / count, total)
