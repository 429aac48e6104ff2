"""The running average of an actor against the sum that it is, and where it counts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.agents import (
    BATCH,
    CONFIG,
    MEAN,
    NORMALIZER,
    SCALE,
    assert_close_trees,
    assert_equal_trees,
    assert_pruned,
    in_float64,
    make,
    random_masks,
    raw_batches,
)

from engine.algorithms.base import average, evaluated, learn, masked, stacked
from engine.algorithms.td3 import TD3Config
from engine.networks import mlp

AVERAGED = dataclasses.replace(CONFIG, actor_average=0.75, actor_period=2, hidden=(5,))
TD3 = TD3Config(hidden=(5,), batch_size=BATCH, actor_average=0.75)


def begin(algorithm, seed=0):
    return algorithm.init(seed).replace(normalizer=NORMALIZER)


@pytest.mark.parametrize("config", [AVERAGED, TD3], ids=["stochastic", "deterministic"])
def test_it_is_the_sum_of_all_the_actor_was_weighted_by_age(config):
    algorithm = make(config)
    state = masked(begin(algorithm), chosen := random_masks(begin(algorithm)))
    assert_equal_trees(state.averages["actor"], state.parameters["actor"])
    actors = [in_float64(state.parameters["actor"])]
    for number in range(6):
        state, acting, _ = learn(algorithm, state, raw_batches(number, 1))
        if number % 2:
            actors.append(in_float64(state.parameters["actor"]))
        assert_pruned(state, chosen)
        for name, kept in chosen["actor"].items():
            assert not np.asarray(state.averages["actor"][name])[~kept].any()
    shares = [0.75**3, *(0.25 * 0.75**age for age in (2, 1, 0))]
    expected = {name: sum(s * a[name] for s, a in zip(shares, actors, strict=True)) for name in actors[0]}
    assert_close_trees(in_float64(state.averages["actor"]), expected)
    # What collects is the actor itself, what is evaluated its average.
    observation = raw_batches(9, 1).observation[0]
    tried, tested = acting, algorithm.acting(evaluated(state), MEAN, SCALE)
    for weights, actor in ((tried, actors[-1]), (tested, expected)):
        head = mlp(jax.tree.map(jnp.float32, actor), (observation - MEAN) * SCALE)
        np.testing.assert_allclose(mlp(weights, observation), head, rtol=1e-3, atol=1e-4)
    assert not np.allclose(tried["bias_0"], tested["bias_0"], atol=1e-4)


@pytest.mark.parametrize(("config", "has"), [(CONFIG, ()), (AVERAGED, ("actor",))])
def test_there_is_none_unless_it_is_asked_for(config, has):
    state = begin(make(config))
    assert tuple(state.averages) == has
    if not has:
        assert_equal_trees(evaluated(state), state)


def test_it_changes_nothing_of_what_is_learned():
    plain = make(dataclasses.replace(AVERAGED, actor_average=0.0))
    averaged, batches = make(AVERAGED), raw_batches(3, 4)
    one = learn(plain, begin(plain), batches)[0]
    other = learn(averaged, begin(averaged), batches)[0]
    assert_close_trees(other.replace(averages={}), one)


def test_members_of_a_population_have_their_own_decay():
    members = [make(dataclasses.replace(AVERAGED, actor_average=decay)) for decay in (0.5, 0.9)]
    states, batches = [begin(each, seed) for seed, each in enumerate(members)], raw_batches(4, 2)
    together = learn(stacked(members), stacked(states), stacked([batches] * 2))[0]
    for number, member in enumerate(members):
        alone = learn(member, begin(member, number), batches)[0]
        got = {name: leaf[number] for name, leaf in together.averages["actor"].items()}
        assert_close_trees(got, alone.averages["actor"])


def test_one_step_by_hand():
    state = begin(make(AVERAGED))
    given = {name: jnp.full_like(leaf, 4) for name, leaf in state.parameters["actor"].items()}
    before = {name: jnp.full_like(leaf, 8) for name, leaf in given.items()}
    state = state.replace(parameters={**state.parameters, "actor": given}, averages={"actor": before})
    after = average(state, "actor", jnp.float32(0.75))
    assert {float(leaf.flat[0]) for leaf in map(np.asarray, after.averages["actor"].values())} == {7.0}
    assert_equal_trees(after.parameters, state.parameters)
