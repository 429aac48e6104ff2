"""Running mean and variance of observations, in NumPy and float64.

Chan, Golub and LeVeque 1983, "Algorithms for Computing the Sample Variance", equation 2.1.
"""

from typing import Any

import numpy as np
from flax import struct


class Moments(struct.PyTreeNode):
    """What was seen of ``count`` observations: their mean and the sum of squared deviations, (o,) float64.

    The arrays are NumPy's, because JAX has no float64 here; see ``engine.algorithms.base.learn``.
    """

    count: Any
    mean: Any
    squares: Any

    @classmethod
    def empty(cls, size: int) -> "Moments":
        """Nothing seen yet."""
        return cls(0, np.zeros(size), np.zeros(size))

    def update(self, rows: np.ndarray) -> "Moments":
        """After these rows, (n, o), too."""
        if not len(rows):
            return self
        rows = rows.astype(np.float64)
        mean = rows.mean(0)
        squares = np.square(rows - mean).sum(0)
        count = self.count + len(rows)
        delta, share = mean - self.mean, len(rows) / count
        squares = self.squares + squares + delta**2 * (self.count * share)
        return Moments(count, self.mean + delta * share, squares)

    def scaling(self, variance_floor: Any) -> tuple[np.ndarray, np.ndarray]:
        """(mean, 1 / sqrt(variance + floor)), (o,) float32: the identity before anything was seen.

        The floor keeps an input that hardly moved so far from exploding when it does. Moments of several
        runs, stacked along a first axis, give as many rows; their floors are (runs, 1).
        """
        count = np.asarray(self.count)[..., None]
        mean = np.where(count > 0, self.mean, 0)
        scale = np.where(count > 0, 1 / np.sqrt(self.squares / np.maximum(count, 1) + variance_floor), 1)
        return mean.astype(np.float32), scale.astype(np.float32)
