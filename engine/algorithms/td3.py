"""Twin delayed deterministic policy gradient, as pure functions on one state.

Fujimoto, van Hoof and Meger 2018, arXiv:1802.09477: twin critics of which the lower one counts, noise on the
actions of the targets, and an actor and targets that move once in several updates of the critics.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

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
from engine.networks import CRITICS, Parameters, fold_normalizer, init_critic, init_mlp, mlp, q_values


@dataclass(frozen=True, kw_only=True)
class TD3Config(ActorCriticConfig):
    """Hyperparameters of the twin delayed deterministic policy gradient.

    The noises and the period are the published ones; the rest are those of soft actor-critic here, which suit
    many environments in parallel and few updates for each step.
    """

    exploration_noise: float = 0.1
    """Standard deviation of what is added to the actions in [-1, 1] that are tried."""
    policy_noise: float = 0.2
    """Standard deviation of what is added to the target actor's actions."""
    noise_clip: float = 0.5
    """That noise reaches no further than this."""
    actor_period: int = 2
    """Updates of the critics for one of the actor and the targets."""

    @property
    def observations_between(self) -> bool:
        """Whether the target needs what lies between."""
        return False

    @property
    def network(self) -> Network:
        """A deterministic actor whose actions are tried with noise."""
        return Network("noisy-mlp", self.hidden)

    def problems(self) -> list[str]:
        """Every value that is out of range, by its name, and what is allowed."""
        noises = ("exploration_noise", "policy_noise", "noise_clip")
        return range_problems(self, counts=("actor_period",)) + [
            f"{name} is {value}; allowed: 0 and more"
            for name in noises
            if not 0 <= (value := getattr(self, name)) < math.inf
        ]

    def make(self, spec: Any, variance_floor: float) -> "TD3":
        """The algorithm for an environment with these spaces."""
        given = arguments(TD3, vars(self), spec)
        return TD3(actor_period=self.actor_period, variance_floor=variance_floor, **given)


class TD3(struct.PyTreeNode):
    """See ``engine.algorithms.base.Algorithm``. Its leaves are float32 scalars."""

    prunable: ClassVar[tuple[str, ...]] = PRUNABLE

    config: Structure = struct.field(pytree_node=False)
    actor_period: int = struct.field(pytree_node=False)
    discount: jax.Array
    target_rate: jax.Array
    actor_learning_rate: jax.Array
    critic_learning_rate: jax.Array
    max_gradient_norm: jax.Array | None
    actor_average: jax.Array | None
    reward_scale: jax.Array
    exploration_noise: jax.Array
    policy_noise: jax.Array
    noise_clip: jax.Array
    variance_floor: Any

    def init(self, seed: int) -> AgentState:
        """See Algorithm."""
        key, (hidden, observations, actions, *_) = jax.random.key(np.uint32(seed)), self.config
        actor = init_mlp(jax.random.fold_in(key, 1), (observations, *hidden, actions))
        critic = init_critic(jax.random.fold_in(key, 2), (observations + actions, *hidden, 1))
        averaged = () if self.actor_average is None else ("actor",)
        return fresh_state(seed, {"actor": actor, "critic": critic}, PRUNABLE, observations, averaged)

    def period(self, network: str) -> int:
        """See Algorithm."""
        return self.actor_period if network == "actor" else 1

    def noise(self, key: jax.Array, batch_shape: tuple[int, ...]) -> jax.Array:
        """Standard normals of this shape, for the target actor's actions."""
        return jax.random.normal(key, batch_shape)

    def prepare(self, batch: Batch, mean: jax.Array, scale: jax.Array) -> Sample:
        """See Algorithm."""
        return prepare(batch, mean, scale, self.discount, self.reward_scale)

    def update(
        self, state: AgentState, sample: Sample, noise: jax.Array, pace: jax.Array | float = 1.0
    ) -> tuple[AgentState, dict[str, jax.Array]]:
        """One update of the critics, and every ``actor_period``-th one of actor and targets (algorithm 1).

        noise is (batch, a). The metric actor_loss is as ``once_in`` says.
        """
        targets = self.critic_targets(state, sample, noise)
        (loss, value), gradient = jax.value_and_grad(critic_loss, has_aux=True)(
            state.parameters["critic"], sample, targets, self.config.layer_norm
        )
        clip = self.max_gradient_norm
        state = descend(state, "critic", gradient, self.critic_learning_rate, pace, clip)

        def move(state: AgentState) -> tuple[AgentState, dict[str, jax.Array]]:
            actor, critic = state.parameters["actor"], state.parameters["critic"]
            loss, gradient = jax.value_and_grad(actor_loss)(
                actor, critic, sample.observation, self.config.layer_norm
            )
            state = descend(state, "actor", gradient, self.actor_learning_rate, pace, clip)
            if self.actor_average is not None:
                state = average(state, "actor", self.actor_average)
            for network in PRUNABLE:
                state = follow(state, network, self.target_rate)
            return state, {"actor_loss": loss}

        state, metrics = once_in(self.actor_period, state, move)
        metrics |= {"critic_loss": loss, "q_mean": value}
        return state.replace(updates=state.updates + 1), metrics

    def critic_targets(self, state: AgentState, sample: Sample, noise: jax.Array) -> jax.Array:
        """(batch,) r + gamma^n min Q'(s', a'), a' the target actor's with clipped noise; equation 14."""
        action = jnp.tanh(mlp(state.targets["actor"], sample.next_observation))
        smoothing = jnp.clip(self.policy_noise * noise, -self.noise_clip, self.noise_clip)
        action = jnp.clip(action + smoothing, -1, 1)
        normalise = self.config.layer_norm
        value = q_values(state.targets["critic"], sample.next_observation, action, normalise=normalise).min(0)
        return sample.reward + sample.bootstrap * value

    def gradients(self, state: AgentState, sample: Sample, noise: jax.Array) -> dict[str, Parameters]:
        """See Algorithm; noise as in ``update``."""
        actor, critic = state.parameters["actor"], state.parameters["critic"]
        targets, normalise = self.critic_targets(state, sample, noise), self.config.layer_norm
        slope, _ = jax.grad(critic_loss, has_aux=True)(critic, sample, targets, normalise)
        return {"actor": jax.grad(actor_loss)(actor, critic, sample.observation, normalise), "critic": slope}

    def acting(self, state: AgentState, mean: jax.Array, scale: jax.Array) -> Parameters:
        """See Algorithm; "spread" is that of the noise before the tanh and after it."""
        spread = jnp.stack([jnp.zeros_like(self.exploration_noise), self.exploration_noise])
        return {**fold_normalizer(state.parameters["actor"], mean, scale), "spread": spread}

    def mean_action(self, acting: Parameters, observation: Any) -> jax.Array:
        """See Algorithm."""
        return jnp.tanh(mlp(acting, observation))

    def exploring(self, state: AgentState) -> dict[str, np.ndarray]:
        """Nearly uniform actions."""
        weights = {k: np.zeros(leaf.shape, np.float32) for k, leaf in state.parameters["actor"].items()}
        return {**weights, "spread": np.array([RANDOM_SPREAD, 0], np.float32)}

    def flops(self, state: AgentState) -> dict[str, dict[str, int]]:
        """See Algorithm and ``update_flops``."""
        return update_flops(state, self.config, 1, self.actor_period, CRITICS[:1])


def actor_loss(
    actor: Parameters, critic: Parameters, observation: jax.Array, normalise: bool = False
) -> jax.Array:
    """Minus the mean value of the actor's actions by the first critic; section 4.2 and algorithm 1."""
    action = jnp.tanh(mlp(actor, observation))
    return -mlp(critic, jnp.concatenate([observation, action], -1), CRITICS[0], normalise).mean()
