"""A population in one dispatch against its members on their own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.agents import (
    BATCH,
    CLIPPED,
    CONFIG,
    NORMALIZER,
    assert_close_trees,
    assert_equal_trees,
    assert_pruned,
    lived_in_state,
    make,
    random_masks,
    raw_batches,
)
from support.tiny_algorithm import TinyConfig

from engine.algorithms import base
from engine.algorithms.td3 import TD3Config
from engine.normalizer import Moments

COUNT, SEEDS, DENSITIES = 5, (1, 2, 2**32 - 1), (1.0, 0.5, 0.1)
TD3 = TD3Config(hidden=(5, 4), batch_size=BATCH, target_rate=0.1)
TINY = TinyConfig(hidden=(5, 4), batch_size=BATCH)


def members(configs):
    """(algorithms, states, batches, masks): three seeds at three densities, each with its own moments."""
    algorithms = [make(config) for config in configs]
    states, chosen = [], []
    normalizers = (Moments.empty(3), NORMALIZER, NORMALIZER.update(np.full((50, 3), 1 / 3)))
    for i, (algorithm, seed, density) in enumerate(zip(algorithms, SEEDS, DENSITIES, strict=True)):
        state = lived_in_state(algorithm, seed).replace(updates=jnp.int32(17 + i))
        chosen.append({} if density == 1 else random_masks(state, seed, density))
        state = state.replace(normalizer=normalizers[i], env_steps=np.int64(2**40 + i))
        states.append(base.masked(state, chosen[i]))
    return algorithms, states, [raw_batches(seed, COUNT, 3) for seed in (50, 51, 52)], chosen


def assert_population_equals_members(configs, calls=2):
    """Every array of every member, after so many dispatches; returns the single states."""
    algorithms, states, batches, chosen = members(configs)
    together = base.stacked(states)
    inputs = base.stacked(algorithms), base.stacked(batches)
    singles = [(state, None, None) for state in states]
    for _ in range(calls):
        together, acting, metrics = base.learn(inputs[0], together, inputs[1], 0.7)
        singles = [
            base.learn(algorithm, single[0], batch, 0.7)
            for algorithm, single, batch in zip(algorithms, singles, batches, strict=True)
        ]
    for i, (single, mask, state) in enumerate(zip(singles, chosen, states, strict=True)):
        got = jax.tree.map(lambda leaf, i=i: leaf[i], (together, acting, metrics))
        assert_close_trees(got, single, rtol=1e-5)
        assert_pruned(got[0], mask)
        for field in ("masks", "seed", "updates"):
            assert_equal_trees(getattr(got[0], field), getattr(single[0], field))
        # What lies on the host kept all its bits.
        assert got[0].normalizer.mean.dtype == np.float64
        assert_equal_trees(got[0].normalizer, state.normalizer)
        assert (got[0].env_steps, got[0].env_steps.dtype) == (2**40 + i, np.int64)
    return [single[0] for single in singles]


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(CONFIG, id="plain", marks=pytest.mark.slow),
        pytest.param(CLIPPED, id="clipped", marks=pytest.mark.slow),
        pytest.param(TD3, id="td3"),
        pytest.param(TINY, id="tiny"),
    ],
)
def test_three_seeds_at_three_densities_equal_three_single_runs(config):
    states = assert_population_equals_members([config] * 3)
    densities = [np.mean(list(base.densities(state).values())) for state in states]
    assert densities == pytest.approx(DENSITIES, abs=0.15)


@pytest.mark.slow
def test_members_vary_in_their_hyperparameters():
    configs = [
        dataclasses.replace(
            CLIPPED,
            actor_learning_rate=rate,
            critic_learning_rate=2 * rate,
            temperature_learning_rate=3 * rate,
            discount=discount,
            target_entropy=target,
            target_rate=rate,
            reward_scale=scale,
            max_gradient_norm=norm,
        )
        for rate, discount, target, scale, norm in (
            (1e-3, 0.5, -4.0, 0.1, 0.05),
            (1e-2, 0.9, -2.0, 1.0, 1.0),
            (1e-1, 0.99, 0.5, 3.0, 50.0),
        )
    ]
    states = assert_population_equals_members(configs)
    # They do lead to other places: none of them is as if it had another's.
    algorithms, again, batches, _ = members(configs)
    for i in range(3):
        other, _, _ = base.learn(algorithms[i - 1], again[i], batches[i], 0.7)
        for network in ("actor", "critic", "temperature"):
            leaves = (jax.tree.leaves(s.parameters[network]) for s in (other, states[i]))
            assert not any(np.allclose(a, b, rtol=1e-4) for a, b in zip(*leaves, strict=True) if np.any(b))


def test_nothing_is_compiled_again_for_other_members():
    algorithms, states, batches, _ = members([CLIPPED] * 3)
    inputs = base.stacked(algorithms), base.stacked(batches)
    state, _, _ = base.learn(inputs[0], base.stacked(states), inputs[1])
    compiled = base._compiled_population._cache_size()
    other = [dataclasses.replace(CLIPPED, discount=discount) for discount in (0.1, 0.2, 0.3)]
    algorithms, states, batches, _ = members(other)
    for population in (state, base.stacked(states[::-1])):
        for pace in (1.0, np.float32(0.5)):
            population, _, _ = base.learn(base.stacked(algorithms), population, base.stacked(batches), pace)
    assert base._compiled_population._cache_size() == compiled


def test_stacking_leaves_host_arrays_on_the_host_and_members_alone():
    _, states, _, _ = members([CONFIG] * 3)
    together = base.stacked(states)
    assert isinstance(together.normalizer.mean, np.ndarray)
    assert (together.normalizer.mean.shape, together.normalizer.mean.dtype) == ((3, 3), np.float64)
    assert together.env_steps.tolist() == [2**40, 2**40 + 1, 2**40 + 2]
    assert isinstance(together.parameters["actor"]["kernel_0"], jax.Array)
    assert together.seed.tolist() == list(SEEDS)
    for i, state in enumerate(states):
        assert_equal_trees(jax.tree.map(lambda leaf, i=i: leaf[i], together), state)
