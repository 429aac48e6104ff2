"""The convolutional policies, in NumPy and in JAX, against a convolution written out here in float64."""

import itertools

import numpy as np
import pytest
from support.specs import act, box_spec, discrete_spec

from engine import policies as in_jax
from fastcollect import cnn_policy
from fastcollect.policies import cnn as in_numpy

IMAGES = [(64, 64, 3), (72, 80, 1), (20, 20, 1), (23, 37, 2)]
SMALL = {"channels": (5, 7), "dense": 11}


def image_spec(shape, discrete=True):
    if discrete:
        return discrete_spec(6, shape, np.uint8)
    return box_spec([-3, 0.5], [5, 0.75], shape, np.uint8)


def draw_weights(parameters, seed=0):
    """Kernels that keep the size of what passes through them, and biases that are not zero."""
    rng = np.random.default_rng(seed)
    return {
        name: (
            rng.standard_normal(field.shape)
            * (0.3 if len(field.shape) == 1 else (2 / np.prod(field.shape[:-1])) ** 0.5)
        ).astype(np.float32)
        for name, field in parameters.items()
    }


def draw_images(shape, batch, seed=1):
    return np.random.default_rng(seed).integers(0, 256, (batch, *shape), np.uint8)


def reference_convolution(image, kernel, bias, stride):
    size, _, _, channels = kernel.shape
    rows, columns = ((side - size) // stride + 1 for side in image.shape[:2])
    out = np.empty((rows, columns, channels))
    for y, x in itertools.product(range(rows), range(columns)):
        window = image[y * stride : y * stride + size, x * stride : x * stride + size]
        for k in range(channels):
            out[y, x, k] = max(0.0, (window * kernel[..., k]).sum() + bias[k])
    return out


def reference_head(weights, images):
    """The network in float64, one image, one window and one channel at a time."""
    w = {name: array.astype(np.float64) for name, array in weights.items()}
    heads = []
    for image in images.astype(np.float64) / 255:
        x = reference_convolution(image, w["kernel_0"], w["bias_0"], 4)
        x = reference_convolution(x, w["kernel_1"], w["bias_1"], 2).ravel()
        x = np.maximum(x @ w["kernel_2"] + w["bias_2"], 0)
        heads.append(x @ w["kernel_3"] + w["bias_3"])
    return np.array(heads)


def build(spec, weights=None, **kwargs):
    """(NumPy policy, JAX policy) with the same weights."""
    pair = [module.CNNPolicy(spec, **{**SMALL, **kwargs}) for module in (in_numpy, in_jax)]
    weights = weights or draw_weights(pair[0].parameters)
    for policy in pair:
        policy.load(weights)
    return pair, weights


@pytest.mark.parametrize("shape", IMAGES)
def test_both_twins_compute_the_convolutions(shape):
    spec = image_spec(shape, discrete=False)
    pair, weights = build(spec, extras=("log_prob", "mean_action"))
    images = draw_images(shape, 3)
    head = reference_head(weights, images)
    assert np.abs(np.diff(head, axis=0)).max() > 0.1  # or the images would not matter
    low, high = spec.action.low, spec.action.high
    mean = (low + high) / 2 + (high - low) / 2 * np.tanh(head[:, :2])
    noise = np.random.default_rng(2).standard_normal((3, 2)).astype(np.float32)
    results = [act(policy, spec, images, noise, ("log_prob", "mean_action")) for policy in pair]
    for action, extras in results:
        np.testing.assert_allclose(extras["mean_action"], mean, rtol=2e-5, atol=2e-5)
        np.testing.assert_allclose(action, results[0][0], rtol=2e-5, atol=2e-5)
        np.testing.assert_allclose(extras["log_prob"], results[0][1]["log_prob"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", IMAGES[:2])
def test_both_twins_choose_by_the_reference_head(shape):
    spec = image_spec(shape)
    pair, weights = build(spec, extras=("log_prob",))
    images = draw_images(shape, 20)
    head = reference_head(weights, images)
    probability = np.exp(head) / np.exp(head).sum(1, keepdims=True)
    cumulative = probability.cumsum(1)
    noise = np.random.default_rng(3).random((20, 1), np.float32)
    expected = (noise >= cumulative[:, :-1]).sum(1)
    assert np.abs(cumulative - noise).min() > 1e-5
    assert len(set(expected.tolist())) > 2
    for policy in pair:
        action, extras = act(policy, spec, images, noise, ("log_prob",))
        assert np.array_equal(action, expected)
        chosen = np.log(probability[np.arange(20), expected])
        np.testing.assert_allclose(extras["log_prob"], chosen, rtol=1e-4, atol=1e-5)


def test_the_most_probable_action_needs_no_noise():
    spec = image_spec((64, 64, 3))
    pair, weights = build(spec, deterministic=True)
    images = draw_images((64, 64, 3), 8)
    expected = reference_head(weights, images).argmax(1)
    assert pair[0].noise is None
    for policy in pair:
        assert np.array_equal(act(policy, spec, images, None)[0], expected)


@pytest.mark.parametrize("twin", [0, 1], ids=["numpy", "jax"])
def test_a_row_does_not_depend_on_the_others_nor_on_what_was_there_before(twin):
    spec = image_spec((72, 80, 1), discrete=False)
    pair, _ = build(spec, extras=("log_prob",))
    policy, images = pair[twin], draw_images((72, 80, 1), 9)
    noise = np.random.default_rng(4).standard_normal((9, 2)).astype(np.float32)
    together, extras = act(policy, spec, images, noise, ("log_prob",))
    again = act(policy, spec, images, noise, ("log_prob",))
    assert np.array_equal(again[0], together)
    assert np.array_equal(again[1]["log_prob"], extras["log_prob"])
    for row in (0, 4, 8):
        alone, _ = act(policy, spec, images[[row]], noise[[row]])
        np.testing.assert_allclose(alone[0], together[row], rtol=1e-5, atol=1e-5)
    assert np.array_equal(act(policy, spec, images, noise)[0], together)
    backwards, _ = act(policy, spec, images[::-1], noise[::-1])  # not contiguous
    np.testing.assert_allclose(backwards[::-1], together, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("discrete", [True, False])
@pytest.mark.parametrize("shape", IMAGES)
def test_the_parameters_have_the_shapes_of_the_layers(shape, discrete):
    spec = image_spec(shape, discrete)
    config = cnn_policy(extras=("log_prob", "policy_version"))
    assert config.name == "cnn-16x32-256"
    reference, policy = (config.build(spec, batched=batched) for batched in (False, True))
    assert type(policy) is in_jax.CNNPolicy
    assert reference.parameters["kernel_0"].shape == (8, 8, shape[2], 16)
    assert reference.parameters["kernel_1"].shape == (4, 4, 16, 32)
    assert reference.parameters["kernel_3"].shape == (256, 6 if discrete else 4)
    assert list(reference.parameters) == [f"{kind}_{i}" for i in range(4) for kind in ("kernel", "bias")]


def test_initial_kernels_are_scaled_by_the_numbers_that_a_unit_sees():
    policy = cnn_policy().build(image_spec((64, 64, 3)), batched=False)
    weights = policy.initial_parameters(7)
    for name, array in weights.items():
        if name.startswith("bias"):
            assert not array.any()
        else:
            fan_in = np.prod(array.shape[:-1])
            assert array.std() == pytest.approx(fan_in**-0.5, rel=4 / (2 * array.size) ** 0.5)


@pytest.mark.parametrize("twin", [0, 1], ids=["numpy", "jax"])
def test_weights_may_be_overwritten_after_load_and_are_left_alone(twin):
    spec = image_spec((64, 64, 3), discrete=False)
    pair, weights = build(spec)
    kept = {name: array.copy() for name, array in weights.items()}
    pair[twin].load(weights)
    assert all(np.array_equal(weights[name], kept[name]) for name in kept)
    images, noise = draw_images((64, 64, 3), 2), np.zeros((2, 2), np.float32)
    before, _ = act(pair[twin], spec, images, noise)
    for array in weights.values():
        array[...] = np.nan
    assert np.array_equal(act(pair[twin], spec, images, noise)[0], before)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((5,), np.uint8), ((64, 64), np.uint8), ((64, 64, 3), np.float32), ((64, 19, 3), np.uint8)],
)
def test_what_is_no_image_is_refused_with_its_shape(shape, dtype):
    with pytest.raises(ValueError, match=r"\(h, w, c\) uint8 images of at least 20 x 20") as caught:
        cnn_policy().build(discrete_spec(3, shape, dtype), batched=False)
    assert str(shape) in str(caught.value)
    assert np.dtype(dtype).name in str(caught.value)


def test_widths_and_extras_that_do_not_exist_are_refused():
    spec = image_spec((64, 64, 3))
    for wrong in ({"channels": (16,)}, {"channels": (16, 0)}, {"dense": 0}):
        with pytest.raises(ValueError, match="allowed: two positive widths"):
            cnn_policy(**wrong).build(spec, batched=False)
    with pytest.raises(ValueError, match=r"\['advantage'\].*log_prob"):
        cnn_policy(extras=("advantage",)).build(spec, batched=False)
