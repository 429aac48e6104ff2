"""The NumPy policies against formulas written out here, in float64."""

import math

import numpy as np
import pytest
from support.specs import act, box_spec, discrete_spec, random_weights, reference_head

from fastcollect import mlp_policy, random_policy
from fastcollect.policies.mlp import MLPPolicy
from fastcollect.policies.random import RandomPolicy
from fastcollect.support import noise as noise_streams

ALMOST_ONE = np.float32(0.99999994)
BOXES = [
    ([-1, -1], [1, 1]),
    ([-3, 0.5], [5, 0.75]),
    ([[-2, -1, 0]], [[2, 1, 10]]),
]


def reference_gaussian(spec, head, noise):
    """(action, log_prob, mean action): a = c + w tanh(u), p(a) = N(u) / (w (1 - tanh(u)^2))."""
    size = math.prod(spec.action.shape)
    low, high = (x.astype(np.float64).ravel() for x in (spec.action.low, spec.action.high))
    centre, half = (low + high) / 2, (high - low) / 2
    mean, std = head[:, :size], np.exp(np.clip(head[:, size:], -20, 2))
    u = mean + std * noise
    log_normal = -0.5 * ((u - mean) / std) ** 2 - np.log(std * math.sqrt(2 * math.pi))
    # 1 - tanh(u)^2 = 1 / cosh(u)^2
    log_prob = (log_normal + 2 * np.log(np.cosh(u)) - np.log(half)).sum(1)
    shape = (len(head), *spec.action.shape)
    return (
        (centre + half * np.tanh(u)).reshape(shape),
        log_prob,
        (centre + half * np.tanh(mean)).reshape(shape),
    )


def constant_policy(spec, head, extras=("log_prob",)):
    """A policy whose head does not depend on the observation."""
    policy = MLPPolicy(spec, hidden=(), extras=extras)
    weights = {"kernel_0": np.zeros((5, len(head)), np.float32), "bias_0": np.array(head, np.float32)}
    policy.load(weights)
    return policy


@pytest.mark.parametrize("hidden", [(), (7,), (16, 9)])
@pytest.mark.parametrize("box", BOXES)
def test_the_gaussian_head_is_the_formula(hidden, box):
    spec = box_spec(*box, observation_shape=(2, 3))
    policy = MLPPolicy(spec, hidden=hidden, extras=("log_prob", "mean_action"))
    weights = random_weights(policy.parameters, seed=3)
    policy.load(weights)
    rng = np.random.default_rng(1)
    observation = rng.standard_normal((20, 2, 3)).astype(np.float32)
    noise = rng.standard_normal((20, math.prod(spec.action.shape))).astype(np.float32)
    action, extras = act(policy, spec, observation, noise, ("log_prob", "mean_action"))
    expected = reference_gaussian(spec, reference_head(weights, observation), noise)
    assert policy.noise == ("normal", noise.shape[1])
    for got, want in zip((action, extras["log_prob"], extras["mean_action"]), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("num_actions", [2, 6])
def test_the_categorical_head_inverts_the_cumulative_distribution(num_actions):
    spec = discrete_spec(num_actions)
    policy = MLPPolicy(spec, hidden=(8,), extras=("log_prob",))
    weights = random_weights(policy.parameters, seed=4)
    policy.load(weights)
    rng = np.random.default_rng(2)
    observation = rng.standard_normal((500, 5)).astype(np.float32)
    uniform = rng.random((500, 1), np.float32)
    action, extras = act(policy, spec, observation, uniform, ("log_prob",))
    head = reference_head(weights, observation)
    probability = np.exp(head) / np.exp(head).sum(1, keepdims=True)
    cumulative = probability.cumsum(1)
    for row in range(500):
        u = float(uniform[row, 0])
        if np.abs(cumulative[row] - u).min() < 1e-6:
            continue
        expected = next(a for a in range(num_actions) if u < cumulative[row, a])
        assert action[row] == expected
        assert extras["log_prob"][row] == pytest.approx(math.log(probability[row, expected]), abs=1e-5)
    assert set(action.tolist()) == set(range(num_actions))


def test_categorical_frequencies_are_the_softmax():
    logits, draws = np.array([1.5, -2.0, 0.0, 0.3]), 200_000
    spec = discrete_spec(4)
    uniform = np.empty((draws, 1, 1), np.float32)
    noise_streams.uniform(noise_streams.stream_starts(9, np.arange(1)), 0, uniform)
    action, _ = act(constant_policy(spec, logits, ()), spec, np.zeros((draws, 5), np.float32), uniform[:, 0])
    probability = np.exp(logits) / np.exp(logits).sum()
    deviation = np.sqrt(probability * (1 - probability) / draws)
    assert (np.abs(np.bincount(action, minlength=4) / draws - probability) < 4.5 * deviation).all()


@pytest.mark.parametrize("num_actions", [1, 2, 3, 7, 18, 1000])
@pytest.mark.parametrize("uniform", [0.0, 0.5, ALMOST_ONE])
def test_a_discrete_action_exists_whatever_the_logits(num_actions, uniform):
    spec = discrete_spec(num_actions)
    rng = np.random.default_rng(num_actions)
    rows = [rng.standard_normal(num_actions) * scale for scale in (0, 1, 100, 1e30)]
    rows.append(np.where(np.arange(num_actions) == num_actions - 1, -1e38, 1e38))
    rows.append(np.where(np.arange(num_actions) == 0, -1e38, 1e38))
    for logits in rows:
        policy = constant_policy(spec, logits)
        noise = np.full((3, 1), uniform, np.float32)
        action, extras = act(policy, spec, np.zeros((3, 5), np.float32), noise, ("log_prob",))
        assert ((action >= 0) & (action < num_actions)).all()
        assert np.isfinite(extras["log_prob"]).all()
        assert logits[action[0]] > -1e37 or num_actions == 1  # never one of probability zero


@pytest.mark.parametrize("num_actions", [1, 3, 7])
def test_not_even_a_uniform_number_of_one_picks_an_action_that_does_not_exist(num_actions):
    spec = discrete_spec(num_actions)
    policy = constant_policy(spec, np.zeros(num_actions), ())
    action, _ = act(policy, spec, np.zeros((2, 5), np.float32), np.ones((2, 1), np.float32))
    assert (action == num_actions - 1).all()


@pytest.mark.parametrize("mean", [0.0, 30.0, -30.0, 1e4, -1e4, 1e30, -1e30])
@pytest.mark.parametrize("log_std", [-1e30, -50.0, 0.0, 50.0, 1e30])
def test_extreme_heads_give_finite_numbers_inside_the_box(mean, log_std):
    spec = box_spec([-0.1], [0.3])
    policy = constant_policy(spec, [mean, log_std], ("log_prob", "mean_action"))
    noise = np.array([[0.0], [6.7], [-6.7]], np.float32)
    action, extras = act(policy, spec, np.zeros((3, 5), np.float32), noise, ("log_prob", "mean_action"))
    for array in (action, extras["log_prob"], extras["mean_action"]):
        assert np.isfinite(array).all()
    assert (action >= spec.action.low).all()
    assert (action <= spec.action.high).all()
    if abs(mean) <= 1e4:
        clipped = np.array([[mean, np.clip(log_std, -20, 2)]])
        u = clipped[0, 0] + np.exp(clipped[0, 1]) * noise[:, 0].astype(np.float64)
        log_cosh = np.abs(u) + np.log1p(np.exp(-2 * np.abs(u))) - math.log(2)
        density = -0.5 * noise[:, 0].astype(np.float64) ** 2 - clipped[0, 1] - 0.5 * math.log(2 * math.pi)
        np.testing.assert_allclose(extras["log_prob"], density + 2 * log_cosh - math.log(0.2), rtol=1e-5)


def test_a_saturated_action_never_leaves_its_box():
    rng = np.random.default_rng(0)
    noise = np.array([[6.7], [-6.7]], np.float32)
    observation = np.zeros((2, 5), np.float32)
    for dtype in (np.float32, np.float64):
        for _ in range(200):
            low, high = np.sort(rng.normal(size=2) * 10 ** rng.uniform(-3, 3))
            spec = box_spec([low], [high], dtype=dtype)
            action, _ = act(constant_policy(spec, [0, 2], ()), spec, observation, noise)
            assert (action >= spec.action.low).all()
            assert (action <= spec.action.high).all()
            assert action[0] - action[1] > 0.99 * (high - low)


@pytest.mark.parametrize(("low", "high"), [(-1, 1), (-3, 5), (0.25, 0.5)])
@pytest.mark.parametrize("head", [(0.3, -0.5), (-1.0, 0.4)])
def test_the_density_integrates_to_one_over_the_box(low, high, head):
    spec = box_spec([low], [high])
    z = np.linspace(-6, 6, 20_001, dtype=np.float32)[:, None]
    action, extras = act(
        constant_policy(spec, head), spec, np.zeros((len(z), 5), np.float32), z, ("log_prob",)
    )
    density, a = np.exp(extras["log_prob"].astype(np.float64)), action[:, 0].astype(np.float64)
    integral = ((density[1:] + density[:-1]) / 2 * np.diff(a)).sum()
    assert integral == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("spec", [box_spec([-3, 0.5], [5, 0.75]), discrete_spec(6)], ids=["box", "discrete"])
def test_a_row_does_not_depend_on_the_others(spec):
    policy = MLPPolicy(spec, hidden=(32, 32), extras=("log_prob",))
    policy.load(random_weights(policy.parameters, seed=5))
    rng = np.random.default_rng(3)
    observation = rng.standard_normal((33, 5)).astype(np.float32)
    kind, size = policy.noise
    noise = rng.random((33, size), np.float32) if kind == "uniform" else rng.standard_normal((33, size))
    noise = noise.astype(np.float32)
    together, extras = act(policy, spec, observation, noise, ("log_prob",))
    others = 1000 * rng.standard_normal((33, 5)).astype(np.float32)
    for row in (0, 7, 32):
        alone, extras_alone = act(policy, spec, observation[[row]], noise[[row]], ("log_prob",))
        mixed = others.copy()
        mixed[row] = observation[row]
        among, extras_among = act(policy, spec, mixed, noise, ("log_prob",))
        np.testing.assert_allclose(alone[0], together[row], rtol=0, atol=1e-6)
        np.testing.assert_allclose(among[row], together[row], rtol=0, atol=1e-6)
        assert extras_alone["log_prob"][0] == pytest.approx(extras["log_prob"][row], abs=1e-5)
        assert extras_among["log_prob"][row] == pytest.approx(extras["log_prob"][row], abs=1e-5)


def test_weights_may_be_overwritten_after_load():
    spec = box_spec([-1], [1])
    policy = MLPPolicy(spec, hidden=(4,))
    weights = random_weights(policy.parameters, seed=6)
    policy.load(weights)
    observation, noise = np.ones((2, 5), np.float32), np.zeros((2, 1), np.float32)
    before, _ = act(policy, spec, observation, noise)
    for array in weights.values():
        array[...] = np.nan
    after, _ = act(policy, spec, observation, noise)
    assert np.array_equal(before, after)


@pytest.mark.parametrize("spec", [box_spec([-1, -1], [1, 1]), discrete_spec(3)], ids=["box", "discrete"])
def test_initial_parameters_are_a_function_of_the_seed_scaled_by_fan_in(spec):
    policy = MLPPolicy(spec, hidden=(400, 300))
    first, again, other = (policy.initial_parameters(seed) for seed in (1, 1, 2))
    assert list(first) == list(policy.parameters)
    outputs = {
        "kernel_0": (5, 400),
        "kernel_1": (400, 300),
        "kernel_2": (300, 3 if spec.action.discrete else 4),
    }
    for name, array in first.items():
        assert array.dtype == np.float32
        assert array.shape == policy.parameters[name].shape
        assert np.array_equal(array, again[name])
        if name.startswith("bias"):
            assert not array.any()
            continue
        assert array.shape == outputs[name]
        assert not np.array_equal(array, other[name])
        expected = 1 / math.sqrt(array.shape[0])
        # Four standard errors of a standard deviation.
        assert array.std() == pytest.approx(expected, rel=4 / math.sqrt(2 * array.size))


def test_unknown_extras_are_named_with_what_is_allowed():
    with pytest.raises(ValueError, match=r"\['advantage'\].*log_prob.*mean_action.*policy_version"):
        MLPPolicy(box_spec([-1], [1]), hidden=(), extras=("log_prob", "advantage"))
    with pytest.raises(ValueError, match="discrete action has no mean_action"):
        MLPPolicy(discrete_spec(2), hidden=(), extras=("mean_action",))


def test_declared_extras_have_the_shapes_of_the_action():
    spec = box_spec([[-1, -1, -1]], [[1, 1, 1]])
    extras = MLPPolicy(spec, hidden=(), extras=("policy_version", "mean_action", "log_prob")).extras
    assert {name: (field.shape, field.dtype) for name, field in extras.items()} == {
        "policy_version": ((), np.int64),
        "mean_action": ((1, 3), np.float32),
        "log_prob": ((), np.float32),
    }
    assert MLPPolicy(spec, hidden=()).extras == {}


@pytest.mark.parametrize(("low", "high"), [(-np.inf, np.inf), (0, np.inf), (-np.inf, 1)])
def test_an_unbounded_box_is_refused_by_name(low, high):
    with pytest.raises(ValueError, match=r"needs a bounded action space.*inf"):
        mlp_policy(hidden=(4,)).build(box_spec([0, low], [1, high]), batched=False)


def random_actions(spec, draws=20_000):
    policy = RandomPolicy(spec)
    kind, size = policy.noise
    assert kind == "uniform"
    noise = np.empty((draws, 1, size), np.float32)
    noise_streams.uniform(noise_streams.stream_starts(4, np.arange(1)), 0, noise)
    edges = np.array([np.zeros(size), np.full(size, ALMOST_ONE)], np.float32)
    noise = np.concatenate([noise[:, 0], edges])
    return act(policy, spec, np.zeros((len(noise), 5), np.float32), noise)[0]


INF = np.inf
WIDEST = np.finfo(np.float32).max


@pytest.mark.parametrize(
    ("low", "high", "drawn_low", "drawn_high"),
    [
        ([-1, -1], [1, 1], [-1, -1], [1, 1]),
        ([-3, 0.1], [5, 0.3], [-3, 0.1], [5, 0.3]),
        ([[-2, 7, 0]], [[2, 7, 10]], [[-2, 7, 0]], [[2, 7, 10]]),
        ([-INF, -INF], [INF, 0.5], [-1, -1], [1, 0.5]),
        ([0, 5], [INF, INF], [0, 5], [1, 7]),  # a side that +-1 would put beyond the other one
        ([-INF, -WIDEST], [-5, WIDEST], [-7, -WIDEST], [-5, WIDEST]),
    ],
)
def test_random_actions_cover_the_box_evenly(low, high, drawn_low, drawn_high):
    spec = box_spec(low, high)
    action = random_actions(spec).astype(np.float64)
    drawn_low, drawn_high = (np.asarray(x, np.float32).astype(np.float64) for x in (drawn_low, drawn_high))
    assert (action >= spec.action.low).all()
    assert (action <= spec.action.high).all()
    width = np.where(drawn_high > drawn_low, drawn_high - drawn_low, 1)
    unit = (action - drawn_low) / width
    assert unit.min() >= 0
    assert unit.max() <= 1
    moving = (drawn_high > drawn_low).ravel()
    for column in unit.reshape(len(unit), -1)[:, moving].T:
        counts = np.histogram(column, bins=10, range=(0, 1))[0]
        assert (np.abs(counts - len(column) / 10) < 5 * math.sqrt(len(column) / 10)).all()


@pytest.mark.parametrize("num_actions", [1, 2, 3, 7, 18])
def test_random_discrete_actions_are_even(num_actions):
    action = random_actions(discrete_spec(num_actions))
    counts = np.bincount(action, minlength=num_actions)
    assert len(counts) == num_actions
    mean = len(action) / num_actions
    assert (np.abs(counts - mean) < 5 * math.sqrt(mean)).all()


def test_the_random_policy_has_nothing_to_learn():
    policy = random_policy().build(discrete_spec(3), batched=True)
    assert policy.parameters == {}
    assert policy.extras == {}
    assert policy.initial_parameters(0) == {}
    policy.load({})
