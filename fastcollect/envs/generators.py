"""One NumPy generator per environment, and their states as a plain array."""

from collections.abc import Sequence

import numpy as np

_WORD = (1 << 64) - 1


def make_generators(seeds: np.ndarray) -> list[np.random.Generator]:
    """One PCG64 generator for each seed, as ``np.random.default_rng`` and gymnasium's ``np_random`` make it.

    seeds: (n,) integers, not negative.
    """
    return [np.random.default_rng(int(seed)) for seed in seeds]


def generators_to_array(generators: Sequence[np.random.Generator]) -> np.ndarray:
    """The generators' states, (n, 6) uint64: state and increment (low, high word), spare 32 bits."""
    rows = np.empty((len(generators), 6), np.uint64)
    for row, generator in zip(rows, generators, strict=True):
        outer = generator.bit_generator.state
        state, increment = outer["state"]["state"], outer["state"]["inc"]
        row[:4] = state & _WORD, state >> 64, increment & _WORD, increment >> 64
        row[4:] = outer["has_uint32"], outer["uinteger"]
    return rows


def restore_generators(generators: Sequence[np.random.Generator], rows: np.ndarray) -> None:
    """Put every generator into the state that ``generators_to_array`` saved, in place."""
    for row, generator in zip(rows, generators, strict=True):
        state_low, state_high, inc_low, inc_high, has_uint32, uinteger = (int(word) for word in row)
        generator.bit_generator.state = {
            "bit_generator": "PCG64",
            "state": {"state": state_low | state_high << 64, "inc": inc_low | inc_high << 64},
            "has_uint32": has_uint32,
            "uinteger": uinteger,
        }
