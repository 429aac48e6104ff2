"""``learn``: K updates in one dispatch, their noise and pace, what acts, and masks that always hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import sac_reference as reference
from support.agents import (
    ACTIONS,
    BATCH,
    CLIPPED,
    CONFIG,
    MEAN,
    NORMALIZER,
    OBSERVATIONS,
    SCALE,
    as_dict,
    assert_close_trees,
    assert_equal_trees,
    assert_pruned,
    close,
    lived_in_state,
    make,
    noise_of,
    one_update,
    random_masks,
    raw_batches,
)
from support.specs import box_spec
from support.tiny_algorithm import TinyConfig

from engine.algorithms import base
from engine.algorithms.sac import SAC
from engine.data.transition import Sample
from engine.networks import mlp

COUNT = 5
ALGORITHM = make(CLIPPED)


def sparse_state(seed=3, density=0.5):
    """(state, its masks)."""
    state = lived_in_state(ALGORITHM, seed)
    chosen = random_masks(state, seed, density)
    return base.masked(state, chosen), chosen


@pytest.mark.parametrize("n_step", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_many_updates_equal_single_ones_on_samples_prepared_by_hand(n_step):
    state, _ = sparse_state()
    batches = raw_batches(30, COUNT, n_step)
    assert (batches.steps == n_step).any()
    single, collected = state, []
    for k in range(COUNT):
        sample = reference.prepared(as_dict(batches, k), MEAN, SCALE, CLIPPED.discount, CLIPPED.reward_scale)
        sample = Sample(**{name: value.astype(np.float32) for name, value in sample.items()})
        single, metrics = one_update(ALGORITHM, single, sample, 0.4)
        collected.append(metrics)
    got, _, metrics = base.learn(ALGORITHM, state, batches, 0.4)
    assert_close_trees(got, single)
    assert (got.updates, got.seed) == (17 + COUNT, 3)
    means = {name: np.mean([float(m[name]) for m in collected]) for name in collected[0]}
    assert_close_trees({k: np.float64(v) for k, v in metrics.items()}, means)


def test_noise_is_a_function_of_the_seed_and_of_each_updates_number():
    state = lived_in_state(ALGORITHM, seed=2**31 + 5)
    got = np.asarray(base.noises(ALGORITHM, state, COUNT, (BATCH, ACTIONS)))
    assert got.shape == (COUNT, 2, BATCH, ACTIONS)
    close(got, [noise_of(2**31 + 5, 17 + k) for k in range(COUNT)])
    later = base.noises(ALGORITHM, state.replace(updates=state.updates + 2), COUNT - 2, (BATCH, ACTIONS))
    assert np.array_equal(later, got[2:])
    assert len(np.unique(got)) > 0.99 * got.size


@pytest.mark.slow
def test_how_updates_are_grouped_does_not_matter():
    batches = raw_batches(31, COUNT)
    whole, acting, _ = base.learn(ALGORITHM, sparse_state()[0], batches)
    state, _ = sparse_state()
    for part in (slice(0, 2), slice(2, COUNT)):
        state, last, _ = base.learn(
            ALGORITHM, state, jax.tree.map(lambda leaf, part=part: leaf[part], batches)
        )
    assert_close_trees((state, last), (whole, acting), rtol=1e-5)


@pytest.mark.slow
def test_a_pace_of_nothing_moves_moments_and_targets_alone():
    state, _ = sparse_state()
    before = base.copied(state)
    state, _, _ = base.learn(ALGORITHM, state, raw_batches(35, COUNT), 0.0)
    assert_equal_trees(state.parameters, before.parameters)
    assert not np.array_equal(state.optimizer["actor"].mu["bias_0"], before.optimizer["actor"].mu["bias_0"])
    assert not np.array_equal(state.targets["critic"]["q0/bias_0"], before.targets["critic"]["q0/bias_0"])


def test_a_state_that_was_saved_and_restored_goes_on_bit_for_bit():
    batches = raw_batches(32, COUNT)
    state, _, _ = base.learn(ALGORITHM, sparse_state()[0], batches)
    saved = jax.tree.map(np.array, state)
    whole = base.learn(ALGORITHM, state, batches)
    host = {"normalizer": saved.normalizer, "env_steps": saved.env_steps}
    restored = jax.tree.map(jnp.array, saved.replace(normalizer=None, env_steps=None)).replace(**host)
    assert_equal_trees(base.learn(ALGORITHM, restored, batches), whole)


def test_acting_parameters_do_on_raw_observations_what_the_actor_does_on_normalised_ones():
    state, chosen = sparse_state()
    batches = raw_batches(33, COUNT)
    state, acting, _ = base.learn(ALGORITHM, state, batches)
    observation = batches.observation[0]
    expected = mlp(state.parameters["actor"], (observation - MEAN) * SCALE)
    np.testing.assert_allclose(mlp(acting, observation), expected, rtol=1e-4, atol=1e-5)
    for name, kept in chosen["actor"].items():
        assert (np.asarray(acting[name])[~kept] == 0).all()
    assert {name: leaf.shape for name, leaf in acting.items()} == {
        name: leaf.shape for name, leaf in state.parameters["actor"].items()
    }


def test_acting_parameters_outlive_the_next_call_and_arguments_are_left_alone():
    state, _ = sparse_state()
    batches = raw_batches(34, COUNT)
    given = jax.tree.map(np.array, (ALGORITHM, batches))
    state, acting, metrics = base.learn(ALGORITHM, state, batches)
    kept = jax.tree.map(np.array, (acting, metrics))
    for _ in range(3):
        state, _, _ = base.learn(ALGORITHM, state, batches)
    assert_equal_trees((acting, metrics), kept)
    assert not np.array_equal(state.parameters["actor"]["bias_1"], acting["bias_1"])
    assert_equal_trees((ALGORITHM, batches), given)


def test_a_copy_outlives_the_call_that_the_state_is_given_to():
    state, _ = sparse_state()
    kept, expected = base.copied(state), jax.tree.map(np.array, state)
    base.learn(ALGORITHM, state, raw_batches(36, COUNT))
    assert_equal_trees(kept, expected)


def test_what_lies_on_the_host_keeps_its_bits():
    moments = NORMALIZER.update(np.full((1, OBSERVATIONS), 1 / 3))
    state = sparse_state()[0].replace(normalizer=moments, env_steps=np.int64(2**40 + 1))
    got, _, _ = base.learn(ALGORITHM, state, raw_batches(37, COUNT))
    assert_equal_trees(got.normalizer, moments)
    assert got.normalizer.mean.dtype == np.float64
    assert (got.env_steps, got.env_steps.dtype) == (2**40 + 1, np.int64)


def test_pruned_weights_stay_exactly_zero_through_many_updates_in_one_call():
    state, chosen = sparse_state(density=0.3)
    for call in range(8):
        state, _, _ = base.learn(ALGORITHM, state, raw_batches(90 + call, COUNT))
        assert_pruned(state, chosen)
    assert state.updates == 17 + 8 * COUNT
    assert_equal_trees(state.masks, chosen)


@pytest.mark.slow
def test_full_masks_that_are_left_out_of_the_update_change_nothing():
    batches = raw_batches(38, COUNT)
    runs = [base.learn(ALGORITHM, lived_in_state(ALGORITHM), batches, 1.0, pruned) for pruned in (None, ())]
    for run in runs:
        assert all(np.all(kept) for mask in run[0].masks.values() for kept in mask.values())
    assert_close_trees(*runs, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_the_masks_of_networks_that_are_not_pruned_stay_as_they_are():
    batches = raw_batches(39, COUNT)
    state = lived_in_state(ALGORITHM)
    chosen = {"actor": random_masks(state)["actor"]}
    whole = base.learn(ALGORITHM, base.masked(state, chosen), batches)
    state = base.masked(lived_in_state(ALGORITHM), chosen)
    before = state.masks["critic"]
    got = base.learn(ALGORITHM, state, batches, 1.0, base.pruned_networks(state))
    assert got[0].masks["critic"] == before  # the very same arrays
    assert_equal_trees(got[0].masks, whole[0].masks)
    assert list(got[0].masks) == list(whole[0].masks)
    assert_close_trees(got, whole, rtol=1e-6, atol=1e-7)
    assert_pruned(got[0], chosen)


class Reviving(SAC):
    """Gives every weight, target and moment something, the pruned ones too."""

    def update(self, state, sample, noise, pace=1.0):
        state, metrics = super().update(state, sample, noise, pace)
        return base.map_weights(
            state, lambda _, tree: {name: leaf + 0.125 for name, leaf in tree.items()}
        ), metrics


@pytest.mark.slow
@pytest.mark.parametrize("pruned", [None, ("actor", "critic")])
def test_an_algorithm_that_revives_weights_is_masked(pruned):
    state, chosen = sparse_state()
    before = jax.tree.map(np.array, state.parameters)
    state, acting, _ = base.learn(Reviving(**vars(ALGORITHM)), state, raw_batches(40, COUNT), 1.0, pruned)
    assert_pruned(state, chosen)
    for name, kept in chosen["actor"].items():
        assert (np.asarray(acting[name])[~kept] == 0).all()
    moved = np.asarray(state.parameters["actor"]["bias_1"]) - before["actor"]["bias_1"]
    assert (moved > 0.5).all()  # five times an eighth: it did revive


@pytest.mark.slow
@pytest.mark.parametrize(
    "config", [CLIPPED, TinyConfig(hidden=(5, 4), batch_size=BATCH)], ids=["sac", "tiny"]
)
def test_only_shapes_are_compiled_for(config):
    algorithm = make(config)
    state = lived_in_state(algorithm)
    base.learn(algorithm, state, raw_batches(41, COUNT))
    compiled = base._compiled._cache_size()
    assert compiled > 0
    hyperparameters = jax.tree.map(lambda leaf: 0.5 * leaf, algorithm)
    fresh, sparse = algorithm.init(7), base.masked(lived_in_state(algorithm), random_masks(state))
    for each, state, pace in ((hyperparameters, fresh, 0.25), (algorithm, sparse, np.float32(0.5))):
        for _ in range(2):
            state, _, _ = base.learn(each, state, raw_batches(42, COUNT), pace)
    assert base._compiled._cache_size() == compiled


def test_spaces_that_nothing_can_be_learned_in_are_said_in_words():
    assert CONFIG.space_problems(box_spec([-1, 0], [1, 2], (3,))) == []
    problems = CONFIG.space_problems(box_spec([-np.inf], [1], (4, 4)))
    assert problems == [
        "has unbounded actions; allowed: a bounded box of them",
        "has observations of shape (4, 4); allowed: vectors",
    ]
