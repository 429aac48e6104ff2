"""Learning on processes whose values are known by hand, through the replay and the update of training."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from support.probe_envs import STATES, cut_short, ends_at_once, greedy, learned, ring, two_steps
from support.specs import box_spec

from engine.algorithms.sac import SACConfig
from engine.networks import mlp, q_values, tanh_gaussian

# Without entropy: the temperature is next to nothing and stays there.
CONFIG = SACConfig(
    hidden=(16, 16),
    batch_size=64,
    target_rate=0.1,
    actor_learning_rate=1e-2,
    critic_learning_rate=1e-2,
    temperature_learning_rate=0.0,
    initial_temperature=1e-8,
    reward_scale=1.0,
)
# Values are of size 1; what remains is the noise of Adam at its full step size.
TOLERANCE = 0.05


def learn(probe, discount=0.5, n_step=1, **kwargs):
    return learned(probe, dataclasses.replace(CONFIG, discount=discount, n_step=n_step), **kwargs)


def values(state, actions=(-0.8, 0.0, 0.8)):
    """Mean of both critics, (states, actions)."""
    observation = np.repeat(np.eye(STATES, dtype=np.float32), len(actions), 0)
    action = np.tile(np.float32(actions), STATES)[:, None]
    return np.asarray(q_values(state.parameters["critic"], observation, action)).mean(0).reshape(STATES, -1)


def assert_values(state, expected):
    """Q of the states from the first on, whatever the action."""
    got = values(state)[: len(expected)]
    np.testing.assert_allclose(got, np.broadcast_to(np.reshape(expected, (-1, 1)), got.shape), atol=TOLERANCE)


@pytest.mark.slow
def test_a_constant_reward_is_the_value_of_a_single_step():
    state, _ = learn(ends_at_once(lambda state, action: np.full(state.shape, 0.7)))
    assert_values(state, [0.7] * 4)


@pytest.mark.slow
def test_a_reward_that_depends_on_the_observation_is_its_value():
    paid = np.array([-1, 0.5, 0, 1])
    state, _ = learn(ends_at_once(lambda state, action: paid[state]))
    assert_values(state, paid)


@pytest.mark.parametrize("n_step", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_reward_a_step_later_is_discounted_once(n_step):
    state, _ = learn(two_steps(1.0), discount=0.8, n_step=n_step)
    assert_values(state, [0.8, 1.0])


@pytest.mark.slow
def test_the_actor_goes_where_the_reward_is():
    best = np.array([-0.6, -0.2, 0.2, 0.6])
    state, acting = learn(ends_at_once(lambda state, action: 1 - (action - best[state]) ** 2), calls=20)
    np.testing.assert_allclose(greedy(acting), best, atol=0.2)
    tried = np.array([-0.8, -0.4, 0, 0.4, 0.8])
    np.testing.assert_allclose(values(state, tried), 1 - (tried - best[:, None]) ** 2, atol=2 * TOLERANCE)


def test_the_value_of_a_state_is_that_of_the_best_action_in_the_next():
    # Worth 1 on average over the actions tried, 2 with the one that the actor learns.
    def reward(state, action):
        return (1 + action) * (state == 1)

    probe = dataclasses.replace(two_steps(1.0), reward=reward)
    state, acting = learn(probe, discount=0.5)
    assert greedy(acting)[1] > 0.95
    assert_values(state, [1.0])
    np.testing.assert_allclose(values(state)[1], [0.2, 1.0, 1.8], atol=2 * TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("n_step", [1, 3])
def test_truncated_episodes_are_worth_what_goes_on_for_ever(n_step):
    state, _ = learn(ring(0.5, "truncated"), n_step=n_step)
    assert_values(state, [0.5 / (1 - 0.5)] * 4)


@pytest.mark.parametrize("n_step", [1, 3])
def test_terminated_episodes_are_worth_their_finite_sum(n_step):
    state, _ = learn(ring(0.5, "terminated"), n_step=n_step)
    assert_values(state, [0.5 * (1 - 0.5**left) / (1 - 0.5) for left in (4, 3, 2, 1)])


@pytest.mark.parametrize("n_step", [1, 3])
def test_a_truncated_episode_is_worth_the_state_it_was_cut_in(n_step):
    state, _ = learn(cut_short(1.0), discount=0.8, n_step=n_step)
    assert_values(state, [0.8, 1.0, 0.0])


def test_entropy_is_worth_the_temperature_to_the_state_before():
    # With nothing else to gain the actor comes to be as random as it can: all but uniform, entropy log 2.
    warm = {"temperature": {"log_temperature": jnp.log(jnp.float32(0.5))}}
    state, acting = learn(two_steps(0.0), discount=0.8, parameters=warm, calls=8)
    head = np.asarray(mlp(acting, np.eye(STATES, dtype=np.float32)))[1]
    noise = np.random.default_rng(0).standard_normal((4000, 1)).astype(np.float32)
    entropy = -float(tanh_gaussian(np.tile(head, (4000, 1)), noise)[1].mean())
    assert np.log(2) - 0.1 < entropy < np.log(2) + 0.01
    assert_values(state, [0.8 * 0.5 * entropy, 0.0])


def test_the_temperature_settles_where_the_entropy_is_on_target():
    config = dataclasses.replace(
        CONFIG, discount=0.5, initial_temperature=0.2, temperature_learning_rate=1e-2, target_entropy=-1.0
    )
    probe = ends_at_once(lambda state, action: 1 - action**2)
    state, acting = learned(probe, config, calls=30)
    head = np.repeat(mlp(acting, np.eye(STATES, dtype=np.float32)), 1000, 0)
    noise = np.random.default_rng(0).standard_normal((len(head), 1)).astype(np.float32)
    assert -float(tanh_gaussian(head, noise)[1].mean()) == pytest.approx(-1.0, abs=0.25)
    # A normal of deviation s has the entropy log(s sqrt(2 pi e)), and temperature / (2 s^2) is its curvature.
    deviation = np.exp(-1.0) / np.sqrt(2 * np.pi * np.e)
    assert float(np.exp(state.parameters["temperature"]["log_temperature"])) == pytest.approx(
        2 * deviation**2, rel=0.25
    )


def test_half_the_weights_learn_the_same_values():
    rng = np.random.default_rng(1)
    fresh = CONFIG.make(box_spec([-1.0], [1.0], (STATES,)), 1e-4).init(0)
    masks = {
        network: {name: rng.random(kept.shape) < 0.5 for name, kept in fresh.masks[network].items()}
        for network in ("actor", "critic")
    }
    state, _ = learn(ring(0.5, "terminated"), masks=masks)
    assert_values(state, [0.5 * (1 - 0.5**left) / (1 - 0.5) for left in (4, 3, 2, 1)])
    for network, mask in masks.items():
        for name, kept in mask.items():
            assert (np.asarray(state.parameters[network][name])[~kept] == 0).all()
