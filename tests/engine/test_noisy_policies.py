"""The deterministic actor that is tried with noise: both twins against the formula in float64."""

import math

import numpy as np
import pytest
from support.specs import act, box_spec, discrete_spec, random_weights, reference_head

from fastcollect import mlp_policy, noisy_mlp_policy
from fastcollect.support.errors import ConfigError
from fastcollect.workers.group import build_policy

BOXES = {
    "unit": ([-1, -1, -1], [1, 1, 1]),
    "other": ([-3, 0.5], [5, 0.75]),
    "matrix": ([[-2, -1, 0]], [[2, 1, 10]]),
}
EXTRAS = ("mean_action",)


def loaded(config, spec, weights):
    """(NumPy policy, JAX policy) with these weights."""
    pair = [config.build(spec, batched=batched) for batched in (False, True)]
    for policy in pair:
        policy.load(weights)
    return pair


def zero_weights(spec, spread, bias=0.0):
    size = math.prod(spec.action.shape)
    kernel = np.zeros((math.prod(spec.observation_shape), size), np.float32)
    return {"kernel_0": kernel, "bias_0": np.full(size, bias, np.float32), "spread": np.float32(spread)}


@pytest.mark.parametrize("spread", [(0, 0.1), (0.87, 0), (0.4, 0.7)])
@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES)
def test_both_twins_act_by_the_formula(box, spread):
    spec = box_spec(*box, observation_shape=(2, 4), observation_dtype=np.float64)
    config = noisy_mlp_policy((24, 17), EXTRAS)
    weights = random_weights(config.build(spec, batched=False).parameters, 0)
    weights["spread"] = np.float32(spread)
    rng = np.random.default_rng(1)
    observation = rng.standard_normal((64, 2, 4))
    noise = rng.standard_normal((64, spec.action.low.size), np.float32)
    mean, (before, after) = reference_head(weights, observation), np.float64(weights["spread"])
    assert mean.shape == noise.shape
    low, high = (np.float64(side).ravel() for side in (spec.action.low, spec.action.high))
    tried = np.clip(np.tanh(mean + before * noise) + after * noise, -1, 1)
    for policy in loaded(config, spec, weights):
        action, extras = act(policy, spec, observation, noise, EXTRAS)
        for got, squashed in ((action, tried), (extras["mean_action"], np.tanh(mean))):
            expected = (low + high) / 2 + (high - low) / 2 * squashed
            np.testing.assert_allclose(got.reshape(64, -1), expected, rtol=1e-5, atol=2e-5)


def test_the_spread_is_a_parameter_that_travels_with_the_weights():
    spec = box_spec([-1, -1], [1, 1])
    policy = noisy_mlp_policy((4,)).build(spec, batched=False)
    assert (policy.parameters["spread"].shape, policy.parameters["spread"].dtype) == ((2,), np.float32)
    assert [name for name in policy.parameters if name != "spread"] == [
        "kernel_0",
        "bias_0",
        "kernel_1",
        "bias_1",
    ]
    assert policy.parameters["kernel_1"].shape == (4, 2)
    assert policy.initial_parameters(0)["spread"].tolist() == [0, 0]
    weights = policy.initial_parameters(0)
    policy.load(weights)
    before = act(policy, spec, np.ones((3, 5), np.float32), np.ones((3, 2), np.float32))[0]
    weights["spread"][...] = 9  # the engine's, and may change
    after = act(policy, spec, np.ones((3, 5), np.float32), np.ones((3, 2), np.float32))[0]
    np.testing.assert_array_equal(before, after)


def test_noise_before_the_tanh_alone_is_that_of_a_squashed_normal_and_nearly_uniform():
    spec = box_spec([-1], [1])
    noise = np.random.default_rng(0).standard_normal((20_000, 1), np.float32)
    observation = np.zeros((20_000, 5), np.float32)
    squashed = mlp_policy(()).build(spec, batched=False)
    bias = np.float32([0, np.log(0.87)])
    squashed.load({"kernel_0": np.zeros((5, 2), np.float32), "bias_0": bias})
    expected, _ = act(squashed, spec, observation, noise)
    for policy in loaded(noisy_mlp_policy(()), spec, zero_weights(spec, (0.87, 0))):
        action, _ = act(policy, spec, observation, noise)
        np.testing.assert_allclose(action, expected, atol=1e-6)
        # The largest distance between the distributions' functions.
        uniform = (np.sort(action[:, 0]) + 1) / 2
        assert np.abs(uniform - (np.arange(20_000) + 0.5) / 20_000).max() < 0.05


def test_no_action_leaves_its_box():
    rng = np.random.default_rng(0)
    low, high = np.sort(rng.normal(size=(2, 500)) * 10 ** rng.uniform(-3, 3, (2, 500)), axis=0)
    for dtype in (np.float32, np.float64):
        spec = box_spec(low, high, dtype=dtype)
        noise = np.float32([[9], [-9]]) * np.ones((2, 500), np.float32)
        for policy in loaded(noisy_mlp_policy(()), spec, zero_weights(spec, (0, 1), 2.0)):
            action, _ = act(policy, spec, np.zeros((2, 5), np.float32), noise)
            assert (action >= spec.action.low).all()
            assert (action <= spec.action.high).all()
            for row, side in zip(action, (spec.action.high, spec.action.low), strict=True):
                np.testing.assert_allclose(row, side, rtol=1e-5, atol=1e-5 * np.abs(low).max())


def test_without_noise_the_mean_is_taken():
    spec = box_spec([-2.0, 0.0], [2.0, 3.0])
    config = noisy_mlp_policy((6,), deterministic=True)
    reference = config.build(spec, batched=False)
    assert reference.noise is None
    weights = random_weights(reference.parameters, 0)
    observation = np.random.default_rng(1).standard_normal((6, 5), np.float32)
    low, high = spec.action.low, spec.action.high
    expected = (low + high) / 2 + (high - low) / 2 * np.tanh(reference_head(weights, observation))
    for policy in loaded(config, spec, weights):
        np.testing.assert_allclose(act(policy, spec, observation, None)[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("spec", "extras", "text"),
    [
        (box_spec([-1], [1]), ("log_prob",), "actions that are clipped have no density, and so no log_prob"),
        (discrete_spec(3), (), "needs a box of actions, there are 3 discrete ones"),
        (box_spec([0, -math.inf], [1, 1]), (), "needs a bounded action space.*inf"),
    ],
    ids=["log_prob", "discrete", "unbounded"],
)
def test_what_there_is_not_is_refused_by_name(spec, extras, text):
    with pytest.raises(ConfigError, match=text):
        build_policy(noisy_mlp_policy((4,), extras), spec, batched=False)
