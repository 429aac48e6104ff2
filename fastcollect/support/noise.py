"""Counter-based random numbers: a number depends on (seed, environment, step, index), never on the batch.

SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators"): output i of a
stream is mix64(start + (i + 1) * gamma). Each environment has a start of its own, so any rectangle of
(steps, environments, indices) is computed in one vectorised pass, and resuming needs no state.
"""

import numpy as np

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_MASK = (1 << 64) - 1


def mix64(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64, in place on a uint64 array."""
    x ^= x >> np.uint64(30)
    x *= _MIX_1
    x ^= x >> np.uint64(27)
    x *= _MIX_2
    x ^= x >> np.uint64(31)
    return x


def stream_starts(seed: int, env_indices: np.ndarray) -> np.ndarray:
    """One uint64 start for each environment index: hashed twice, so that neighbours share nothing."""
    base = mix64(np.array([seed & _MASK], np.uint64))
    starts = (env_indices.astype(np.uint64) + np.uint64(1)) * _GAMMA ^ base
    return mix64(mix64(starts))


def _bits(starts: np.ndarray, first_step: int, shape: tuple[int, ...]) -> np.ndarray:
    """uint64 of shape (steps, envs, size)."""
    steps, _, size = shape
    counter = np.arange(first_step * size + 1, (first_step + steps) * size + 1, dtype=np.uint64)
    counter *= _GAMMA
    return mix64(counter.reshape(steps, 1, size) + starts[None, :, None])


def uniform(starts: np.ndarray, first_step: int, out: np.ndarray) -> None:
    """Fill ``out``, float32 (steps, envs, size), with numbers in [0, 1)."""
    bits = _bits(starts, first_step, out.shape)
    bits >>= np.uint64(40)
    np.multiply(bits, np.float32(2.0**-24), out=out, casting="unsafe")


def normal(starts: np.ndarray, first_step: int, out: np.ndarray) -> None:
    """Fill ``out``, float32 (steps, envs, size), with standard normals (Box and Muller 1958)."""
    bits = _bits(starts, first_step, out.shape)
    # 32 bits for the radius, shifted off zero, and 32 for the angle: |z| reaches 6.7.
    radius = ((bits >> np.uint64(32)).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-32)
    np.log(radius, out=radius)
    radius *= np.float32(-2)
    # A radius that rounded up to one has logarithm zero; it must not become -0's square root of a negative.
    np.sqrt(np.maximum(radius, 0, out=radius), out=radius)
    angle = (bits & np.uint64(0xFFFFFFFF)).astype(np.float32)
    angle *= np.float32(2 * np.pi * 2.0**-32)
    np.cos(angle, out=angle)
    np.multiply(radius, angle, out=out)


FILL = {"uniform": uniform, "normal": normal}
