import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastcollect.support import noise


def draw(kind, seed, envs, first, steps, size):
    out = np.empty((steps, len(envs), size), np.float32)
    noise.FILL[kind](noise.stream_starts(seed, np.asarray(envs)), first, out)
    return out


def splitmix64(start, count):
    """The published recurrence, in Python integers."""
    mask, state, out = 2**64 - 1, start, []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        out.append(z ^ (z >> 31))
    return out


def test_uniform_numbers_are_the_published_generator():
    # Vigna's reference: seed 1234567 gives 6457827717110365317 first.
    assert splitmix64(1234567, 1)[0] == 6457827717110365317
    start = noise.stream_starts(3, np.array([5]))
    expected = [(bits >> 40) * 2.0**-24 for bits in splitmix64(int(start[0]), 8)]
    assert draw("uniform", 3, [5], 0, 4, 2).ravel().tolist() == expected


@pytest.mark.parametrize("kind", ["uniform", "normal"])
@given(
    envs=st.lists(st.integers(0, 1000), min_size=1, max_size=6, unique=True),
    first=st.integers(0, 10_000),
    steps=st.integers(1, 9),
    size=st.integers(1, 4),
)
def test_a_number_depends_on_seed_environment_and_step_alone(kind, envs, first, steps, size):
    whole = draw(kind, 1, envs, first, steps, size)
    for row, env in enumerate(envs):
        for t in range(steps):
            alone = draw(kind, 1, [env], first + t, 1, size)
            assert np.array_equal(alone[0, 0], whole[t, row])


def test_moments_and_tails_of_both_distributions():
    normal = draw("normal", 0, range(100), 0, 2000, 4).astype(np.float64).ravel()
    n = normal.size
    assert abs(normal.mean()) < 4 / np.sqrt(n)
    assert abs(normal.var() - 1) < 4 * np.sqrt(2 / n)
    assert abs((normal**3).mean()) < 4 * np.sqrt(15 / n)
    assert abs((normal**4).mean() - 3) < 4 * np.sqrt(96 / n)
    assert np.isfinite(normal).all()
    uniform = draw("uniform", 0, range(100), 0, 2000, 4).astype(np.float64).ravel()
    assert uniform.min() >= 0
    assert uniform.max() < 1
    counts = np.histogram(uniform, 64, (0, 1))[0]
    assert ((counts - n / 64) ** 2 / (n / 64)).sum() < 120  # chi square, 63 degrees of freedom, p < 1e-5


def test_streams_of_neighbours_seeds_and_steps_are_uncorrelated():
    a = draw("normal", 0, range(64), 0, 3000, 1)[..., 0].astype(np.float64)
    b = draw("normal", 1, range(64), 0, 3000, 1)[..., 0].astype(np.float64)
    bound = 5 / np.sqrt(a.size)
    assert abs((a[:, 1:] * a[:, :-1]).mean()) < bound
    assert abs((a[1:] * a[:-1]).mean()) < bound
    assert abs((a * b).mean()) < bound


def test_extreme_bits_give_finite_normals(monkeypatch):
    for bits in (0, 2**64 - 1, 2**32 - 1, 2**64 - 2**32):
        monkeypatch.setattr(noise, "_bits", lambda *_, b=bits: np.full((1, 1, 1), b, np.uint64))
        out = np.empty((1, 1, 1), np.float32)
        noise.normal(np.zeros(1, np.uint64), 0, out)
        assert np.isfinite(out).all()
