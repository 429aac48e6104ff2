"""Gradients of a layer against their definition in float64, at sizes on both sides of every choice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine.networks import linear


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
