"""The running moments against NumPy's on all rows at once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.algorithms.base import stacked
from engine.normalizer import Moments

WIDTH = 3


def moments_of(rows, cuts=()):
    moments = Moments.empty(rows.shape[1])
    for part in np.split(rows, sorted(cuts)):
        moments = moments.update(part)
    return moments


@st.composite
def rows_and_cuts(draw):
    count = draw(st.integers(1, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = 10.0 ** rng.integers(-3, 4, WIDTH)
    rows = rng.normal(rng.normal(size=WIDTH) * scale, scale, (count, WIDTH))
    return rows, draw(st.lists(st.integers(0, count), max_size=6))


@settings(deadline=None)
@given(rows_and_cuts())
def test_any_split_gives_the_mean_and_variance_of_all_rows(case):
    rows, cuts = case
    moments = moments_of(rows, cuts)
    spread = rows.std(0) + abs(rows.mean(0))
    assert moments.count == len(rows)
    assert (abs(moments.mean - rows.mean(0)) <= 1e-13 * spread).all()
    assert (abs(moments.squares / moments.count - rows.var(0)) <= 1e-12 * spread**2).all()


@settings(deadline=None)
@given(rows_and_cuts())
def test_scaling_gives_normalised_rows_mean_zero_and_variance_one(case):
    rows, cuts = case
    mean, scale = moments_of(rows, cuts).scaling(variance_floor=1e-12)
    assert mean.dtype == scale.dtype == np.float32
    np.testing.assert_allclose(mean, rows.mean(0), rtol=1e-6)
    np.testing.assert_allclose(scale, 1 / np.sqrt(rows.var(0) + 1e-12), rtol=1e-6)


def test_float32_rows_are_summed_in_float64():
    rows = np.random.default_rng(0).normal(5, 1, (5000, WIDTH)).astype(np.float32)
    moments = moments_of(rows, range(0, 5000, 10))
    assert moments.mean.dtype == moments.squares.dtype == np.float64
    exact = rows.astype(np.float64)
    np.testing.assert_allclose(moments.mean, exact.mean(0), rtol=1e-13)
    np.testing.assert_allclose(moments.squares, exact.var(0) * 5000, rtol=1e-12)


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_variance_survives_an_offset_of_a_million_times_the_deviation(block):
    rows = np.random.default_rng(1).normal(1e6, 1, (2000, WIDTH))
    moments = moments_of(rows, range(0, 2000, block))
    np.testing.assert_allclose(moments.squares / 2000, (rows - 1e6).var(0), rtol=1e-9)


def test_before_any_row_scaling_is_the_identity():
    empty = Moments.empty(WIDTH)
    for moments in (empty, empty.update(np.zeros((0, WIDTH)))):
        mean, scale = moments.scaling(variance_floor=1e-2)
        assert moments.count == 0
        assert mean.dtype == scale.dtype == np.float32
        assert mean.tolist() == [0] * WIDTH
        assert scale.tolist() == [1] * WIDTH


def test_no_rows_change_nothing():
    moments = moments_of(np.random.default_rng(2).normal(size=(5, WIDTH)))
    after = moments.update(np.zeros((0, WIDTH), np.float32))
    assert after.count == 5
    assert np.array_equal(after.mean, moments.mean)
    assert np.array_equal(after.squares, moments.squares)


def test_the_floor_bounds_the_scale_of_an_input_that_never_moved():
    rows = np.tile(np.float32([0.1, -3, 0]), (100, 1))
    mean, scale = moments_of(rows, [1, 33]).scaling(variance_floor=1e-4)
    # Exact, so that a constant input is normalised to 0 and not to rounding times the scale.
    assert np.array_equal(mean, rows[0])
    np.testing.assert_allclose(scale, 100, rtol=1e-6)


def test_update_leaves_the_moments_and_the_rows_it_was_given():
    first = moments_of(np.ones((4, WIDTH)))
    rows = np.full((2, WIDTH), 5.0)
    second = first.update(rows)
    assert (first.count, second.count) == (4, 6)
    assert (first.mean == 1).all()
    assert (first.squares == 0).all()
    assert (rows == 5).all()


def test_stacked_moments_scale_as_each_of_them_does():
    rng = np.random.default_rng(3)
    several = [Moments.empty(WIDTH), *(moments_of(rng.normal(k, k, (9 * k, WIDTH))) for k in (1, 2))]
    floors = [1e-4, 1e-2, 1.0]
    mean, scale = stacked(several).scaling(np.array(floors)[:, None])
    for i, (moments, floor) in enumerate(zip(several, floors, strict=True)):
        assert np.array_equal((mean[i], scale[i]), moments.scaling(floor))
