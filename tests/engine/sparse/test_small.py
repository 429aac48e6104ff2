"""Small dense layers inside large ones, against networks built small from the beginning."""

from itertools import pairwise

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.networks import init_critic, init_mlp
from engine.sparse import masks
from engine.sparse.compact import compact
from engine.sparse.small import small

ACTOR = {name: np.asarray(leaf) for name, leaf in init_mlp(jax.random.key(0), (39, 64, 64, 8)).items()}


def test_the_counts_are_those_of_the_nearest_small_network():
    mask, _ = small(ACTOR, 0.9)
    # 39 u + u u + 8 u of 7104 weights: 615 for u = 11, 708 for u = 12, and 710.4 are left.
    assert masks.counts(mask) == ({"kernel_0": 39 * 12, "kernel_1": 12 * 12, "kernel_2": 12 * 8}, 708)


def test_the_twins_are_as_small_as_each_other():
    critic = init_critic(jax.random.key(1), (5, 16, 16, 1))
    mask, _ = small(critic, 0.8)
    # 5 u + u u + u of 352 weights in each: 55 for u = 5, 72 for u = 6, and 70.4 are left.
    assert {prefix: masks.counts(part)[1] for prefix, part in masks.networks(mask).items()} == {
        "q0/": 72,
        "q1/": 72,
    }


def test_kept_weights_have_the_variance_of_their_fewer_inputs():
    _, weights = small(ACTOR, 0.9)
    ratio = weights["kernel_1"][:12, :12] / ACTOR["kernel_1"][:12, :12]
    np.testing.assert_allclose(ratio, (64 / 12) ** 0.5, rtol=1e-6)
    np.testing.assert_array_equal(weights["kernel_0"][:, :12], ACTOR["kernel_0"][:, :12])


def test_it_is_the_small_network_that_is_found_in_it():
    mask, weights = small(ACTOR, 0.9)
    found = compact(mask, weights)
    assert [found.parameters[f"kernel_{i}"].shape for i in range(3)] == [(39, 12), (12, 12), (12, 8)]


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.integers(1, 40), min_size=2, max_size=5),
    st.floats(0, 1, exclude_max=True),
)
def test_no_other_share_of_the_widths_is_nearer(widths, sparsity):
    parameters = {f"kernel_{i}": np.ones(shape, np.float32) for i, shape in enumerate(pairwise(widths))}
    mask, weights = small(parameters, sparsity)
    size = sum(leaf.size for leaf in parameters.values())
    wide, hidden = max(widths[1:-1], default=1), widths[1:-1]

    def count(units):
        inner = [max(1, round(units / wide * width)) for width in hidden]
        whole = [widths[0], *inner, widths[-1]]
        return sum(a * b for a, b in pairwise(whole))

    off = [abs(count(units) - (1 - sparsity) * size) for units in range(1, wide + 1)]
    assert abs(masks.counts(mask)[1] - (1 - sparsity) * size) == pytest.approx(min(off))
    for name, kept in mask.items():
        assert kept.any()
        assert not weights[name][~kept].any()


@pytest.mark.parametrize("sparsity", [-0.1, 1.0])
def test_a_sparsity_that_cannot_be_is_refused(sparsity):
    with pytest.raises(ValueError, match="sparsity"):
        small(ACTOR, sparsity)
