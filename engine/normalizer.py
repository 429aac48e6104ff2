"""Running mean and variance of observations, in NumPy and float64.

Chan, Golub and LeVeque 1983, "Algorithms for Computing the Sample Variance", equation 2.1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Moments:
    """What was seen of ``count`` observations: their mean and the sum of squared deviations, (o,) float64."""

    count: int
    mean: np.ndarray
    squares: np.ndarray

    @classmethod
    def empty(cls, size: int) -> Moments:
        """Nothing seen yet."""
        return cls(0, np.zeros(size), np.zeros(size))

    def update(self, rows: np.ndarray) -> Moments:
        """After these rows, (n, o), too."""
        if not len(rows):
            return self
        rows = rows.astype(np.float64)
        mean = rows.mean(0)
        squares = np.square(rows - mean).sum(0)
        count = self.count + len(rows)
        delta = mean - self.mean
        share = len(rows) / count
        return Moments(
            count, self.mean + delta * share, self.squares + squares + delta**2 * (self.count * share)
        )

    def scaling(self, variance_floor: float) -> tuple[np.ndarray, np.ndarray]:
        """(mean, 1 / sqrt(variance + floor)), (o,) float32: the identity before anything was seen.

        The floor keeps an input that hardly moved so far from exploding when it does.
        """
        if not self.count:
            return np.zeros(self.mean.shape, np.float32), np.ones(self.mean.shape, np.float32)
        scale = 1 / np.sqrt(self.squares / self.count + variance_floor)
        return self.mean.astype(np.float32), scale.astype(np.float32)
