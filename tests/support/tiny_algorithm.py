"""A learning algorithm beside the product's own: a deterministic actor and one critic.

Lillicrap et al. 2016, arXiv:1509.02971, with exploration by normal noise before the tanh. It says, with
nothing but what ``engine.algorithms.base`` asks for, what an algorithm has to be.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from engine.algorithms.actor_critic import box_problems, fresh_state
from engine.algorithms.base import AgentState, Network, descend, follow
from engine.data.transition import Batch, Sample, prepare
from engine.networks import Parameters, fold_normalizer, init_mlp, mlp
from engine.sparse import flops


@dataclass(frozen=True, kw_only=True)
class TinyConfig:
    """Hyperparameters of the deterministic actor and its critic."""

    hidden: tuple[int, ...] = (8,)
    """Widths of the hidden layers of actor and critic."""
    batch_size: int = 8
    """Transitions in a batch."""
    n_step: int = 1
    """Rewards summed before the bootstrap."""
    n_step_delay: int = 0
    """Updates before which a single reward is summed."""
    observations_between: bool = False
    """Not read."""
    discount: float = 0.9
    """Gamma, of one environment step."""
    learning_rate: float = 1e-2
    """Adam's step size."""
    target_rate: float = 0.1
    """Tau of both targets."""
    exploration: float = 0.3
    """Standard deviation of the noise that is acted with, before the tanh."""

    @property
    def network(self) -> Network:
        """The policy of a tanh-Gaussian actor, whose deviations do not follow what it sees."""
        return Network("mlp", self.hidden)

    def problems(self) -> list[str]:
        """Every value that is out of range, by its name, and what is allowed."""
        counts = {"batch_size": self.batch_size, "n_step": self.n_step}
        found = [f"{name} is {value}; allowed: 1 and more" for name, value in counts.items() if value < 1]
        if not 0 < self.discount <= 1:
            found.append(f"discount is {self.discount}; allowed: above 0, up to 1")
        return found

    def space_problems(self, spec: Any) -> list[str]:
        """What it cannot learn with of an environment's spaces, in words."""
        return box_problems(spec)

    def make(self, spec: Any, variance_floor: float) -> Tiny:
        """The algorithm for an environment with these spaces."""
        return Tiny(
            config=Structure(
                self.hidden, spec.observation_shape[0], math.prod(spec.action.shape), self.batch_size
            ),
            discount=jnp.float32(self.discount),
            learning_rate=jnp.float32(self.learning_rate),
            target_rate=jnp.float32(self.target_rate),
            exploration=jnp.float32(self.exploration),
            variance_floor=variance_floor,
        )


@dataclass(frozen=True)
class Structure:
    """What fixes the shapes of everything."""

    hidden: tuple[int, ...]
    observations: int
    actions: int
    batch_size: int


class Tiny(struct.PyTreeNode):
    """See ``engine.algorithms.base.Algorithm``."""

    prunable: ClassVar[tuple[str, ...]] = ("actor", "critic")

    config: Structure = struct.field(pytree_node=False)
    discount: jax.Array
    learning_rate: jax.Array
    target_rate: jax.Array
    exploration: jax.Array
    variance_floor: Any

    def init(self, seed: int) -> AgentState:
        """The half of the actor's last layer that the deviations come from never changes."""
        config, key = self.config, jax.random.key(np.uint32(seed))
        widths = (config.observations, *config.hidden, 2 * config.actions)
        actor = init_mlp(jax.random.fold_in(key, 1), widths)
        last = len(config.hidden)
        actor[f"kernel_{last}"] = actor[f"kernel_{last}"].at[:, config.actions :].set(0)
        actor[f"bias_{last}"] = actor[f"bias_{last}"].at[config.actions :].set(jnp.log(self.exploration))
        widths = (config.observations + config.actions, *config.hidden, 1)
        parameters = {"actor": actor, "critic": init_mlp(jax.random.fold_in(key, 2), widths)}
        return fresh_state(seed, parameters, self.prunable, config.observations)

    def period(self, network: str) -> int:
        """Every update steps both networks."""
        return 1

    def noise(self, key: jax.Array, batch_shape: tuple[int, ...]) -> tuple[()]:
        """An update draws nothing."""
        return ()

    def prepare(self, batch: Batch, mean: jax.Array, scale: jax.Array) -> Sample:
        """See Algorithm; rewards are not scaled."""
        return prepare(batch, mean, scale, self.discount, jnp.ones_like(self.discount))

    def update(
        self, state: AgentState, sample: Sample, noise: tuple[()], pace: jax.Array
    ) -> tuple[AgentState, dict[str, jax.Array]]:
        """One step of the critic, one of the actor, one of both targets."""
        goal = bootstrapped(state, sample)
        loss, gradient = jax.value_and_grad(critic_loss)(state.parameters["critic"], sample, goal)
        state = descend(state, "critic", gradient, self.learning_rate, pace)
        value, gradient = jax.value_and_grad(actor_loss)(
            state.parameters["actor"], state.parameters["critic"], sample
        )
        state = descend(state, "actor", gradient, self.learning_rate, pace)
        for network in ("actor", "critic"):
            state = follow(state, network, self.target_rate)
        return state.replace(updates=state.updates + 1), {"critic_loss": loss, "actor_loss": value}

    def gradients(self, state: AgentState, sample: Sample, noise: tuple[()]) -> dict[str, Parameters]:
        """See Algorithm."""
        actor, critic = state.parameters["actor"], state.parameters["critic"]
        return {
            "actor": jax.grad(actor_loss)(actor, critic, sample),
            "critic": jax.grad(critic_loss)(critic, sample, bootstrapped(state, sample)),
        }

    def acting(self, state: AgentState, mean: jax.Array, scale: jax.Array) -> Parameters:
        """See Algorithm."""
        return fold_normalizer(state.parameters["actor"], mean, scale)

    def mean_action(self, acting: Parameters, observation: Any) -> jax.Array:
        """See Algorithm."""
        return greedy(acting, observation)

    def exploring(self, state: AgentState) -> dict[str, np.ndarray]:
        """Actions that are tanh of standard normals."""
        return {name: np.zeros(leaf.shape, np.float32) for name, leaf in state.parameters["actor"].items()}

    def flops(self, state: AgentState) -> dict[str, dict[str, int]]:
        """As for soft actor-critic, with one critic."""
        actor, critic = (flops.forward(state.masks[n], state.parameters[n]) for n in self.prunable)
        update = {k: self.config.batch_size * (4 * actor[k] + 6 * critic[k]) for k in ("dense", "masked")}
        return {"forward": actor, "update": update}


def value(critic: Parameters, observation: jax.Array, action: jax.Array) -> jax.Array:
    """(batch,) of the critic."""
    return mlp(critic, jnp.concatenate([observation, action], -1))[..., 0]


def greedy(actor: Parameters, observation: jax.Array) -> jax.Array:
    """(batch, a) actions without noise."""
    return jnp.tanh(jnp.split(mlp(actor, observation), 2, -1)[0])


def bootstrapped(state: AgentState, sample: Sample) -> jax.Array:
    """(batch,) rewards plus the value of what the target actor does next; equation 5."""
    action = greedy(state.targets["actor"], sample.next_observation)
    following = value(state.targets["critic"], sample.next_observation, action)
    return sample.reward + sample.bootstrap * following


def critic_loss(critic: Parameters, sample: Sample, goal: jax.Array) -> jax.Array:
    """Mean squared error."""
    return jnp.square(value(critic, sample.observation, sample.action) - goal).mean()


def actor_loss(actor: Parameters, critic: Parameters, sample: Sample) -> jax.Array:
    """Minus the mean value of the actions taken; equation 6."""
    return -value(critic, sample.observation, greedy(actor, sample.observation)).mean()
