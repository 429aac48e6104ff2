"""Gradients of a layer against their definition in float64, at sizes on both sides of every choice."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine.networks import init_mlp, linear, normalised_relu


def test_initial_weights_are_jaxs_own_draws_of_each_kernel_bit_for_bit():
    key, widths = jax.random.key(7), (40, 120, 1)
    initial = init_mlp(key, widths, "q1/")
    assert list(initial) == ["q1/kernel_0", "q1/bias_0", "q1/kernel_1", "q1/bias_1"]
    for i, shape in enumerate(itertools.pairwise(widths)):
        expected = jax.nn.initializers.lecun_normal()(jax.random.fold_in(key, i), shape)
        kernel, bias = np.asarray(initial[f"q1/kernel_{i}"]), np.asarray(initial[f"q1/bias_{i}"])
        assert (kernel.dtype, bias.dtype, bias.shape) == (np.float32, np.float32, shape[1:])
        assert np.array_equal(kernel, expected)
        assert not bias.any()


@pytest.mark.parametrize("outputs", [1, 8, 31, 32, 70])
@pytest.mark.parametrize("leading", [(), (5,), (2, 3)])
@pytest.mark.parametrize("inputs", [4, 40])
def test_gradients_of_a_layer(inputs, outputs, leading):
    rng = np.random.default_rng(inputs * 100 + outputs)
    x, kernel = rng.standard_normal((*leading, inputs)), rng.standard_normal((inputs, outputs))
    slope = rng.standard_normal((*leading, outputs))
    value, backward = jax.vjp(jax.jit(linear), jnp.float32(x), jnp.float32(kernel))
    got_x, got_kernel = backward(jnp.float32(slope))
    expected = np.zeros((inputs, outputs))
    for index in np.ndindex(leading):
        expected += np.outer(x[index], slope[index])
    close = {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(value, np.einsum("...i,io->...o", x, kernel), **close)
    np.testing.assert_allclose(got_kernel, expected, **close)
    np.testing.assert_allclose(got_x, np.einsum("...o,io->...i", slope, kernel), **close)
    assert got_x.shape == x.shape
    assert got_kernel.shape == kernel.shape


def normalised(x):
    z = x - x.mean(-1, keepdims=True)
    return np.maximum(z / np.sqrt((z**2).mean(-1, keepdims=True) + 1e-6), 0)


@pytest.mark.parametrize("shape", [(7, 5), (2, 3, 16), (9,)])
@pytest.mark.parametrize(("offset", "spread"), [(0.3, 1.0), (50.0, 0.1), (-2.0, 1e-3)])
def test_normalised_units_and_their_gradients_by_finite_differences(shape, offset, spread):
    rng = np.random.default_rng(len(shape))
    # The very numbers of float32, so that nothing is lost where the mean is many times the spread.
    x = np.float64(np.float32(offset + spread * rng.standard_normal(shape)))
    slope = rng.standard_normal(shape)
    value, backward = jax.vjp(jax.jit(normalised_relu), jnp.float32(x))
    step, expected = 1e-6 * spread, np.zeros(shape)
    for index in np.ndindex(shape):
        moved = np.zeros(shape)
        moved[index] = step
        expected[index] = ((normalised(x + moved) - normalised(x - moved)) * slope).sum() / (2 * step)
    np.testing.assert_allclose(value, normalised(x), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(backward(jnp.float32(slope))[0] * spread, expected * spread, atol=2e-3)


def test_units_that_are_all_equal_are_zero_and_a_population_is_its_members():
    value, backward = jax.vjp(normalised_relu, jnp.full((3, 8), 2.0))
    assert not np.any(value)
    assert np.isfinite(backward(jnp.ones((3, 8)))[0]).all()
    members = jnp.float32(np.random.default_rng(0).standard_normal((4, 5, 6)))
    together = jax.vmap(jax.grad(lambda x: (normalised_relu(x) ** 2 * jnp.arange(6)).sum()))(members)
    for member, got in zip(members, together, strict=True):
        alone = jax.grad(lambda x: (normalised_relu(x) ** 2 * jnp.arange(6)).sum())(member)
        np.testing.assert_allclose(got, alone, rtol=1e-5, atol=1e-5)
