"""What algorithms with an actor and twin critics on vectors and boxes share."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from engine.algorithms.base import AgentState, adam
from engine.data.transition import Sample
from engine.networks import Parameters, q_values
from engine.normalizer import Moments
from engine.sparse import flops, masks

PRUNABLE = ("actor", "critic")
"""The networks that masks are for."""

RANDOM_SPREAD = 0.87
"""tanh of a normal with this spread is as near to uniform on [-1, 1] as a squashed normal comes."""


class Structure(NamedTuple):
    """What fixes the shapes of everything, and so what is compiled."""

    hidden: tuple[int, ...]
    observations: int
    actions: int
    batch_size: int
    layer_norm: bool
    """Whether what the critics' ReLUs are of is normalised over the units of a layer."""


@dataclass(frozen=True, kw_only=True)
class ActorCriticConfig:
    """Settings that these algorithms share.

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
    """Tau: share of a network that its target takes over whenever it moves."""
    actor_learning_rate: float = 1e-3
    """Adam's step size for the actor."""
    critic_learning_rate: float = 1e-3
    """Adam's step size for the critics."""
    max_gradient_norm: float | None = None
    """Clip the gradients of actor and critics to this global norm."""
    reward_scale: float = 0.1
    """Rewards are stored raw and multiplied by this in the update."""
    n_step: int = 1
    """Rewards summed before the bootstrap."""
    n_step_delay: int = 0
    """Updates before which a single reward is summed."""
    critic_layer_norm: bool = False
    """Normalise what the critics' ReLUs are of to mean 0 and variance 1 over the units of a layer."""
    actor_average: float = 0.0
    """Share that a running average of the actor keeps of itself whenever the actor moves. It is evaluated,
    exported and kept as the policy; the actor itself collects and is pruned. 0: there is no average."""

    def space_problems(self, spec: Any) -> list[str]:
        """What this algorithm cannot learn with of an environment's spaces, in words."""
        return box_problems(spec)


def box_problems(spec: Any) -> list[str]:
    """Why an algorithm for vectors of observations and a bounded box of actions cannot learn here.

    spec: the environment's; observation_shape and action.discrete, .num_actions, .low, .high are read.
    """
    action, problems = spec.action, []
    if action.discrete:
        problems.append(f"has {action.num_actions} discrete actions; allowed: a bounded box of them")
    elif not (np.isfinite(action.low).all() and np.isfinite(action.high).all()):
        problems.append("has unbounded actions; allowed: a bounded box of them")
    if len(spec.observation_shape) != 1:
        problems.append(f"has observations of shape {spec.observation_shape}; allowed: vectors")
    return problems


def range_problems(
    config: ActorCriticConfig, counts: Sequence[str] = (), above: Sequence[str] = ()
) -> list[str]:
    """Every value that is out of range, by its name, and what is allowed.

    Of the settings that all these algorithms have, and of a configuration's own: counts from 1, and numbers
    above 0.
    """
    numbers = {name: getattr(config, name) for name in ("batch_size", "n_step", *counts)}
    numbers |= {f"hidden[{i}]": width for i, width in enumerate(config.hidden)}
    found = [f"{name} is {value}; allowed: 1 and more" for name, value in numbers.items() if value < 1]
    if config.n_step_delay < 0:
        found.append(f"n_step_delay is {config.n_step_delay}; allowed: 0 and more")
    if not config.hidden:
        found.append("hidden is empty; allowed: one width or more")
    rates = ("actor_learning_rate", "critic_learning_rate")
    found += [
        f"{name} is {value}; allowed: a finite number above 0"
        for name in (*rates, *above, "reward_scale", "max_gradient_norm")
        if (value := getattr(config, name)) is not None and not 0 < value < math.inf
    ]
    if not 0 <= config.actor_average < 1:
        found.append(f"actor_average is {config.actor_average}; allowed: 0 up to below 1")
    shares = {"discount": config.discount, "target_rate": config.target_rate}
    return found + [f"{n} is {v}; allowed: above 0, up to 1" for n, v in shares.items() if not 0 < v <= 1]


def arguments(algorithm: type, numbers: Mapping[str, Any], spec: Any) -> dict[str, Any]:
    """Keyword arguments of an algorithm: its structure in these spaces, and every number that is a leaf.

    numbers: settings by name; those that the class has no leaf for are left out.
    """
    actions = math.prod(spec.action.shape)
    structure = Structure(
        numbers["hidden"],
        spec.observation_shape[0],
        actions,
        numbers["batch_size"],
        numbers["critic_layer_norm"],
    )
    leaves = {
        each.name: numbers[each.name]
        for each in fields(algorithm)
        if each.name in numbers and each.metadata.get("pytree_node", True)
    }
    leaves["actor_average"] = leaves["actor_average"] or None
    return {"config": structure, **jax.tree.map(jnp.float32, leaves)}


def fresh_state(
    seed: int,
    parameters: Mapping[str, Parameters],
    followed: Sequence[str],
    observations: int,
    averaged: Sequence[str] = (),
) -> AgentState:
    """A state before the first update: full masks, and copies of networks.

    Those of ``followed`` ones are targets, those of ``averaged`` ones averages.
    """

    # By way of the host: what is done on the device is compiled first, anew for each shape.
    def copies(names: Sequence[str]) -> dict[str, Parameters]:
        return jax.device_put({name: jax.tree.map(np.array, parameters[name]) for name in names})

    return AgentState(
        parameters=dict(parameters),
        targets=copies(followed),
        optimizer={name: adam(weights) for name, weights in parameters.items()},
        masks=jax.device_put({name: masks.full(parameters[name]) for name in PRUNABLE}),
        normalizer=Moments.empty(observations),
        seed=jax.device_put(np.uint32(seed)),
        updates=jax.device_put(np.int32(0)),
        env_steps=np.int64(0),
        averages=copies(averaged),
    )


def once_in(
    period: int, state: AgentState, move: Callable[[AgentState], tuple[AgentState, dict[str, jax.Array]]]
) -> tuple[AgentState, dict[str, jax.Array]]:
    """``move(state)``, a state and metrics, if this update is a ``period``-th one; else the state as it is.

    Metrics are 0 while nothing moves and ``period`` times themselves when it does, so that their mean over
    updates is their mean.
    """
    if period == 1:
        return move(state)

    def moved(state: AgentState) -> tuple[AgentState, dict[str, jax.Array]]:
        state, metrics = move(state)
        return state, {name: period * value for name, value in metrics.items()}

    _, shapes = jax.eval_shape(move, state)
    rest = {name: jnp.zeros(each.shape, each.dtype) for name, each in shapes.items()}
    due = (state.updates + 1) % period == 0
    return jax.lax.cond(due, moved, lambda state: (state, rest), state)


def update_flops(
    state: AgentState, structure: Structure, actor_passes: int, period: int, critics: Sequence[str]
) -> dict[str, dict[str, int]]:
    """See Algorithm.flops; of an update on average, rounded down.

    actor_passes: forward passes of the actor on a row at every update, for the targets.
    period: updates for one of the actor. critics: those in the actor's loss.

    Let A, C and B be a forward pass of a row through the actor, both critics, and those in the actor's loss;
    a backward pass is two of those. Every update takes C for the targets and C + 2 C for the critic loss.
    Once in a period, the actor loss takes A + 2 A, and B + B for critics whose weights need no gradient.
    """
    rows, normalise = structure.batch_size, structure.layer_norm
    actor = flops.forward(state.masks["actor"], state.parameters["actor"])
    critic = flops.forward(state.masks["critic"], state.parameters["critic"], normalise)
    mask, weights = (masks.networks(each["critic"]) for each in (state.masks, state.parameters))
    judges = [flops.forward(mask[name], weights[name], normalise) for name in critics]
    update = {
        kind: rows
        * (
            period * (actor_passes * actor[kind] + 4 * critic[kind])
            + 3 * actor[kind]
            + 2 * sum(each[kind] for each in judges)
        )
        // period
        for kind in ("dense", "masked")
    }
    return {"forward": actor, "update": update}


def critic_loss(
    critic: Parameters, sample: Sample, targets: jax.Array, normalise: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Mean squared error of both critics, summed; the auxiliary is the mean value. normalise: see ``mlp``."""
    values = q_values(critic, sample.observation, sample.action, normalise=normalise)
    return jnp.square(values - targets).mean(-1).sum(), values.mean()
