"""The JAX policies against their NumPy twins."""

import math

import numpy as np
import pytest
from support.specs import act, box_spec, discrete_spec, random_weights, reference_head

from engine import policies as in_jax
from fastcollect import cnn_policy, mlp_policy
from fastcollect.policies import mlp as in_numpy
from fastcollect.support.errors import ConfigError
from fastcollect.workers.group import build_policy

BOXES = {
    "unit": ([-1, -1, -1], [1, 1, 1]),
    "other": ([-3, 0.5], [5, 0.75]),
    "matrix": ([[-2, -1, 0]], [[2, 1, 10]]),
}
EXTRAS = ("log_prob", "mean_action")


def twins(spec, hidden=(24, 17), extras=EXTRAS, seed=0, scale=1.0):
    pair = [module.MLPPolicy(spec, hidden=hidden, extras=extras) for module in (in_numpy, in_jax)]
    weights = random_weights(pair[0].parameters, seed, scale)
    for policy in pair:
        policy.load(weights)
    return *pair, weights


def inputs(spec, noise, batch, seed):
    rng = np.random.default_rng(seed)
    shape = (batch, *spec.observation_shape)
    if spec.observation_dtype == np.uint8:
        observation = rng.integers(0, 256, shape, np.uint8)
    else:
        observation = rng.standard_normal(shape).astype(spec.observation_dtype)
    kind, size = noise
    draw = rng.random if kind == "uniform" else rng.standard_normal
    return observation, draw((batch, size), np.float32)


def agree(got, expected):
    for a, b in zip((got[0], *got[1].values()), (expected[0], *expected[1].values()), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
def test_gaussian_twins_agree(box, dtype):
    spec = box_spec(*box, observation_shape=(2, 4), observation_dtype=dtype)
    reference, policy, _ = twins(spec, scale=1 / 255 if dtype == np.uint8 else 1)
    observation, noise = inputs(spec, reference.noise, 64, seed=1)
    got, expected = (act(p, spec, observation, noise, EXTRAS) for p in (policy, reference))
    agree(got, expected)
    assert len(np.unique(got[1]["log_prob"])) == 64


@pytest.mark.parametrize("num_actions", [1, 2, 6])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
def test_categorical_twins_agree(num_actions, dtype):
    spec = discrete_spec(num_actions, observation_dtype=dtype)
    scale = 1 / 255 if dtype == np.uint8 else 1
    reference, policy, weights = twins(spec, extras=("log_prob",), seed=3, scale=scale)
    observation, noise = inputs(spec, reference.noise, 2000, seed=2)
    got, expected = (act(p, spec, observation, noise, ("log_prob",)) for p in (policy, reference))
    head = reference_head(weights, observation)
    cumulative = (np.exp(head) / np.exp(head).sum(1, keepdims=True)).cumsum(1)
    clear = np.abs(cumulative - noise).min(1) > 1e-6
    assert clear.mean() > 0.99
    assert np.array_equal(got[0][clear], expected[0][clear])
    assert set(got[0].tolist()) == set(range(num_actions))
    agree(
        (got[0][clear], {"log_prob": got[1]["log_prob"][clear]}),
        (expected[0][clear], {"log_prob": expected[1]["log_prob"][clear]}),
    )


@pytest.mark.parametrize("spec", [box_spec(*BOXES["other"]), discrete_spec(5)], ids=["box", "discrete"])
def test_padded_rows_change_nothing(spec):
    reference, policy, _ = twins(spec, extras=("log_prob",))
    observation, noise = inputs(spec, reference.noise, 11, seed=5)
    expected = act(reference, spec, observation, noise, ("log_prob",))
    for size in (11, 16, 32):
        padded = [np.full((size, *x.shape[1:]), 123, x.dtype) for x in (observation, noise)]
        padded[0][:11], padded[1][:11] = observation, noise
        action, extras = act(policy, spec, *padded, ("log_prob",))
        agree((action[:11], {"log_prob": extras["log_prob"][:11]}), expected)


@pytest.mark.parametrize("head", [(1e4, 0), (-1e4, 50), (1e30, -50), (0, -1e30), (0, 1e30)])
def test_gaussian_twins_agree_at_the_extremes(head):
    spec = box_spec([-0.1], [0.3])
    weights = {"kernel_0": np.zeros((5, 2), np.float32), "bias_0": np.array(head, np.float32)}
    noise = np.array([[0.0], [6.7], [-6.7]], np.float32)
    results = []
    for module in (in_numpy, in_jax):
        policy = module.MLPPolicy(spec, hidden=(), extras=EXTRAS)
        policy.load(weights)
        results.append(act(policy, spec, np.zeros((3, 5), np.float32), noise, EXTRAS))
    agree(*results)
    assert all(np.isfinite(array).all() for array in (results[1][0], *results[1][1].values()))


@pytest.mark.parametrize("num_actions", [1, 2, 7, 1000])
@pytest.mark.parametrize("uniform", [0.0, 0.99999994])
def test_a_discrete_action_exists_whatever_the_logits(num_actions, uniform):
    spec = discrete_spec(num_actions)
    last = np.arange(num_actions) == num_actions - 1
    policy = in_jax.MLPPolicy(spec, hidden=())
    for logits in (np.zeros(num_actions), np.where(last, -1e38, 1e38), np.where(last, 1e38, -1e38)):
        policy.load({"kernel_0": np.zeros((5, num_actions), np.float32), "bias_0": logits.astype(np.float32)})
        noise = np.full((4, 1), uniform, np.float32)
        action, _ = act(policy, spec, np.zeros((4, 5), np.float32), noise)
        assert ((action >= 0) & (action < num_actions)).all()
        assert logits[action[0]] > -1e37 or num_actions == 1


@pytest.mark.parametrize("num_actions", [1, 3, 7])
def test_not_even_a_uniform_number_of_one_picks_an_action_that_does_not_exist(num_actions):
    spec = discrete_spec(num_actions)
    policy = in_jax.MLPPolicy(spec, hidden=())
    policy.load(
        {"kernel_0": np.zeros((5, num_actions), np.float32), "bias_0": np.zeros(num_actions, np.float32)}
    )
    action, _ = act(policy, spec, np.zeros((2, 5), np.float32), np.ones((2, 1), np.float32))
    assert (action == num_actions - 1).all()


def test_a_saturated_action_never_leaves_its_box():
    rng = np.random.default_rng(0)
    low, high = np.sort(rng.normal(size=(2, 500)) * 10 ** rng.uniform(-3, 3, (2, 500)), axis=0)
    for dtype in (np.float32, np.float64):
        spec = box_spec(low, high, dtype=dtype)
        policy = in_jax.MLPPolicy(spec, hidden=(), extras=("mean_action",))
        kernel = np.zeros((5, 1000), np.float32)
        for mean in (-100, 100):
            policy.load({"kernel_0": kernel, "bias_0": np.full(1000, mean, np.float32)})
            noise = np.zeros((2, 500), np.float32)
            action, _ = act(policy, spec, np.zeros((2, 5), np.float32), noise, ("mean_action",))
            assert (action >= spec.action.low).all()
            assert (action <= spec.action.high).all()


def test_extras_are_written_only_where_they_are_wanted():
    spec = box_spec([-1], [1])
    _, policy, _ = twins(spec, extras=("log_prob", "policy_version"))
    _, extras = act(policy, spec, np.zeros((3, 5), np.float32), np.zeros((3, 1), np.float32), ("log_prob",))
    assert (extras["log_prob"] != 77).all()


@pytest.mark.parametrize(
    ("spec", "policy", "text"),
    [
        (box_spec([0, -math.inf], [1, 1]), mlp_policy((4,)), "needs a bounded action space.*inf"),
        (box_spec([-1], [1]), mlp_policy((4,), ("advantage",)), r"\['advantage'\].*log_prob.*value"),
        (box_spec([-1], [1]), mlp_policy((4,), ("log_prob",), deterministic=True), "no extras.*log_prob"),
        (box_spec([-1], [1]), cnn_policy(), "uint8 images of at least 20 x 20.*float32 of shape"),
    ],
    ids=["unbounded", "unknown extra", "deterministic", "no images"],
)
def test_what_the_numpy_twin_refuses_no_model_worker_is_given(spec, policy, text):
    with pytest.raises(ConfigError, match=text):
        build_policy(policy, spec, batched=False)


@pytest.mark.parametrize(
    "spec", [box_spec(*BOXES["matrix"], observation_shape=(3, 2)), discrete_spec(4)], ids=["box", "discrete"]
)
@pytest.mark.parametrize("hidden", [(), (8,), (16, 9)])
def test_the_jax_twin_takes_the_parameters_that_the_numpy_twin_declares(spec, hidden):
    config = mlp_policy(hidden, ("policy_version", "value", "log_prob"))
    reference, policy = (config.build(spec, batched=batched) for batched in (False, True))
    assert type(policy) is in_jax.MLPPolicy
    weights = random_weights(reference.parameters, 2)
    observation, noise = inputs(spec, reference.noise, 5, seed=4)
    results = []
    for each in (policy, reference):
        each.load(weights)
        results.append(act(each, spec, observation, noise, ("value", "log_prob")))
    agree(*results)


@pytest.mark.parametrize("width", [8, 1024])
def test_weights_may_be_overwritten_after_load(width):
    spec = box_spec([-1], [1])
    reference, policy, weights = twins(spec, hidden=(width, width), extras=("log_prob",))
    observation, noise = inputs(spec, reference.noise, 4, seed=8)
    before = act(reference, spec, observation, noise, ("log_prob",))
    # Aligned as the weights board's are, which is what tempts JAX to share instead of copying.
    aligned = {}
    for name, array in weights.items():
        raw = np.empty(array.nbytes + 64, np.uint8)
        start = -raw.ctypes.data % 64
        aligned[name] = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        aligned[name][...] = array
    policy.load(aligned)
    for array in aligned.values():
        array[...] = np.nan
    agree(act(policy, spec, observation, noise, ("log_prob",)), before)


@pytest.mark.parametrize("spec", [box_spec([-2.0, 0.0], [2.0, 3.0]), discrete_spec(5)])
def test_deterministic_twins_take_the_mean_or_the_most_probable_action(spec):
    hidden = (24, 17)
    config = mlp_policy(hidden, deterministic=True)
    weights = random_weights(in_numpy.MLPPolicy(spec, hidden=hidden).parameters, 0)
    observation = np.random.default_rng(1).standard_normal((6, *spec.observation_shape))
    head = reference_head(weights, observation)
    if spec.action.discrete:
        expected = head.argmax(-1)
    else:
        low, high = spec.action.low, spec.action.high
        expected = (low + high) / 2 + (high - low) / 2 * np.tanh(head[:, : len(low)])
    assert config.build(spec, batched=False).noise is None
    for batched in (False, True):
        policy = config.build(spec, batched=batched)
        policy.load(weights)
        action = np.zeros((6, *spec.action.shape), spec.action.dtype)
        policy.act(observation.astype(spec.observation_dtype), None, action, {})
        np.testing.assert_allclose(action, expected, rtol=1e-4, atol=1e-5)
