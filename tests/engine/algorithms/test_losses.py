"""The pieces of soft actor-critic, one by one, against the same written out in NumPy and float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import sac_reference as reference
from support.agents import (
    ACTIONS,
    BATCH,
    CONFIG,
    OBSERVATIONS,
    as_dict,
    assert_close_trees,
    close,
    lived_in_state,
    make,
    random_sample,
    to_numpy,
)

from engine.algorithms import sac
from engine.algorithms.actor_critic import critic_loss
from engine.networks import LOG_STD_MAX, LOG_STD_MIN, fold_normalizer, mlp, q_values, tanh_gaussian

SAC = make(CONFIG)


def test_log_probability_is_exact_where_tanh_saturates():
    mean, log_std = np.meshgrid([-30.0, -9, -0.5, 0, 4, 30], [-25.0, -5, 0, 1.9, 3])
    head = np.stack([mean.ravel(), log_std.ravel()], 1)
    noise = np.random.default_rng(0).standard_normal((len(head), 1)).astype(np.float32)
    action, log_prob, mean_action = tanh_gaussian(jnp.float32(head), noise)
    log_std = np.clip(head[:, 1:], LOG_STD_MIN, LOG_STD_MAX)
    raw = head[:, :1] + np.exp(log_std) * noise
    # 1 - tanh^2 = 1 / cosh^2
    log_cosh = np.logaddexp(raw, -raw) - math.log(2)
    expected = -(noise.astype(np.float64) ** 2) / 2 - log_std - math.log(2 * math.pi) / 2 + 2 * log_cosh
    np.testing.assert_allclose(log_prob, expected[:, 0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(action, np.tanh(raw), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mean_action, np.tanh(head[:, :1]), rtol=1e-5, atol=1e-6)
    slope = jax.grad(lambda h: tanh_gaussian(h, noise)[1].sum())(jnp.float32(head))
    assert np.isfinite(slope).all()


def test_probabilities_of_actions_integrate_to_one():
    edges = np.linspace(-9, 9, 200_001)
    head = np.tile(np.float32([0.3, -0.4]), (len(edges), 1))
    action, log_prob, _ = tanh_gaussian(jnp.asarray(head), jnp.float32(edges)[:, None])
    assert np.trapezoid(np.exp(np.float64(log_prob)), np.float64(action)[:, 0]) == pytest.approx(1, abs=1e-4)


def test_critic_targets_are_reward_plus_soft_value_of_the_lower_target_critic():
    state, sample = lived_in_state(SAC).replace(normalizer=None), random_sample(1)
    noise = np.random.default_rng(2).standard_normal((BATCH, ACTIONS))
    got = jax.jit(sac.critic_targets)(state, sample, np.float32(noise))
    assert got.shape == (BATCH,)
    close(got, reference.targets(to_numpy(state), as_dict(sample), np.float64(np.float32(noise))))
    terminal = np.asarray(sample.bootstrap) == 0
    assert terminal.any()
    assert np.array_equal(np.asarray(got)[terminal], sample.reward[terminal])


def test_critic_loss_and_gradients():
    state, sample = lived_in_state(SAC), random_sample(3)
    targets = np.random.default_rng(4).standard_normal(BATCH).astype(np.float32)
    (loss, value), gradients = jax.jit(jax.value_and_grad(critic_loss, has_aux=True))(
        state.parameters["critic"], sample, targets
    )
    expected = reference.critic(to_numpy(state)["critic"], as_dict(sample), targets.astype(np.float64))
    close(loss, expected[0])
    close(value, expected[1])
    assert_close_trees(gradients, expected[2])


def test_actor_loss_and_gradients():
    state, sample = lived_in_state(SAC), random_sample(5)
    actor, critic = state.parameters["actor"], state.parameters["critic"]
    # One deviation is clipped from above, so that its gradient stops.
    actor["bias_2"] += np.float32([0, 0, 2.5, 0])
    noise = np.random.default_rng(6).standard_normal((BATCH, ACTIONS)).astype(np.float32)
    (loss, log_prob), gradients = jax.jit(jax.value_and_grad(sac.actor_loss, has_aux=True))(
        actor, critic, jnp.float32(0.3), sample.observation, noise
    )
    numpy = to_numpy(state)
    expected = reference.actor(
        numpy["actor"], numpy["critic"], 0.3, as_dict(sample)["observation"], noise.astype(np.float64)
    )
    close(loss, expected[0])
    close(log_prob, expected[1])
    assert_close_trees(gradients, expected[2])
    action = tanh_gaussian(mlp(actor, sample.observation), noise)[0]
    assert 0 < np.argmin(q_values(critic, sample.observation, action), 0).sum() < BATCH


@pytest.mark.parametrize(("log_prob", "sign"), [(-3.0, 1), (3.0, -1)])
def test_temperature_falls_when_entropy_is_above_its_target(log_prob, sign):
    loss, slope = jax.value_and_grad(sac.temperature_loss)(jnp.float32(math.log(0.2)), log_prob, -2.0)
    assert loss == pytest.approx(0.2 * (-log_prob + 2.0), rel=1e-5)
    assert slope == pytest.approx(float(loss), rel=1e-5)
    assert np.sign(slope) == sign


def test_an_input_that_never_moved_folds_without_noise():
    actor = lived_in_state(SAC).parameters["actor"]
    observation = np.random.default_rng(40).normal(size=(50, OBSERVATIONS)).astype(np.float32)
    observation[:, 1] = 0.6
    mean, scale = observation.mean(0), np.float32([1, 1e3, 1])
    mean[1] = observation[0, 1]
    acting = fold_normalizer(actor, mean, scale)
    expected = mlp(actor, (observation - mean) * scale)
    # The fold subtracts 600 from 600 in float32: 600 * 6e-8 in each input of a unit.
    np.testing.assert_allclose(mlp(acting, observation), expected, atol=1e-3)
