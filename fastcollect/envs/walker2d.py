"""Batched Walker2d-v5 on bare MuJoCo, equal to Gymnasium's bit for bit."""

import numpy as np
from gymnasium.envs.mujoco.walker2d_v5 import Walker2dEnv

from fastcollect.envs.locomotion import TwoDimensionalWalker


class Walker2d(TwoDimensionalWalker):
    """One Walker2d-v5 for each seed, (n,) int64; see ``Locomotion``."""

    def __init__(self, seeds: np.ndarray) -> None:
        super().__init__(seeds, Walker2dEnv())

    def _healthy(self) -> np.ndarray:
        return (self._height > 0.8) & (self._height < 2.0) & (np.abs(self._angle) < 1.0)


make = Walker2d
