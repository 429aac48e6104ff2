"""Durations as a histogram: cheap to fill in a worker, small enough for its shared memory."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

_LEAST, _PER_OCTAVE, _OCTAVES = 1e-7, 8, 28  # 0.1 us to 27 s, 9 % a bucket
BUCKETS = _PER_OCTAVE * _OCTAVES


def bucket(seconds: float) -> int:
    """The bucket that counts a duration; durations out of range count in the first or the last one."""
    if seconds <= _LEAST:
        return 0
    return min(int(math.log2(seconds / _LEAST) * _PER_OCTAVE), BUCKETS - 1)


@dataclass(frozen=True)
class Latencies:
    """How many durations fell into each ``bucket``. Two histograms can be added and subtracted."""

    counts: Sequence[int] = (0,) * BUCKETS

    def __add__(self, other: "Latencies") -> "Latencies":
        return Latencies(tuple(a + b for a, b in zip(self.counts, other.counts, strict=True)))

    def __sub__(self, earlier: "Latencies") -> "Latencies":
        return Latencies(tuple(a - b for a, b in zip(self.counts, earlier.counts, strict=True)))

    def total(self) -> int:
        """How many durations there are."""
        return sum(self.counts)

    def quantile(self, q: float) -> float:
        """Seconds that a share ``q`` of the durations does not exceed, to 9 %; NaN where there are none."""
        left = q * self.total()
        for number, count in enumerate(self.counts):
            if count and left <= count:
                return _LEAST * 2 ** ((number + left / count) / _PER_OCTAVE)
            left -= count
        return math.nan
