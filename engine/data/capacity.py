"""When a replay gives up old transitions: once the policy acts otherwise than it did when they came in.

The dynamic-capacity buffer of RLx2 (Tan et al. 2023, ICLR, "RLx2: Training a Sparse Deep Reinforcement
Learning Model from Scratch"), as pure functions.
"""

import numpy as np

BATCHES = 8
"""Batches of the oldest transitions that a distance is measured on."""


def distance(policy: np.ndarray, stored: np.ndarray) -> float:
    """Half the mean squared difference of the policy's mean actions and those stored, both (c, a).

    Actions are in [-1, 1], so that the published division by the largest action has nothing to do.
    """
    return float(np.square(policy.astype(np.float64) - stored).mean() / 2)


def excess(size: int, distance: float, minimum: int, max_distance: float) -> int:
    """How many of the ``size`` transitions held are dropped, the oldest first.

    That is a tenth of them, rounded down, where the distance is above ``max_distance`` and the size above
    ``minimum``, which may be undercut once by what is dropped then; otherwise none.
    """
    return size // 10 if distance > max_distance and size > minimum else 0
