"""Advantages against sums written out in float64, over episodes that end anywhere and anyhow."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.data.advantages import corrected, generalized_advantages

DISCOUNT, DECAY = 0.9, 0.8


def rollout(seed, steps, envs, ends):
    rng = np.random.default_rng(seed)
    reward, value, final, log_ratio = rng.standard_normal((4, steps, envs))
    ended = rng.random((steps, envs)) < ends
    terminated = ended & (rng.random((steps, envs)) < 0.5)
    following = np.concatenate([value[1:], rng.standard_normal((1, envs))])
    next_value = np.where(terminated, 0.0, np.where(ended, final, following))
    return reward, value, next_value, ended, log_ratio


rollouts = st.builds(
    rollout, st.integers(0, 9999), st.integers(1, 12), st.integers(1, 3), st.sampled_from([0.0, 0.2, 1.0])
)


@settings(max_examples=60, deadline=None)
@given(rollouts)
def test_an_advantage_is_the_sum_of_what_came_better_until_the_episodes_end(found):
    reward, value, next_value, ended, _ = found
    got = generalized_advantages(*(x.astype(np.float32) for x in found[:3]), ended, DISCOUNT, DECAY)
    for env in range(reward.shape[1]):
        for t in range(len(reward)):
            total, factor = 0.0, 1.0
            for k in range(t, len(reward)):
                total += factor * (reward[k, env] + DISCOUNT * next_value[k, env] - value[k, env])
                factor *= DISCOUNT * DECAY
                if ended[k, env]:
                    break
            assert got[t, env] == pytest.approx(total, rel=1e-4, abs=1e-5)


@settings(max_examples=60, deadline=None)
@given(rollouts, st.sampled_from([0.5, 1.0, 2.0]))
def test_what_another_policy_did_counts_by_how_likely_it_is_now(found, most):
    reward, value, next_value, ended, log_ratio = found
    arrays = [x.astype(np.float32) for x in found[:3]]
    got = corrected(*arrays, ended, DISCOUNT, DECAY, log_ratio.astype(np.float32), most)
    ratio = np.exp(log_ratio)
    for env in range(reward.shape[1]):
        for t in range(len(reward)):
            # The published sum, a product of traces before each difference.
            total, product, k = value[t, env], 1.0, t
            while k < len(reward):
                delta = reward[k, env] + DISCOUNT * next_value[k, env] - value[k, env]
                total += product * min(most, ratio[k, env]) * delta
                product *= DISCOUNT * DECAY * min(1.0, most, ratio[k, env])
                if ended[k, env]:
                    break
                k += 1
            assert got.target[t, env] == pytest.approx(total, rel=1e-4, abs=1e-4)
            last = ended[t, env] or t + 1 == len(reward)
            following = next_value[t, env] if last else float(got.target[t + 1, env])
            gained = reward[t, env] + DISCOUNT * following - value[t, env]
            expected = min(most, ratio[t, env]) * gained
            assert got.advantage[t, env] == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_on_its_own_actions_a_correction_changes_nothing():
    reward, value, next_value, ended, _ = (x.astype(np.float32) for x in rollout(3, 8, 2, 0.3))
    ended = ended > 0
    plain = generalized_advantages(reward, value, next_value, ended, DISCOUNT, DECAY)
    got = corrected(reward, value, next_value, ended, DISCOUNT, DECAY, np.zeros_like(reward), 1.0)
    np.testing.assert_allclose(got.target, value + plain, rtol=1e-5, atol=1e-6)


def test_values_worked_out_by_hand():
    # Three steps of one environment: a time limit after the second, whose last observation is worth 4.
    reward, value = np.array([[1.0], [2.0], [3.0]]), np.array([[10.0], [20.0], [30.0]])
    next_value, ended = np.array([[20.0], [4.0], [5.0]]), np.array([[False], [True], [False]])
    got = generalized_advantages(reward, value, next_value, ended, 0.5, 0.5)
    # 1 + 10 - 10 = 1; 2 + 2 - 20 = -16; 3 + 2.5 - 30 = -24.5; the first also a quarter of the second.
    assert np.asarray(got).ravel().tolist() == [-3.0, -16.0, -24.5]
