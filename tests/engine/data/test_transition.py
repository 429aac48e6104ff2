"""Samples from raw batches, against sums of rewards one by one."""

import jax
import numpy as np
import pytest
from support import sac_reference as reference
from support.agents import BATCH, MEAN, SCALE, as_dict, close, raw_batches

from engine.data.transition import prepare


@pytest.mark.parametrize("n_step", [1, 2, 5])
@pytest.mark.parametrize(("discount", "reward_scale"), [(0.9, 0.5), (1.0, 3.0), (0.25, 1.0)])
def test_rewards_are_scaled_discounted_and_summed_and_observations_normalised(n_step, discount, reward_scale):
    batches = raw_batches(n_step, 3, n_step)
    assert set(np.unique(batches.steps)) == set(range(1, n_step + 1))
    got = jax.jit(prepare)(batches, MEAN, SCALE, np.float32(discount), np.float32(reward_scale))
    for k in range(3):
        expected = reference.prepared(as_dict(batches, k), MEAN, SCALE, discount, reward_scale)
        for name, value in expected.items():
            close(getattr(got, name)[k], value, rtol=1e-5, err_msg=name)
        assert np.array_equal(np.asarray(got.bootstrap[k]) == 0, batches.terminated[k])
    assert got.reward.shape == got.bootstrap.shape == (3, BATCH)


def test_one_step_is_the_reward_times_its_scale_to_the_bit():
    batches = raw_batches(4, 1)
    got = prepare(batches, MEAN, SCALE, np.float32(0.97), np.float32(0.1))
    assert np.array_equal(got.reward, batches.rewards[..., 0] * np.float32(0.1))
    assert np.array_equal(got.bootstrap, np.where(batches.terminated, 0, np.float32(0.97)))
