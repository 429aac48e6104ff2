"""What policies write beside each action: one table in each twin, networks of their own included."""

import numpy as np
import pytest
from support.collectors import in_rounds, one_round
from support.specs import act, box_spec, discrete_spec, random_weights, reference_head

from engine import policies as in_jax
from fastcollect import mlp_policy
from fastcollect.control.collector import Collector
from fastcollect.envs.registry import EnvConfig
from fastcollect.policies import cnn, mlp, network

BOX, DISCRETE = box_spec([-3, 0.5], [5, 0.75], (2, 3)), discrete_spec(5, (2, 3))
IMAGE = discrete_spec(4, (23, 37, 2), np.uint8)
SMALL = {"channels": (5, 7), "dense": 11}


def build(name, spec, names, **kwargs):
    """(NumPy policy, JAX policy) with the same weights, and these."""
    numpy_twin = {"MLPPolicy": mlp, "CNNPolicy": cnn}[name]
    pair = [getattr(module, name)(spec, extras=names, **kwargs) for module in (numpy_twin, in_jax)]
    weights = random_weights(pair[0].parameters, 3)
    for policy in pair:
        policy.load(weights)
    return pair, weights


def draw(policy, spec, batch=7):
    rng = np.random.default_rng(1)
    shape = (batch, *spec.observation_shape)
    images = spec.observation_dtype == np.uint8
    observation = rng.integers(0, 256, shape, np.uint8) if images else rng.standard_normal(shape, np.float32)
    kind, size = policy.noise
    return observation, (rng.random if kind == "uniform" else rng.standard_normal)((batch, size), np.float32)


def test_both_twins_compute_the_same_extras():
    box = np.zeros(2, np.float32), np.ones(2, np.float32)
    known = in_jax.drawn(np.zeros((3, 4), np.float32), np.zeros((3, 2), np.float32), box)
    assert {name for name, entry in network.EXTRAS.items() if entry.compute} == known.keys() - {"action"}


def computed(spec):
    """Every extra of the table that a policy computes in this space."""
    names = [n for n, entry in network.EXTRAS.items() if entry.compute or entry.network]
    return tuple(n for n in names if n != "mean_action" or not spec.action.discrete)


@pytest.mark.parametrize(
    ("name", "spec", "kwargs"),
    [
        ("MLPPolicy", BOX, {"hidden": (9, 6)}),
        ("MLPPolicy", DISCRETE, {"hidden": (9,)}),
        ("CNNPolicy", IMAGE, SMALL),
    ],
    ids=["box", "discrete", "images"],
)
def test_the_twins_agree_on_every_extra_of_the_table(name, spec, kwargs):
    names = computed(spec)
    assert "value" in names
    pair, _ = build(name, spec, names, **kwargs)
    observation, noise = draw(pair[0], spec)
    (action, first), (other, second) = (act(policy, spec, observation, noise, names) for policy in pair)
    np.testing.assert_allclose(action, other, rtol=1e-5, atol=1e-5)
    for each in names:
        assert np.ptp(first[each]) > 1e-3
        np.testing.assert_allclose(first[each], second[each], rtol=2e-5, atol=2e-5, err_msg=each)


@pytest.mark.parametrize("hidden", [(), (9,), (9, 6)])
@pytest.mark.parametrize("spec", [BOX, DISCRETE], ids=["box", "discrete"])
def test_a_value_network_is_one_of_its_own(spec, hidden):
    pair, weights = build("MLPPolicy", spec, ("value", "log_prob"), hidden=hidden)
    observation, noise = draw(pair[0], spec)
    expected = reference_head(weights, observation, "value/")[:, 0]
    alone, _ = build("MLPPolicy", spec, ("log_prob",), hidden=hidden)
    assert list(alone[0].parameters) == [name for name in pair[0].parameters if "value/" not in name]
    own = {n: f.shape for n, f in pair[0].parameters.items() if n.startswith("value/")}
    widths = [6, *hidden, 1]
    assert own == {
        f"value/{kind}_{i}": shape
        for i in range(len(widths) - 1)
        for kind, shape in (("kernel", (widths[i], widths[i + 1])), ("bias", (widths[i + 1],)))
    }
    for policy, without in zip(pair, alone, strict=True):
        action, values = act(policy, spec, observation, noise, ("value",))
        np.testing.assert_allclose(values["value"], expected, rtol=1e-5, atol=1e-5)
        without.load({n: weights[n] for n in alone[0].parameters})
        assert np.array_equal(action, act(without, spec, observation, noise)[0])
    # The actor's first weights are those of a policy without a value.
    first, other = pair[0].initial_parameters(4), alone[0].initial_parameters(4)
    assert all(np.array_equal(first[n], other[n]) for n in other)


def test_a_value_of_images_stands_on_the_shared_features():
    pair, weights = build("CNNPolicy", IMAGE, ("value",), **SMALL)
    observation, noise = draw(pair[0], IMAGE)
    headless = {n: a for n, a in weights.items() if not n.startswith("value/")}
    assert {n for n in pair[0].parameters if n.startswith("value/")} == {"value/kernel_0", "value/bias_0"}
    for policy in pair:
        _, first = act(policy, IMAGE, observation, noise, ("value",))
        # Of the dense layer's outputs only the first one counts, with the weight one.
        kernel = np.zeros((11, 1), np.float32)
        kernel[3] = 1
        policy.load(headless | {"value/kernel_0": kernel, "value/bias_0": np.full(1, 0.5, np.float32)})
        _, feature = act(policy, IMAGE, observation, noise, ("value",))
        assert feature["value"].min() >= 0.5  # a ReLU's output
        assert np.ptp(feature["value"]) > 0
        assert not np.array_equal(first["value"], feature["value"])


def test_adding_an_extra_is_one_entry_in_each_table(monkeypatch):
    new = ("surprise", "cost")
    monkeypatch.setitem(network.EXTRAS, "surprise", network.Extra(lambda head: -head.log_prob()))
    monkeypatch.setitem(network.EXTRAS, "cost", network.Extra(network=True))

    def drawn(*given, drawn=in_jax.drawn):
        return {**(known := drawn(*given)), "surprise": -known["log_prob"]}

    monkeypatch.setattr(in_jax, "drawn", drawn)
    pair, weights = build("MLPPolicy", BOX, ("log_prob", *new), hidden=(9,))
    observation, noise = draw(pair[0], BOX)
    for policy in pair:
        _, got = act(policy, BOX, observation, noise, ("log_prob", *new))
        assert np.array_equal(got["surprise"], -got["log_prob"])
        expected = reference_head(weights, observation, "cost/")[:, 0]
        np.testing.assert_allclose(got["cost"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("models", (0, 1))
def test_a_collector_hands_out_values_of_the_published_weights(models):
    policy = mlp_policy((16,), extras=("value", "policy_version"))
    with Collector(in_rounds(EnvConfig(id="CartPole-v1"), policy, models=models)) as collector:
        weights = collector.policy.initial_parameters(5)
        for version in (1, 2):
            for block in one_round(collector):
                assert (block.extras["policy_version"] == version).all()
                rows = block.observation[:-1].reshape(-1, 4)
                expected = reference_head(weights, rows, "value/")[:, 0].reshape(block.reward.shape)
                np.testing.assert_allclose(block.extras["value"], expected, rtol=1e-4, atol=1e-5)
            weights = collector.policy.initial_parameters(9)
            collector.publish(weights)
        without = {n: a for n, a in weights.items() if not n.startswith("value/")}
        with pytest.raises(ValueError, match="missing parameter 'value/kernel_0'"):
            collector.publish(without)
