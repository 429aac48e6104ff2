"""Agents in the middle of their lives, what they learn from, and how two of them are compared."""

import dataclasses
import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from support import sac_reference
from support.sac_reference import PREFIXES, layers
from support.specs import box_spec

from engine.algorithms import base
from engine.algorithms.sac import SACConfig
from engine.data.transition import Batch, Sample
from engine.normalizer import Moments

OBSERVATIONS, ACTIONS, BATCH = 3, 2, 7
CONFIG = SACConfig(
    hidden=(5, 4),
    initial_temperature=0.2,
    batch_size=BATCH,
    discount=0.9,
    actor_learning_rate=3e-3,
    critic_learning_rate=5e-3,
    temperature_learning_rate=2e-3,
    target_rate=0.1,
    reward_scale=0.5,
)
CLIPPED = dataclasses.replace(CONFIG, max_gradient_norm=0.05, target_entropy=-0.7)
MEAN, SCALE, FLOOR = np.float32([5, -3, 0.5]), np.float32([0.5, 2, 10]), 0.0075
NORMALIZER = Moments(100, MEAN.astype(np.float64), 100 * (1 / SCALE.astype(np.float64) ** 2 - FLOOR))
"""Gives MEAN and SCALE with the variance floor FLOOR."""

# Float32 sums of a dozen terms and two Adam divisions: relative 1e-6 or so, with a margin.
close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)


def make(config, observations=OBSERVATIONS, actions=ACTIONS):
    """A configuration's algorithm for vectors of observations and a box of actions."""
    box = np.ones(actions)
    return config.make(box_spec(-box, box, (observations,)), FLOOR)


def lived_in_state(algorithm, seed=3):
    """A state as after many updates: no weight, bias or moment is zero, and the targets lag behind.

    Of two critics each is the lower one for about half of random inputs.
    """
    rng, state = np.random.default_rng(seed), algorithm.init(seed)

    def normal(tree, deviation):
        return {k: np.float32(deviation) * rng.standard_normal(v.shape, np.float32) for k, v in tree.items()}

    networks = sorted(state.masks)
    parameters = {name: normal(state.parameters[name], 0.6) for name in networks}
    targets = {}
    for name in state.targets:
        late = normal(parameters[name], 0.2)
        targets[name] = {leaf: value + late[leaf] for leaf, value in parameters[name].items()}
    inputs = rng.normal(size=(100, OBSERVATIONS + ACTIONS))
    for critic in (parameters["critic"], targets["critic"]):
        if "q1/bias_2" in critic:
            values = [layers(critic, inputs, prefix)[0] for prefix in PREFIXES]
            critic["q1/bias_2"] += np.float32(np.median(values[0] - values[1]))
    optimizer = {}
    for name in networks:
        first, second = normal(parameters[name], 1e-2), normal(parameters[name], 3e-2)
        optimizer[name] = state.optimizer[name]._replace(
            count=np.int32(rng.integers(5, 50)), mu=first, nu={leaf: v**2 for leaf, v in second.items()}
        )
    if "temperature" in state.parameters:
        parameters["temperature"] = {"log_temperature": np.float32(math.log(0.2))}
        mu, nu = ({"log_temperature": np.float32(moment)} for moment in (0.01, 0.002))
        optimizer["temperature"] = state.optimizer["temperature"]._replace(count=np.int32(9), mu=mu, nu=nu)
    parameters, targets, optimizer = jax.device_put((parameters, targets, optimizer))
    return state.replace(
        parameters=parameters,
        targets=targets,
        optimizer=optimizer,
        normalizer=NORMALIZER,
        updates=jnp.int32(17),
        env_steps=np.int64(1234),
    )


def random_sample(seed, *lead):
    """A batch as a loss reads it."""
    rng = np.random.default_rng(seed)
    lead = (*lead, BATCH)
    return Sample(
        observation=rng.standard_normal((*lead, OBSERVATIONS), np.float32),
        action=np.tanh(rng.standard_normal((*lead, ACTIONS), np.float32)),
        reward=rng.standard_normal(lead, np.float32),
        next_observation=rng.standard_normal((*lead, OBSERVATIONS), np.float32),
        bootstrap=np.where(rng.random(lead) < 0.3, 0, 0.9).astype(np.float32),
    )


def raw_batches(seed, count, n_step=1):
    """A ``count`` of batches of up to ``n_step`` steps, whose observations NORMALIZER makes of size 1."""
    rng, lead = np.random.default_rng(seed), (count, BATCH)
    steps = rng.integers(1, n_step + 1, lead, np.int32)
    rewards = 2 * rng.standard_normal((*lead, n_step), np.float32)
    observation, following = rng.standard_normal((2, *lead, OBSERVATIONS), np.float32) / SCALE + MEAN
    return Batch(
        observation=observation,
        action=np.tanh(rng.standard_normal((*lead, ACTIONS), np.float32)),
        rewards=np.where(np.arange(n_step) < steps[..., None], rewards, 0),
        steps=steps,
        next_observation=following,
        terminated=rng.random(lead) < 0.3,
    )


def random_masks(state, seed=0, density=0.5):
    """NumPy masks of every prunable network."""
    rng = np.random.default_rng(seed)
    return {
        name: {leaf: rng.random(kept.shape) < density for leaf, kept in mask.items()}
        for name, mask in sorted(state.masks.items())
    }


@jax.jit
def _one_update(algorithm, state, sample, pace):
    noise = jax.tree.map(lambda leaf: leaf[0], base.noises(algorithm, state, 1, sample.action.shape))
    state, metrics = algorithm.update(state, sample, noise, pace)
    return base.masked(state), metrics


def one_update(algorithm, state, sample, pace=1.0):
    """One update on a sample, as ``learn`` makes it: masked after it."""
    host = {"normalizer": state.normalizer, "env_steps": state.env_steps}
    core, metrics = _one_update(algorithm, state.replace(normalizer=None, env_steps=None), sample, pace)
    return core.replace(**host), metrics


def in_float64(tree):
    return jax.tree.map(lambda leaf: np.array(leaf, np.float64), dict(tree))


def to_numpy(state):
    """A state as ``support.sac_reference`` and ``support.td3_reference`` have it."""
    return {
        **{name: in_float64(weights) for name, weights in state.parameters.items()},
        **{f"target_{name}": in_float64(weights) for name, weights in state.targets.items()},
        "masks": jax.tree.map(np.array, dict(state.masks)),
        "memory": {
            name: (int(moments.count), in_float64(moments.mu), in_float64(moments.nu))
            for name, moments in state.optimizer.items()
        },
        "seed": int(state.seed),
        "updates": int(state.updates),
    }


def noise_of(seed, update):
    """(2, batch, actions): for the actions of the targets, and for those of the actor's loss."""
    return np.array(_noise(np.uint32(seed), np.int32(update)), np.float64)


@jax.jit
def _noise(seed, update):
    return jax.random.normal(jax.random.fold_in(jax.random.key(seed), update), (2, BATCH, ACTIONS))


def reference_update(config, state, sample):
    """See ``support.sac_reference.update``; with the noise of the state's seed and number of updates."""
    return sac_reference.update(config, state, as_dict(sample), noise_of(state["seed"], state["updates"]))


def as_dict(struct, *index):
    """The fields of a batch or a sample in float64, or of one of several."""
    return {
        field.name: np.array(getattr(struct, field.name), np.float64)[index]
        for field in dataclasses.fields(struct)
        if getattr(struct, field.name) is not None
    }


def assert_equal_trees(got, expected):
    """The same structure, types and values."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert np.asarray(a).dtype == np.asarray(b).dtype
        assert np.array_equal(np.asarray(a), np.asarray(b))


def assert_close_trees(got, expected, **tolerance):
    """The same structure, and about the same values."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        close(a, b, **tolerance)


def assert_pruned(state, masks):
    """Weights, targets and both moments are zero where the masks are False, bit for bit."""
    for network, mask in masks.items():
        moments = state.optimizer[network]
        trees = [state.parameters[network], moments.mu, moments.nu]
        if network in state.targets:
            trees.append(state.targets[network])
        for tree, (name, kept) in itertools.product(trees, mask.items()):
            pruned = np.asarray(tree[name])[~np.asarray(kept)]
            assert pruned.tobytes() == bytes(pruned.nbytes), (network, name)
