"""Whole updates of soft actor-critic against backpropagation and Adam by hand."""

import dataclasses
import math

import numpy as np
import pytest
from support import sac_reference as reference
from support.agents import (
    ACTIONS,
    BATCH,
    CLIPPED,
    CONFIG,
    NORMALIZER,
    assert_close_trees,
    assert_equal_trees,
    lived_in_state,
    make,
    one_update,
    random_masks,
    random_sample,
    raw_batches,
    reference_update,
    to_numpy,
)
from support.sac_reference import PREFIXES

from engine.algorithms.base import learn, masked

DELAYED = dataclasses.replace(CLIPPED, actor_period=2, actor_critics="first")
NORMALISED = dataclasses.replace(CONFIG, critic_layer_norm=True)


def in_float64(metrics):
    return {name: np.float64(value) for name, value in metrics.items()}


@pytest.mark.parametrize(
    ("config", "pruned", "pace"),
    [
        pytest.param(CONFIG, (), 1.0, id="dense", marks=pytest.mark.slow),
        pytest.param(CONFIG, ("actor", "critic"), 0.3, id="masked, slower"),
        pytest.param(CLIPPED, ("actor",), 1.0, id="actor masked, clipped", marks=pytest.mark.slow),
        pytest.param(CLIPPED, ("actor", "critic"), 1.0, id="masked, clipped"),
        pytest.param(DELAYED, ("actor", "critic"), 0.3, id="masked, delayed, slower"),
        pytest.param(NORMALISED, ("critic",), 1.0, id="critic masked, normalised"),
    ],
)
def test_updates_equal_backpropagation_and_adam_by_hand(config, pruned, pace):
    rates = ("actor_learning_rate", "critic_learning_rate", "temperature_learning_rate")
    slower = dataclasses.replace(config, **{name: pace * getattr(config, name) for name in rates})
    algorithm = make(config)
    state = lived_in_state(algorithm)
    state = masked(state, {name: mask for name, mask in random_masks(state).items() if name in pruned})
    expected = to_numpy(state)
    for step in range(4):
        sample, before = random_sample(10 + step), expected
        state, metrics = one_update(algorithm, state, sample, pace)
        expected, expected_metrics, norms = reference_update(slower, before, sample)
        if config.max_gradient_norm is not None:
            assert min(kept for _, kept in norms.values()) > 2 * config.max_gradient_norm
        got = to_numpy(state)
        assert (got["seed"], got["updates"]) == (3, 18 + step)
        assert_close_trees(got, expected)
        assert_close_trees(in_float64(metrics), expected_metrics)
        # The tolerance would not hide an update that was left out.
        due = (18 + step) % config.actor_period == 0
        for network in ("critic", "target_critic", *(["actor"] if due else [])):
            moved = {k: expected[network][k] - before[network][k] for k in before[network]}
            assert reference.norm(moved) > 5e-4
        # Nor does it add up: the reference follows from what was computed in float32.
        expected = got


def test_actor_and_temperature_move_once_in_a_period_whatever_the_calls():
    algorithm = make(dataclasses.replace(DELAYED, actor_period=3))
    assert [algorithm.period(name) for name in ("actor", "critic")] == [3, 1]
    state, updates = algorithm.init(0).replace(normalizer=NORMALIZER), 0
    for count in (1, 4, 1, 1, 4):
        before = to_numpy(state)
        state, _, metrics = learn(algorithm, state, raw_batches(updates, count))
        after, moves = to_numpy(state), (updates + count) // 3 - updates // 3
        updates += count
        counts = {name: moments[0] for name, moments in after["memory"].items()}
        assert counts == {"actor": updates // 3, "temperature": updates // 3, "critic": updates}
        for network in ("critic", "target_critic"):
            assert (after[network]["q0/bias_0"] != before[network]["q0/bias_0"]).any()
        for network in ("actor", "temperature"):
            same = all(np.array_equal(after[network][k], before[network][k]) for k in before[network])
            assert same == (moves == 0)
        assert (metrics["actor_loss"] == 0) == (metrics["entropy"] == 0) == (moves == 0)


def test_the_actor_may_follow_the_first_critic_alone():
    algorithm, sample = make(DELAYED), random_sample(6)
    state = lived_in_state(algorithm).replace(normalizer=None)
    numpy, noise = to_numpy(state), np.random.default_rng(0).standard_normal((2, BATCH, ACTIONS))
    got = algorithm.gradients(state, sample, np.float32(noise))["actor"]
    temperature = np.exp(numpy["temperature"]["log_temperature"])
    given = (numpy["actor"], numpy["critic"], temperature, np.float64(sample.observation), noise[1])
    assert_close_trees(got, reference.actor(*given, PREFIXES[:1])[2])
    assert not np.allclose(got["bias_0"], reference.actor(*given)[2]["bias_0"], rtol=1e-2)


def test_first_update_of_fresh_weights_equals_the_reference():
    algorithm = make(CONFIG)
    state, sample = algorithm.init(8), random_sample(20)
    expected, metrics, _ = reference_update(CONFIG, to_numpy(state), sample)
    state, got = one_update(algorithm, state, sample)
    assert_close_trees(to_numpy(state), expected)
    assert_close_trees(in_float64(got), metrics)


def test_init_is_a_function_of_the_seed_and_starts_the_targets_at_the_critics():
    first, again, other = (make(CONFIG).init(seed) for seed in (4, 4, 5))
    assert_equal_trees(first, again)
    actor, critic = first.parameters["actor"], first.parameters["critic"]
    assert not np.array_equal(actor["kernel_0"], other.parameters["actor"]["kernel_0"])
    assert_equal_trees(critic, first.targets["critic"])
    assert not np.array_equal(critic["q0/kernel_0"], critic["q1/kernel_0"])
    temperature = first.parameters["temperature"]["log_temperature"]
    assert temperature == pytest.approx(math.log(CONFIG.initial_temperature))
    assert (first.seed, first.updates, first.env_steps, first.normalizer.count) == (4, 0, 0, 0)
    shapes = {name: leaf.shape for name, leaf in actor.items()}
    kernels = {"kernel_0": (3, 5), "kernel_1": (5, 4), "kernel_2": (4, 4)}
    assert shapes == kernels | {"bias_0": (5,), "bias_1": (4,), "bias_2": (4,)}
    assert {name: leaf.shape for name, leaf in first.masks["actor"].items()} == kernels
    assert all(np.all(kept) for mask in first.masks.values() for kept in mask.values())
    for moments in first.optimizer.values():
        assert moments.count == 0
        assert all((leaf == 0).all() for leaf in (*moments.mu.values(), *moments.nu.values()))


def test_init_takes_every_seed_of_32_bits():
    assert int(make(CONFIG).init(2**32 - 1).seed) == 2**32 - 1


def test_a_target_entropy_that_nobody_chose_is_minus_the_number_of_actions():
    assert make(CONFIG, actions=3).target_entropy == -3
    assert make(CLIPPED).target_entropy == np.float32(-0.7)


def test_every_hyperparameter_is_a_leaf_and_only_shapes_are_not():
    one, other = make(CONFIG), make(dataclasses.replace(CONFIG, discount=0.5, reward_scale=3.0))
    assert one.config == other.config
    leaves = {each.name for each in dataclasses.fields(one) if each.metadata.get("pytree_node", True)}
    leaves = {name for name in leaves if getattr(one, name) is not None}
    chosen = {field.name for field in dataclasses.fields(CONFIG)}
    shapes = {"hidden", "batch_size", "n_step", "n_step_delay", "entropy_of_steps", "max_gradient_norm"}
    shapes |= {"actor_period", "actor_critics", "critic_layer_norm", "actor_average"}
    assert leaves | shapes == chosen | {"variance_floor"}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"batch_size": 0}, "batch_size is 0; allowed: 1 and more"),
        ({"actor_period": 0}, "actor_period is 0; allowed: 1 and more"),
        ({"actor_average": 1.0}, "actor_average is 1.0; allowed: 0 up to below 1"),
        ({"hidden": (4, 0)}, "hidden[1] is 0; allowed: 1 and more"),
        ({"n_step_delay": -1}, "n_step_delay is -1; allowed: 0 and more"),
        ({"hidden": ()}, "hidden is empty; allowed: one width or more"),
        ({"discount": 1.5}, "discount is 1.5; allowed: above 0, up to 1"),
        ({"actor_learning_rate": math.inf}, "actor_learning_rate is inf; allowed: a finite number above 0"),
        ({"target_entropy": math.nan}, "target_entropy is nan; allowed: a finite number"),
        ({"max_gradient_norm": 0.0}, "max_gradient_norm is 0.0; allowed: a finite number above 0"),
    ],
)
def test_values_out_of_range_are_named_with_what_is_allowed(change, problem):
    assert CONFIG.problems() == CLIPPED.problems() == []
    assert dataclasses.replace(CONFIG, **change).problems() == [problem]
    both = dataclasses.replace(CONFIG, **{"target_rate": -1.0, "n_step": -2, **change}).problems()
    assert problem in both
    assert len(both) == 3
