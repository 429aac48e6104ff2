"""Soft actor-critic with masks, as pure functions on one state (Haarnoja et al. 2018, arXiv:1812.05905).

Twin critics (Fujimoto et al. 2018), a tanh-Gaussian actor and a learned temperature. K updates are one
``lax.scan``; nothing in here waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from engine.networks import Parameters, fold_normalizer, init_actor, init_critic, mlp, q_values, tanh_gaussian
from engine.sparse import masks

Masks = Mapping[str, Mapping[str, jax.Array]]
"""{"actor": mask, "critic": mask}; a mask is kernel name -> bool array, empty for a dense network."""

DENSE: Masks = {"actor": {}, "critic": {}}


@dataclass(frozen=True, kw_only=True)
class SACConfig:
    """Hyperparameters of soft actor-critic.

    The defaults suit many environments in parallel and few updates for each step, on rewards from 0 to 10 a
    step: larger steps and a shorter horizon than is usual at one update a step.
    """

    hidden: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers of actor and critics."""
    batch_size: int = 256
    """Transitions in a batch; every update draws a fresh one."""
    discount: float = 0.97
    """Gamma, of one environment step."""
    target_rate: float = 0.01
    """Tau: share of the critics that the target critics take over at each update."""
    actor_learning_rate: float = 1e-3
    """Adam's step size for the actor."""
    critic_learning_rate: float = 1e-3
    """Adam's step size for the critics."""
    temperature_learning_rate: float = 1e-3
    """Adam's step size for the logarithm of the temperature."""
    initial_temperature: float = 0.02
    """Weight of the entropy at the start."""
    target_entropy: float | None = None
    """Entropy that the temperature is steered to; default: minus the number of action dimensions."""
    max_gradient_norm: float | None = None
    """Clip the gradients of actor and critics to this global norm."""
    reward_scale: float = 0.1
    """Rewards are stored raw and multiplied by this in the update."""
    n_step: int = 1
    """Rewards summed before the bootstrap."""

    def problems(self) -> list[str]:
        """Every value that is out of range, by its name, and what is allowed."""
        counts = {"batch_size": self.batch_size, "n_step": self.n_step}
        counts |= {f"hidden[{i}]": width for i, width in enumerate(self.hidden)}
        found = [f"{name} is {value}; allowed: 1 and more" for name, value in counts.items() if value < 1]
        if not self.hidden:
            found.append("hidden is empty; allowed: one width or more")
        rates = ("actor_learning_rate", "critic_learning_rate", "initial_temperature", "reward_scale")
        above = {name: getattr(self, name) for name in rates}
        if self.max_gradient_norm is not None:
            above["max_gradient_norm"] = self.max_gradient_norm
        found += [
            f"{name} is {value}; allowed: a finite number above 0"
            for name, value in above.items()
            if not (value > 0 and math.isfinite(value))
        ]
        if not 0 <= (rate := self.temperature_learning_rate) < math.inf:
            found.append(f"temperature_learning_rate is {rate}; allowed: 0 and more")
        if self.target_entropy is not None and not math.isfinite(self.target_entropy):
            found.append(f"target_entropy is {self.target_entropy}; allowed: a finite number")
        shares = {"discount": self.discount, "target_rate": self.target_rate}
        return found + [f"{n} is {v}; allowed: above 0, up to 1" for n, v in shares.items() if not 0 < v <= 1]


class SACState(struct.PyTreeNode):
    """Everything that an update changes. Parameters are flat dicts; see engine.networks.

    optimizer: {"actor", "critic", "temperature"} -> optax state. seed: uint32 scalar. updates: int32
    scalar; with the seed it gives the noise of an update, so that there is no generator to save.
    """

    actor: Parameters
    critic: Parameters
    target_critic: Parameters
    log_temperature: jax.Array
    optimizer: dict[str, Any]
    seed: jax.Array
    updates: jax.Array


class Batch(struct.PyTreeNode):
    """Transitions, n-step ones already summed; the leading axes are the caller's.

    observation, next_observation: (..., o) raw. action: (..., a) in [-1, 1]. reward: (...) raw, discounted
    and summed over the steps. bootstrap: (...) gamma to the number of steps, 0 after a termination.
    """

    observation: jax.Array
    action: jax.Array
    reward: jax.Array
    next_observation: jax.Array
    bootstrap: jax.Array


def optimizers(config: SACConfig) -> dict[str, optax.GradientTransformation]:
    """Adam for each of actor, critic and temperature; see SACConfig.max_gradient_norm."""

    def adam(rate: float) -> optax.GradientTransformation:
        if config.max_gradient_norm is None:
            return optax.adam(rate)
        return optax.chain(optax.clip_by_global_norm(config.max_gradient_norm), optax.adam(rate))

    return {
        "actor": adam(config.actor_learning_rate),
        "critic": adam(config.critic_learning_rate),
        "temperature": optax.adam(config.temperature_learning_rate),
    }


def init(config: SACConfig, seed: int, observations: int, actions: int) -> SACState:
    """A state of fresh weights, a function of the seed alone."""
    key = jax.random.key(np.uint32(seed))
    actor = init_actor(jax.random.fold_in(key, 1), observations, actions, config.hidden)
    critic = init_critic(jax.random.fold_in(key, 2), observations, actions, config.hidden)
    state = SACState(
        actor=actor,
        critic=critic,
        target_critic=jax.tree.map(jnp.copy, critic),
        log_temperature=jnp.log(jnp.float32(config.initial_temperature)),
        optimizer={},
        seed=jnp.uint32(seed),
        updates=jnp.int32(0),
    )
    return state.replace(optimizer=init_optimizers(config, state))


def init_optimizers(config: SACConfig, state: SACState) -> dict[str, Any]:
    """Fresh optimizer states for the state's parameters."""
    chosen = optimizers(config)
    return {
        "actor": chosen["actor"].init(state.actor),
        "critic": chosen["critic"].init(state.critic),
        "temperature": chosen["temperature"].init(state.log_temperature),
    }


def map_parameters(
    state: SACState, change: Callable[[str, Mapping[str, Any]], Mapping[str, Any]]
) -> SACState:
    """The state with ``change(network, tree)`` for each tree of parameters' names: weights, targets, moments.

    network: "actor" or "critic".
    """

    def moments(kind: str) -> Any:
        # Adam keeps its moments in dicts of the parameters' names.
        return jax.tree.map(
            lambda node: change(kind, node) if isinstance(node, dict) else node,
            state.optimizer[kind],
            is_leaf=lambda node: isinstance(node, dict),
        )

    return state.replace(
        actor=change("actor", state.actor),
        critic=change("critic", state.critic),
        target_critic=change("critic", state.target_critic),
        optimizer={**state.optimizer, "actor": moments("actor"), "critic": moments("critic")},
    )


def apply_masks(state: SACState, mask: Masks) -> SACState:
    """The state with every pruned weight, its target and both of its moments exactly zero."""
    return map_parameters(state, lambda kind, tree: masks.apply(mask[kind], tree))


def critic_targets(state: SACState, batch: Batch, noise: jax.Array) -> jax.Array:
    """(batch,) r + gamma^n (min Q'(s', a') - alpha log pi(a'|s')); equations 2 and 5, twin minimum."""
    action, log_prob, _ = tanh_gaussian(mlp(state.actor, batch.next_observation), noise)
    value = q_values(state.target_critic, batch.next_observation, action).min(0)
    soft_value = value - jnp.exp(state.log_temperature) * log_prob
    return batch.reward + batch.bootstrap * soft_value


def critic_loss(critic: Parameters, batch: Batch, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean squared error of both critics, summed; the auxiliary is the mean value."""
    values = q_values(critic, batch.observation, batch.action)
    return jnp.square(values - targets).mean(-1).sum(), values.mean()


def actor_loss(
    actor: Parameters, critic: Parameters, temperature: jax.Array, observation: jax.Array, noise: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Mean of alpha log pi(a|s) - min Q(s, a), equation 9; the auxiliary is the mean log probability."""
    action, log_prob, _ = tanh_gaussian(mlp(actor, observation), noise)
    value = q_values(critic, observation, action).min(0)
    return (temperature * log_prob - value).mean(), log_prob.mean()


def temperature_loss(log_temperature: jax.Array, log_prob: jax.Array, target_entropy: float) -> jax.Array:
    """Equation 18: alpha times what the entropy has above its target."""
    return -jnp.exp(log_temperature) * (log_prob + target_entropy)


def noises(state: SACState, count: int, action_shape: tuple[int, ...]) -> jax.Array:
    """(count, 2, *action_shape) standard normals of the next ``count`` updates, for the next action and for
    the actor's: a function of the state's seed and of each update's number.
    """
    # All at once: a loop of its own for each update costs more than the numbers.
    key, numbers = jax.random.key(state.seed), state.updates + jnp.arange(count)
    return jax.vmap(lambda number: jax.random.normal(jax.random.fold_in(key, number), (2, *action_shape)))(
        numbers
    )


def update(
    config: SACConfig,
    state: SACState,
    mask: Masks,
    batch: Batch,
    noise: jax.Array,
    pace: jax.Array | float = 1.0,
) -> tuple[SACState, dict[str, jax.Array]]:
    """One update from a batch whose observations are normalised and whose rewards are scaled.

    noise: (2, batch, a), see ``noises``. pace: what every learning rate is multiplied by.
    """
    chosen = optimizers(config)
    actions = batch.action.shape[-1]
    target_entropy = -float(actions) if config.target_entropy is None else config.target_entropy
    optimizer = dict(state.optimizer)

    def descend(kind: str, parameters: Any, gradient: Any) -> Any:
        # Masked before the optimizer, so that pruned weights count neither in the norm nor in the moments.
        pruned = mask.get(kind, {})
        gradient = masks.apply(pruned, gradient) if pruned else gradient
        change, optimizer[kind] = chosen[kind].update(gradient, optimizer[kind], parameters)
        # Not by a schedule of the optimizer's, whose count a rewind may reset.
        return optax.apply_updates(parameters, jax.tree.map(lambda leaf: pace * leaf, change))

    targets = critic_targets(state, batch, noise[0])
    (loss_q, value), gradient = jax.value_and_grad(critic_loss, has_aux=True)(state.critic, batch, targets)
    critic = descend("critic", state.critic, gradient)

    temperature = jnp.exp(state.log_temperature)
    (loss_pi, log_prob), gradient = jax.value_and_grad(actor_loss, has_aux=True)(
        state.actor, critic, temperature, batch.observation, noise[1]
    )
    actor = descend("actor", state.actor, gradient)
    gradient = jax.grad(temperature_loss)(state.log_temperature, log_prob, target_entropy)
    log_temperature = descend("temperature", state.log_temperature, gradient)

    target_critic = optax.incremental_update(critic, state.target_critic, config.target_rate)
    state = state.replace(
        actor=actor,
        critic=critic,
        target_critic=target_critic,
        log_temperature=log_temperature,
        optimizer=optimizer,
        updates=state.updates + 1,
    )
    metrics = {
        "critic_loss": loss_q,
        "actor_loss": loss_pi,
        "q_mean": value,
        "entropy": -log_prob,
        "temperature": temperature,
    }
    return apply_masks(state, mask), metrics


def prepare(config: SACConfig, batches: Batch, mean: jax.Array, scale: jax.Array) -> Batch:
    """Raw batches as ``update`` wants them: observations normalised, rewards scaled."""
    return batches.replace(
        observation=(batches.observation - mean) * scale,
        next_observation=(batches.next_observation - mean) * scale,
        reward=batches.reward * config.reward_scale,
    )


_COMPILER = {"xla_cpu_experimental_ynn_fusion_type": ""}
"""On CPUs XLA's own matrix products: for networks of this size YNNPACK's take a tenth longer."""


@partial(jax.jit, static_argnames="config", donate_argnames="state", compiler_options=_COMPILER)
def update_many(
    config: SACConfig,
    state: SACState,
    mask: Masks,
    batches: Batch,
    mean: jax.Array,
    scale: jax.Array,
    pace: jax.Array | float = 1.0,
) -> tuple[SACState, Parameters, dict[str, jax.Array]]:
    """One update for each of K raw batches, (K, batch, ...), in one dispatch; ``state`` is given away.

    mean, scale: (o,) the normaliser, (observation - mean) * scale. pace: see ``update``.
    Returns the state, the actor as it acts on raw observations (in buffers of its own, so that it outlives
    the next call), and the metrics' means over the K updates.
    """
    batches = prepare(config, batches, mean, scale)
    noise = noises(state, len(batches.action), batches.action.shape[1:])
    state, metrics = jax.lax.scan(
        lambda s, drawn: update(config, s, mask, *drawn, pace), state, (batches, noise)
    )
    acting = jax.tree.map(jnp.copy, fold_normalizer(state.actor, mean, scale))
    return state, acting, jax.tree.map(jnp.mean, metrics)
