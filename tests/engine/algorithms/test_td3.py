"""The twin delayed deterministic policy gradient against algorithm 1 of its paper, written out by hand."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import td3_reference as reference
from support.agents import (
    ACTIONS,
    BATCH,
    NORMALIZER,
    as_dict,
    assert_close_trees,
    assert_equal_trees,
    assert_pruned,
    lived_in_state,
    make,
    one_update,
    random_masks,
    random_sample,
    raw_batches,
    to_numpy,
)
from support.probe_envs import STATES, cut_short, ends_at_once, greedy, learned, ring, two_steps
from support.sac_reference import norm

from engine.algorithms.base import learn, masked
from engine.algorithms.td3 import TD3Config
from engine.networks import q_values

CONFIG = TD3Config(
    hidden=(5, 4),
    batch_size=BATCH,
    discount=0.9,
    actor_learning_rate=3e-3,
    critic_learning_rate=5e-3,
    target_rate=0.1,
    reward_scale=0.5,
    policy_noise=0.4,
)
CLIPPED = dataclasses.replace(CONFIG, max_gradient_norm=0.05, actor_period=3)
NORMALISED = dataclasses.replace(CONFIG, critic_layer_norm=True)
PROBE = dataclasses.replace(
    CONFIG,
    hidden=(16, 16),
    batch_size=64,
    actor_learning_rate=1e-2,
    critic_learning_rate=1e-2,
    reward_scale=1.0,
    policy_noise=0.2,
)


def noise_of(state):
    key = jax.random.fold_in(jax.random.key(np.uint32(state["seed"])), state["updates"])
    return np.array(jax.random.normal(key, (BATCH, ACTIONS)), np.float64)


@pytest.mark.parametrize(
    ("config", "pruned", "pace"),
    [
        pytest.param(CONFIG, (), 1.0, id="dense"),
        pytest.param(CLIPPED, ("actor", "critic"), 0.3, id="masked, clipped, slower"),
        pytest.param(NORMALISED, ("critic",), 1.0, id="critic masked, normalised"),
    ],
)
def test_updates_equal_backpropagation_and_adam_by_hand(config, pruned, pace):
    rates = ("actor_learning_rate", "critic_learning_rate")
    slower = dataclasses.replace(config, **{name: pace * getattr(config, name) for name in rates})
    algorithm = make(config)
    state = lived_in_state(algorithm)
    state = masked(state, {name: mask for name, mask in random_masks(state).items() if name in pruned})
    expected = to_numpy(state)
    for step in range(4):
        sample, before = random_sample(10 + step), expected
        noise = noise_of(before)
        # The noise reaches its limit, and does not always.
        assert 0 < (np.abs(config.policy_noise * noise) > config.noise_clip).mean() < 0.5
        state, metrics = one_update(algorithm, state, sample, pace)
        expected, expected_metrics = reference.update(slower, before, as_dict(sample), noise)
        got = to_numpy(state)
        assert_close_trees(got, expected)
        assert_close_trees({k: np.float64(v) for k, v in metrics.items()}, expected_metrics)
        due = got["updates"] % config.actor_period == 0
        for network in ("critic", *(["actor", "target_actor", "target_critic"] if due else [])):
            moved = {k: expected[network][k] - before[network][k] for k in before[network]}
            assert norm(moved) > 5e-4
        expected = got


def test_targets_are_smoothed_by_clipped_noise_and_take_the_lower_critic():
    # One action that is atanh(0.9) before tanh, and critics that are linear in it: 2 a and 3 - 2 a.
    algorithm = make(dataclasses.replace(CONFIG, hidden=(1,), policy_noise=0.2, noise_clip=0.5), 1, 1)
    state = algorithm.init(0).replace(normalizer=None)
    zero = jax.tree.map(jnp.zeros_like, state.targets)
    zero["actor"]["bias_1"] = jnp.arctanh(jnp.float32([0.9]))
    for prefix, slope, bias in (("q0/", 2.0, 0.0), ("q1/", -2.0, 3.0)):
        # The hidden unit is a + 1, which no action makes negative.
        zero["critic"][f"{prefix}kernel_0"] = jnp.float32([[0], [1]])
        zero["critic"][f"{prefix}bias_0"] = jnp.float32([1])
        zero["critic"][f"{prefix}kernel_1"] = jnp.float32([[slope]])
        zero["critic"][f"{prefix}bias_1"] = jnp.float32([bias - slope])
    sample = random_sample(0)
    sample = sample.replace(
        next_observation=np.zeros((5, 1), np.float32),
        reward=np.float32([1] * 5),
        bootstrap=np.float32([0.5] * 5),
    )
    noise = np.float32([[0], [0.25], [1], [-2], [-9]])
    # Actions 0.9, 0.95, 1 (cut from 1.1), 0.5, 0.4 (the noise cut at -0.5 from -1.8).
    lower = np.array([3 - 1.8, 3 - 1.9, 1.0, 1.0, 0.8])
    got = jax.jit(algorithm.critic_targets)(state.replace(targets=zero), sample, noise)
    np.testing.assert_allclose(got, 1 + 0.5 * lower, rtol=1e-5)


@pytest.mark.parametrize("period", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_actor_and_targets_move_once_in_a_period_whatever_the_calls(period):
    algorithm = make(dataclasses.replace(CLIPPED, actor_period=period))
    assert (algorithm.period("actor"), algorithm.period("critic")) == (period, 1)
    state, updates = algorithm.init(0).replace(normalizer=NORMALIZER), 0
    for count in (1, 4, 1, 1, 4):
        before = to_numpy(state)
        state, _, metrics = learn(algorithm, state, raw_batches(updates, count))
        after, moves = to_numpy(state), (updates + count) // period - updates // period
        updates += count
        assert after["updates"] == after["memory"]["critic"][0] == updates
        assert after["memory"]["actor"][0] == updates // period
        assert (after["critic"]["q0/bias_0"] != before["critic"]["q0/bias_0"]).any()
        for network in ("actor", "target_actor", "target_critic"):
            same = all(np.array_equal(after[network][k], before[network][k]) for k in before[network])
            assert same == (moves == 0)
        assert (metrics["actor_loss"] == 0) == (moves == 0)


@pytest.mark.parametrize("start", [17, 18, 19])
def test_updates_in_one_dispatch_equal_the_same_one_by_one(start):
    algorithm, batches = make(CLIPPED), raw_batches(5, 4)
    begin = lived_in_state(algorithm).replace(updates=jnp.int32(start))
    one, together = jax.tree.map(jnp.copy, begin), learn(algorithm, begin, batches)[0]
    for i in range(4):
        one = learn(algorithm, one, jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], batches))[0]
    assert_close_trees(to_numpy(one), to_numpy(together))


def test_gradients_are_those_of_an_update_and_the_actor_follows_the_first_critic_alone():
    algorithm, sample = make(CONFIG), random_sample(6)
    state = lived_in_state(algorithm).replace(normalizer=None)
    numpy, noise = to_numpy(state), np.random.default_rng(0).standard_normal((BATCH, ACTIONS))
    gradients = jax.jit(algorithm.gradients)
    got = gradients(state, sample, np.float32(noise))
    goal = reference.targets(CONFIG, numpy, as_dict(sample), np.float64(np.float32(noise)))
    assert_close_trees(got["critic"], reference.critic(numpy["critic"], as_dict(sample), goal)[2])
    expected = reference.actor(numpy["actor"], numpy["critic"], as_dict(sample)["observation"])[1]
    assert_close_trees(got["actor"], expected)
    other = {k: v + (10 if k.startswith("q1/") else 0) for k, v in state.parameters["critic"].items()}
    state = state.replace(parameters={**state.parameters, "critic": other})
    assert_equal_trees(gradients(state, sample, np.float32(noise))["actor"], got["actor"])


@pytest.mark.parametrize("density", [0.0, 0.3])
def test_pruned_weights_stay_exactly_zero_in_all_parts(density):
    algorithm = make(CLIPPED)
    state = lived_in_state(algorithm)
    chosen = random_masks(state, seed=1, density=density)
    start, state = to_numpy(state), masked(state, chosen)
    for step in range(3):
        state, _, metrics = learn(algorithm, state, raw_batches(60 + step, 4))
        assert set(state.targets) == {"actor", "critic"}
        assert_pruned(state, chosen)
        assert np.isfinite(list(metrics.values())).all()
    for network in ("actor", "critic"):
        bias = "bias_2" if network == "actor" else "q0/bias_2"
        assert (to_numpy(state)[f"target_{network}"][bias] != start[f"target_{network}"][bias]).all()


def test_init_starts_both_targets_at_their_networks():
    first, other = make(CONFIG).init(4), make(CONFIG).init(5)
    assert_equal_trees(first.targets, first.parameters)
    assert not np.array_equal(first.parameters["actor"]["kernel_0"], other.parameters["actor"]["kernel_0"])
    assert first.parameters["actor"]["kernel_2"].shape == (4, ACTIONS)
    assert (first.seed, first.updates, first.env_steps) == (4, 0, 0)


def test_what_acts_and_what_explores_differ_in_where_the_noise_is():
    algorithm = make(CONFIG)
    state = lived_in_state(algorithm)
    acting = algorithm.acting(state, np.zeros(3, np.float32), np.ones(3, np.float32))
    np.testing.assert_array_equal(acting["spread"], np.float32([0, 0.1]))
    exploring = algorithm.exploring(state)
    np.testing.assert_array_equal(exploring.pop("spread"), np.float32([0.87, 0]))
    assert not any(leaf.any() for leaf in exploring.values())


def test_operations_of_an_update_are_counted_by_hand():
    algorithm = make(CLIPPED)
    state = algorithm.init(0)
    # Multiply-adds count twice, biases once; 3 observations and 2 actions.
    actor, one = 2 * (3 * 5 + 5 * 4 + 4 * 2) + 11, 2 * (5 * 5 + 5 * 4 + 4) + 10
    exact = BATCH * (actor + 8 * one + (3 * actor + 2 * one) / 3)
    found = algorithm.flops(state)
    assert found["update"]["dense"] == found["update"]["masked"] == math.floor(exact)
    mask = {"critic": {k: np.asarray(v) & ("q1" in k) for k, v in state.masks["critic"].items()}}
    # Without its weights the first critic's biases are all that is left of it.
    exact = BATCH * (actor + 4 * (one + 10) + (3 * actor + 2 * 10) / 3)
    assert algorithm.flops(masked(state, mask))["update"]["masked"] == math.floor(exact)


def test_every_hyperparameter_is_a_leaf_but_the_period_and_shapes():
    algorithm = make(CONFIG)
    leaves = {name for name, value in vars(algorithm).items() if isinstance(value, jax.Array)}
    chosen = {field.name for field in dataclasses.fields(CONFIG)}
    static = {"hidden", "batch_size", "n_step", "n_step_delay", "max_gradient_norm", "actor_period"}
    static |= {"critic_layer_norm", "actor_average"}
    assert leaves | static == chosen
    assert algorithm.actor_period == 2


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"actor_period": 0}, "actor_period is 0; allowed: 1 and more"),
        ({"exploration_noise": -0.1}, "exploration_noise is -0.1; allowed: 0 and more"),
        ({"policy_noise": math.nan}, "policy_noise is nan; allowed: 0 and more"),
        ({"noise_clip": math.inf}, "noise_clip is inf; allowed: 0 and more"),
        ({"target_rate": 0.0}, "target_rate is 0.0; allowed: above 0, up to 1"),
    ],
)
def test_values_out_of_range_are_named_with_what_is_allowed(change, problem):
    assert CONFIG.problems() == CLIPPED.problems() == []
    assert dataclasses.replace(CONFIG, **change).problems() == [problem]


# Processes whose values are known by hand.


def values(state, actions=(-0.8, 0.0, 0.8)):
    """Mean of both critics, (states, actions)."""
    pairs = list(itertools.product(np.eye(STATES, dtype=np.float32), np.float32(actions)))
    observation, action = (np.array(each) for each in zip(*pairs, strict=True))
    q = q_values(state.parameters["critic"], observation, action[:, None])
    return np.asarray(q).mean(0).reshape(STATES, -1)


def test_the_actor_goes_where_the_reward_is():
    best = np.array([-0.6, -0.2, 0.2, 0.6])
    _, acting = learned(ends_at_once(lambda state, action: 1 - (action - best[state]) ** 2), PROBE, calls=12)
    np.testing.assert_allclose(greedy(acting), best, atol=0.2)


def test_the_value_of_a_state_is_that_of_the_best_action_in_the_next_with_noise():
    # (1 + a) where a = 1 with noise of deviation 0.2 that is cut at 0: 1 - 0.2 / sqrt(2 pi) on average.
    probe = dataclasses.replace(two_steps(1.0), reward=lambda state, action: (1 + action) * (state == 1))
    state, acting = learned(probe, dataclasses.replace(PROBE, discount=0.5), calls=10)
    assert greedy(acting)[1] > 0.95
    expected = 0.5 * (2 - 0.2 / math.sqrt(2 * math.pi))
    np.testing.assert_allclose(values(state)[0], expected, atol=0.05)


@pytest.mark.parametrize("n_step", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_ends_and_cuts_of_episodes_are_worth_what_they_are(n_step):
    config = dataclasses.replace(PROBE, n_step=n_step, discount=0.5)
    cases = (
        (ring(0.5, "terminated"), [0.5 * (1 - 0.5**left) / (1 - 0.5) for left in (4, 3, 2, 1)]),
        (cut_short(1.0), [0.5, 1.0, 0.0]),
    )
    for probe, expected in cases:
        got = values(learned(probe, config)[0])[: len(expected)]
        np.testing.assert_allclose(got, np.repeat(np.c_[expected], 3, 1), atol=0.05)
