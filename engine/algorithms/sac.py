"""Soft actor-critic with masks, as pure functions on one state (Haarnoja et al. 2018, arXiv:1812.05905).

Twin critics (Fujimoto et al. 2018), a tanh-Gaussian actor and a learned temperature.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from engine.algorithms.actor_critic import (
    PRUNABLE,
    RANDOM_SPREAD,
    ActorCriticConfig,
    Structure,
    arguments,
    critic_loss,
    fresh_state,
    once_in,
    range_problems,
    update_flops,
)
from engine.algorithms.base import AgentState, Network, average, descend, follow
from engine.data.transition import Batch, Sample, prepare
from engine.networks import (
    CRITICS,
    Parameters,
    fold_normalizer,
    init_critic,
    init_mlp,
    mlp,
    q_values,
    tanh_gaussian,
)


@dataclass(frozen=True, kw_only=True)
class SACConfig(ActorCriticConfig):
    """Hyperparameters of soft actor-critic."""

    temperature_learning_rate: float = 1e-3
    """Adam's step size for the logarithm of the temperature."""
    initial_temperature: float = 0.02
    """Weight of the entropy at the start."""
    target_entropy: float | None = None
    """Entropy that the temperature is steered to; default: minus the number of action dimensions."""
    entropy_of_steps: bool = False
    """Also count the entropy at every observation between, not only where the sum is bootstrapped from."""
    actor_period: int = 1
    """Updates of the critics for one of the actor and the temperature."""
    actor_critics: Literal["both", "first"] = "both"
    """Whose values the actor raises: the lower one of both critics, or the first critic's."""

    @property
    def observations_between(self) -> bool:
        """Whether the target has entropies at observations between."""
        return self.entropy_of_steps and self.n_step > 1

    @property
    def network(self) -> Network:
        """A tanh-Gaussian actor."""
        return Network("mlp", self.hidden)

    def problems(self) -> list[str]:
        """Every value that is out of range, by its name, and what is allowed."""
        found = range_problems(self, counts=("actor_period",), above=("initial_temperature",))
        if not 0 <= (rate := self.temperature_learning_rate) < math.inf:
            found.append(f"temperature_learning_rate is {rate}; allowed: 0 and more")
        if self.target_entropy is not None and not math.isfinite(self.target_entropy):
            found.append(f"target_entropy is {self.target_entropy}; allowed: a finite number")
        return found

    def make(self, spec: Any, variance_floor: float) -> "SAC":
        """The algorithm for an environment with these spaces."""
        entropy = -float(math.prod(spec.action.shape)) if self.target_entropy is None else self.target_entropy
        numbers = {**vars(self), "target_entropy": entropy}
        between = self.n_step - 1 if self.observations_between else 0
        return SAC(
            between=between,
            actor_period=self.actor_period,
            judges=CRITICS if self.actor_critics == "both" else CRITICS[:1],
            variance_floor=variance_floor,
            **arguments(SAC, numbers, spec),
        )


class SAC(struct.PyTreeNode):
    """Soft actor-critic; see ``engine.algorithms.base.Algorithm``. Its leaves are float32 scalars."""

    prunable: ClassVar[tuple[str, ...]] = PRUNABLE

    config: Structure = struct.field(pytree_node=False)
    between: int = struct.field(pytree_node=False)
    """Observations between in each transition whose entropies count."""
    actor_period: int = struct.field(pytree_node=False)
    judges: tuple[str, ...] = struct.field(pytree_node=False)
    """Prefixes of the critics in the actor's loss."""
    discount: jax.Array
    target_rate: jax.Array
    actor_learning_rate: jax.Array
    critic_learning_rate: jax.Array
    temperature_learning_rate: jax.Array
    initial_temperature: jax.Array
    target_entropy: jax.Array
    max_gradient_norm: jax.Array | None
    actor_average: jax.Array | None
    reward_scale: jax.Array
    variance_floor: Any

    def init(self, seed: int) -> AgentState:
        """See Algorithm."""
        key, (hidden, observations, actions, *_) = jax.random.key(np.uint32(seed)), self.config
        actor = init_mlp(jax.random.fold_in(key, 1), (observations, *hidden, 2 * actions))
        critic = init_critic(jax.random.fold_in(key, 2), (observations + actions, *hidden, 1))
        temperature = {"log_temperature": jnp.log(self.initial_temperature)}
        parameters = {"actor": actor, "critic": critic, "temperature": temperature}
        averaged = () if self.actor_average is None else ("actor",)
        return fresh_state(seed, parameters, ("critic",), observations, averaged)

    def period(self, network: str) -> int:
        """See Algorithm."""
        return 1 if network == "critic" else self.actor_period

    def noise(self, key: jax.Array, batch_shape: tuple[int, ...]) -> jax.Array:
        """(2 + n, *batch_shape) standard normals, for the next action, the actor's, and n between."""
        return jax.random.normal(key, (2 + self.between, *batch_shape))

    def prepare(self, batch: Batch, mean: jax.Array, scale: jax.Array) -> Sample:
        """See Algorithm."""
        return prepare(batch, mean, scale, self.discount, self.reward_scale)

    def update(
        self, state: AgentState, sample: Sample, noise: jax.Array, pace: jax.Array | float = 1.0
    ) -> tuple[AgentState, dict[str, jax.Array]]:
        """One update; noise is (2, batch, a), with more where entropies between count.

        Actor and temperature move at every ``actor_period``-th one, and with them the metrics actor_loss and
        entropy, as ``once_in`` says.
        """
        targets = self._targets(state, sample, noise)
        (loss_q, value), gradient = jax.value_and_grad(critic_loss, has_aux=True)(
            state.parameters["critic"], sample, targets, self.config.layer_norm
        )
        clip = self.max_gradient_norm
        state = descend(state, "critic", gradient, self.critic_learning_rate, pace, clip)

        log_temperature = state.parameters["temperature"]["log_temperature"]
        temperature = jnp.exp(log_temperature)

        def move(state: AgentState) -> tuple[AgentState, dict[str, jax.Array]]:
            actor, critic = state.parameters["actor"], state.parameters["critic"]
            (loss, log_prob), gradient = jax.value_and_grad(actor_loss, has_aux=True)(
                actor,
                critic,
                temperature,
                sample.observation,
                noise[1],
                self.judges,
                self.config.layer_norm,
            )
            state = descend(state, "actor", gradient, self.actor_learning_rate, pace, clip)
            if self.actor_average is not None:
                state = average(state, "actor", self.actor_average)
            slope = jax.grad(temperature_loss)(log_temperature, log_prob, self.target_entropy)
            gradient = {"log_temperature": slope}
            state = descend(state, "temperature", gradient, self.temperature_learning_rate, pace)
            return state, {"actor_loss": loss, "entropy": -log_prob}

        state, metrics = once_in(self.actor_period, state, move)
        state = follow(state, "critic", self.target_rate)
        metrics |= {"critic_loss": loss_q, "q_mean": value, "temperature": temperature}
        return state.replace(updates=state.updates + 1), metrics

    def _targets(self, state: AgentState, sample: Sample, noise: jax.Array) -> jax.Array:
        targets = critic_targets(state, sample, noise[0], self.config.layer_norm)
        return targets + entropies_between(state, sample, noise[2:]) if self.between else targets

    def gradients(self, state: AgentState, sample: Sample, noise: jax.Array) -> dict[str, Parameters]:
        """See Algorithm; noise as in ``update``."""
        actor, critic = state.parameters["actor"], state.parameters["critic"]
        targets = self._targets(state, sample, noise)
        temperature = jnp.exp(state.parameters["temperature"]["log_temperature"])
        judged = self.judges, self.config.layer_norm
        slope, _ = jax.grad(actor_loss, has_aux=True)(
            actor, critic, temperature, sample.observation, noise[1], *judged
        )
        loss = jax.grad(critic_loss, has_aux=True)
        return {"actor": slope, "critic": loss(critic, sample, targets, self.config.layer_norm)[0]}

    def acting(self, state: AgentState, mean: jax.Array, scale: jax.Array) -> Parameters:
        """See Algorithm."""
        return fold_normalizer(state.parameters["actor"], mean, scale)

    def mean_action(self, acting: Parameters, observation: Any) -> jax.Array:
        """See Algorithm."""
        return jnp.tanh(mlp(acting, observation)[..., : self.config.actions])

    def exploring(self, state: AgentState) -> dict[str, np.ndarray]:
        """Nearly uniform actions."""
        weights = {k: np.zeros(leaf.shape, np.float32) for k, leaf in state.parameters["actor"].items()}
        weights[f"bias_{len(self.config.hidden)}"][self.config.actions :] = np.log(RANDOM_SPREAD)
        return weights

    def flops(self, state: AgentState) -> dict[str, dict[str, int]]:
        """See Algorithm and ``update_flops``; the actor also reads observations whose entropies count."""
        return update_flops(state, self.config, 1 + self.between, self.actor_period, self.judges)


def critic_targets(state: AgentState, sample: Sample, noise: jax.Array, normalise: bool = False) -> jax.Array:
    """(batch,) r + gamma^n (min Q'(s', a') - alpha log pi(a'|s')); equations 2 and 5, twin minimum."""
    head = mlp(state.parameters["actor"], sample.next_observation)
    action, log_prob, _ = tanh_gaussian(head, noise)
    value = q_values(state.targets["critic"], sample.next_observation, action, normalise=normalise).min(0)
    soft_value = value - jnp.exp(state.parameters["temperature"]["log_temperature"]) * log_prob
    return sample.reward + sample.bootstrap * soft_value


def entropies_between(state: AgentState, sample: Sample, noise: jax.Array) -> jax.Array:
    """(batch,) discounted -alpha log pi(a|s) at the observations between; noise (n - 1, batch, a).

    With them an n-step sum holds the entropy of each step on the way (Tan et al. 2023, multi-step targets).
    """
    head = mlp(state.parameters["actor"], sample.between)
    _, log_prob, _ = tanh_gaussian(head, jnp.moveaxis(noise, 0, -2))
    temperature = jnp.exp(state.parameters["temperature"]["log_temperature"])
    return -temperature * (sample.between_discount * log_prob).sum(-1)


def actor_loss(
    actor: Parameters,
    critic: Parameters,
    temperature: jax.Array,
    observation: jax.Array,
    noise: jax.Array,
    critics: Sequence[str] = CRITICS,
    normalise: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Mean of alpha log pi(a|s) - min Q(s, a), equation 9; the auxiliary is the mean log probability.

    critics: the prefixes of those that the minimum is taken over. normalise: see ``mlp``.
    """
    action, log_prob, _ = tanh_gaussian(mlp(actor, observation), noise)
    value = q_values(critic, observation, action, critics, normalise).min(0)
    return (temperature * log_prob - value).mean(), log_prob.mean()


def temperature_loss(log_temperature: jax.Array, log_prob: jax.Array, target_entropy: float) -> jax.Array:
    """Equation 18: alpha times what the entropy has above its target."""
    return -jnp.exp(log_temperature) * (log_prob + target_entropy)
