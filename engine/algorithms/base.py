"""What every learning algorithm is to the rest: one state, and a few pure functions on it.

An algorithm is a pytree whose static part fixes shapes and whose leaves are its hyperparameters, so that a
population can vary them under ``jax.vmap`` (as in rejax). Its state is one pytree too, with masks that are
always full, so that its structure does not depend on how sparse a network is.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from engine.data.transition import Batch, Sample
from engine.networks import Parameters
from engine.normalizer import Moments
from engine.sparse import masks as mask_functions
from engine.sparse.topology import Topology

Masks = Mapping[str, Mapping[str, Any]]
"""Prunable network -> kernel name -> bool array of the kernel's shape, True where a weight is kept."""


class AgentState(struct.PyTreeNode):
    """Everything that learning changes.

    targets: the weights of networks that have a slowly following copy. optimizer: network -> Adam's state.
    masks: full masks of the prunable networks. normalizer: moments of the observations, on the host. seed,
    updates: uint32 and int32 scalars that give the noise of an update, so that there is no generator to save.
    env_steps: environment steps that were learned from, an int64 scalar on the host. topology: of the
    networks whose masks evolve. averages: running averages of networks' weights, which are evaluated in
    their place.
    """

    parameters: dict[str, Parameters]
    targets: dict[str, Parameters]
    optimizer: dict[str, Any]
    masks: dict[str, dict[str, jax.Array]]
    normalizer: Moments
    seed: jax.Array
    updates: jax.Array
    env_steps: Any
    topology: dict[str, Topology] = struct.field(default_factory=dict)
    averages: dict[str, Parameters] = struct.field(default_factory=dict)


class Network(NamedTuple):
    """The network that acts, in words."""

    kind: str
    """"mlp" or "noisy-mlp"; the policies of ``engine.policies`` and their twins in NumPy."""
    hidden: tuple[int, ...]
    """Widths of its hidden layers."""
    extras: tuple[str, ...] = ()
    """What it writes beside actions."""


class Config(Protocol):
    """What a user chooses about an algorithm: a frozen dataclass of numbers and widths."""

    @property
    def batch_size(self) -> int:
        """Transitions in each batch that it learns from."""

    @property
    def n_step(self) -> int:
        """Rewards of each of them."""

    @property
    def n_step_delay(self) -> int:
        """Updates before which there is one reward of each."""

    @property
    def observations_between(self) -> bool:
        """Whether batches hold what lies between an observation and the one that is bootstrapped from."""

    @property
    def network(self) -> Network:
        """What acts in workers."""

    def problems(self) -> list[str]:
        """Every value that is out of range, by its name, and what is allowed."""

    def space_problems(self, spec: Any) -> list[str]:
        """What it cannot learn with in an environment's spaces, in words."""

    def make(self, spec: Any, variance_floor: float) -> "Algorithm":
        """The algorithm for an environment with these spaces."""


class Algorithm(Protocol):
    """A learning algorithm for given spaces; made by ``Config.make``."""

    prunable: ClassVar[tuple[str, ...]]
    """The networks that masks are for."""

    @property
    def variance_floor(self) -> Any:
        """Of the normaliser."""

    def init(self, seed: int) -> AgentState:
        """A state of fresh weights and full masks, a function of the seed alone."""

    def period(self, network: str) -> int:
        """Updates between two of this network's own."""

    def noise(self, key: jax.Array, batch_shape: tuple[int, ...]) -> Any:
        """What one update from a batch of actions of this shape draws by chance."""

    def prepare(self, batch: Batch, mean: jax.Array, scale: jax.Array) -> Sample:
        """Raw batches as ``update`` wants them; leading axes are kept."""

    def update(
        self, state: AgentState, sample: Sample, noise: Any, pace: jax.Array
    ) -> tuple[AgentState, dict[str, jax.Array]]:
        """One update and its metrics. pace: what every learning rate is multiplied by."""

    def gradients(self, state: AgentState, sample: Sample, noise: Any) -> dict[str, Parameters]:
        """Gradients of the losses with respect to the weights of every prunable network."""

    def acting(self, state: AgentState, mean: jax.Array, scale: jax.Array) -> Parameters:
        """The weights that act on raw observations."""

    def mean_action(self, acting: Parameters, observation: Any) -> jax.Array:
        """What ``acting`` weights do on raw observations (..., o) without noise: (..., a) in [-1, 1]."""

    def exploring(self, state: AgentState) -> dict[str, np.ndarray]:
        """Weights that ignore what they see and act at random, for a start."""

    def flops(self, state: AgentState) -> dict[str, dict[str, int]]:
        """Theoretical operations, {"dense", "masked", ...} each; see ``engine.sparse.flops``.

        {"forward": of the acting network on a row, "update": of one update}.
        """


def adam(parameters: Mapping[str, Any]) -> optax.ScaleByAdamState:
    """A fresh state of Adam for one network."""
    # ``init`` of optax compiles zeros for each shape.
    first, second = (
        {name: np.zeros(np.shape(leaf), leaf.dtype) for name, leaf in parameters.items()} for _ in range(2)
    )
    return jax.device_put(optax.ScaleByAdamState(count=np.int32(0), mu=first, nu=second))


def descend(
    state: AgentState,
    network: str,
    gradient: Parameters,
    rate: jax.Array,
    pace: jax.Array | float,
    max_norm: jax.Array | None = None,
) -> AgentState:
    """One step of Adam on one network (Kingma and Ba 2015). max_norm: clip the gradient to this norm.

    Gradients are masked first, so that pruned weights count neither in the norm nor in Adam's moments. A
    network's topology sees them as they were given, and where it is due, only the mask changes.
    """
    dense = gradient
    if network in state.masks:
        gradient = mask_functions.apply(state.masks[network], gradient)
    if max_norm is not None:
        gradient, _ = optax.clip_by_global_norm(max_norm).update(gradient, optax.EmptyState())
    change, moments = optax.scale_by_adam().update(gradient, state.optimizer[network])

    def stepped(weights: jax.Array, step: jax.Array) -> jax.Array:
        # The pace is no schedule of the optimizer's, whose count a rewind may reset. The two products round
        # differently, each as the compiler orders it for constant rates.
        return weights - (pace * rate * step if step.size > 1 else pace * (rate * step))

    parameters = jax.tree.map(stepped, state.parameters[network], change)
    if network in state.topology:
        now = state.parameters[network]
        topology, mask, due = state.topology[network].tick(
            network, state.seed, state.masks[network], now, dense
        )
        before, after = (now, state.optimizer[network]), (parameters, moments)
        parameters, moments = jax.tree.map(partial(jnp.where, due), before, after)
        # At once, for what else this update does with the network.
        parameters = mask_functions.apply(mask, parameters)
        state = state.replace(
            topology={**state.topology, network: topology}, masks={**state.masks, network: mask}
        )
    return state.replace(
        parameters={**state.parameters, network: parameters},
        optimizer={**state.optimizer, network: moments},
    )


def follow(state: AgentState, network: str, rate: jax.Array) -> AgentState:
    """The state whose target network took over a share ``rate`` of its network (Polyak averaging)."""
    target = optax.incremental_update(state.parameters[network], state.targets[network], rate)
    return state.replace(targets={**state.targets, network: target})


def average(state: AgentState, network: str, decay: jax.Array) -> AgentState:
    """The state whose average of a network kept a share ``decay`` of itself and took the rest from it."""
    average = optax.incremental_update(state.parameters[network], state.averages[network], 1 - decay)
    return state.replace(averages={**state.averages, network: average})


def evaluated(state: AgentState) -> AgentState:
    """The state with averages in place of the networks that have one; its ``acting`` is what is evaluated."""
    return state.replace(parameters={**state.parameters, **state.averages})


def learn(
    algorithm: Algorithm,
    state: AgentState,
    batches: Batch,
    pace: Any = 1.0,
    pruned: Sequence[str] | None = None,
) -> tuple[AgentState, Parameters, dict[str, jax.Array]]:
    """One update for each of K raw batches, (K, batch, ...), in one dispatch; ``state`` is given away.

    pruned: ``pruned_networks`` of the state, so that no time is spent on the masks of the others; by default
    all that have a mask. Returns the state, the acting weights (in buffers of their own, so that they
    outlive the next call), and the metrics' means over the K updates. Nothing in here waits for the device.
    A population, whose members' leaves are ``stacked`` in algorithm, state and batches, learns at once.
    """
    mean, scale = state.normalizer.scaling(np.asarray(algorithm.variance_floor)[..., None])
    # Host numbers in 64 bits stay outside: the device would round them.
    inside = {name: mask for name, mask in state.masks.items() if pruned is None or name in pruned}
    core = state.replace(normalizer=None, env_steps=None, masks=inside)
    function = _compiled_population if state.updates.ndim else _compiled
    core, acting, metrics = function(algorithm, core, batches, mean, scale, np.float32(pace))
    outside = {"normalizer": state.normalizer, "env_steps": state.env_steps}
    return core.replace(masks={**state.masks, **core.masks}, **outside), acting, metrics


Tree = TypeVar("Tree")


def stacked(members: Sequence[Tree]) -> Tree:
    """A population: the members' leaves along a first axis; members may differ in all but shapes.

    What lies on the host stays there.
    """
    return jax.tree.map(
        lambda *leaves: (jnp if isinstance(leaves[0], jax.Array) else np).stack(leaves), *members
    )


def _updates(
    algorithm: Algorithm, state: AgentState, batches: Batch, mean: jax.Array, scale: jax.Array, pace: Any
) -> tuple[AgentState, Parameters, dict[str, jax.Array]]:
    samples = algorithm.prepare(batches, mean, scale)
    noise = noises(algorithm, state, len(batches.action), batches.action.shape[1:])

    def update(state: AgentState, drawn: tuple[Sample, Any]) -> tuple[AgentState, dict[str, jax.Array]]:
        state, metrics = algorithm.update(state, *drawn, pace)
        # Whatever the algorithm did: nothing that was pruned comes back.
        return masked(state), metrics

    state, metrics = jax.lax.scan(update, state, (samples, noise))
    acting = jax.tree.map(jnp.copy, algorithm.acting(state, mean, scale))
    return state, acting, jax.tree.map(jnp.mean, metrics)


def noises(algorithm: Algorithm, state: AgentState, count: int, batch_shape: tuple[int, ...]) -> Any:
    """What the next ``count`` updates draw, with ``count`` as the first axis of every leaf.

    A function of the state's seed and of each update's number.
    """
    # All at once: a loop of its own for each update costs more than the numbers.
    key, numbers = jax.random.key(state.seed), state.updates + jnp.arange(count)
    return jax.vmap(lambda number: algorithm.noise(jax.random.fold_in(key, number), batch_shape))(numbers)


# On CPUs XLA's own matrix products: for networks of this size YNNPACK's take a tenth longer.
_jit = partial(jax.jit, donate_argnums=1, compiler_options={"xla_cpu_experimental_ynn_fusion_type": ""})
_compiled = _jit(_updates)
_compiled_population = _jit(jax.vmap(_updates, in_axes=(0, 0, 0, 0, 0, None)))


def map_weights(
    state: AgentState, change: Callable[[str, Mapping[str, Any]], Mapping[str, Any]]
) -> AgentState:
    """The state with ``change(network, tree)`` for each tree of the names of a prunable network's weights.

    These are the weights themselves, their targets and averages, and both of Adam's moments.
    """
    parameters: dict[str, Any] = dict(state.parameters)
    targets: dict[str, Any] = dict(state.targets)
    averages: dict[str, Any] = dict(state.averages)
    optimizer = dict(state.optimizer)
    for network in state.masks:
        parameters[network] = change(network, parameters[network])
        for copies in (targets, averages):
            if network in copies:
                copies[network] = change(network, copies[network])
        moments = optimizer[network]
        optimizer[network] = moments._replace(mu=change(network, moments.mu), nu=change(network, moments.nu))
    return state.replace(parameters=parameters, targets=targets, averages=averages, optimizer=optimizer)


def masked(state: AgentState, masks: Masks | None = None) -> AgentState:
    """The state with these masks, or its own, and all that is pruned exactly zero.

    That is weights, targets, averages and moments.

    A network that the masks leave out, or whose mask is empty, is dense. Raises ValueError naming the
    network for a mask that does not match its parameters, and for one of a network that is not prunable.
    """
    if masks is not None:
        if unknown := masks.keys() - state.masks.keys():
            raise ValueError(f"masks of {', '.join(sorted(unknown))}; prunable are {', '.join(state.masks)}")
        full = {}
        for network in state.masks:
            mask = masks.get(network) or mask_functions.full(state.parameters[network])
            try:
                mask_functions.check_matches(mask, state.parameters[network])
            except ValueError as error:
                raise ValueError(f"{network}: {error}") from error
            full[network] = jax.device_put({name: np.array(kept) for name, kept in mask.items()})
        state = state.replace(masks=full)
    return map_weights(state, lambda network, tree: mask_functions.apply(state.masks[network], tree))


def densities(state: AgentState) -> dict[str, float]:
    """Kept over prunable weights of every network that has masks; waits for the masks."""
    return {name: 1 - mask_functions.sparsity(mask) for name, mask in state.masks.items()}


def pruned_networks(state: AgentState) -> tuple[str, ...]:
    """The networks whose masks prune anything, or may come to; waits for the masks."""
    return tuple(n for n, density in densities(state).items() if density < 1 or n in state.topology)


def copied(state: AgentState) -> AgentState:
    """A state that later dispatches leave alone."""
    core = state.replace(normalizer=None, env_steps=None)
    return _copied(core).replace(normalizer=state.normalizer, env_steps=state.env_steps)


@jax.jit
def _copied(core: AgentState) -> AgentState:
    # Together, as each leaf by itself would be compiled for, anew for each shape.
    return jax.tree.map(jnp.copy, core)
