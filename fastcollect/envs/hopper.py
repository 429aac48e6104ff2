"""Batched Hopper-v5 on bare MuJoCo, equal to Gymnasium's bit for bit."""

import numpy as np
from gymnasium.envs.mujoco.hopper_v5 import HopperEnv

from fastcollect.envs.locomotion import TwoDimensionalWalker


class Hopper(TwoDimensionalWalker):
    """One Hopper-v5 for each seed, (n,) int64; see ``Locomotion``."""

    def __init__(self, seeds: np.ndarray) -> None:
        super().__init__(seeds, HopperEnv())
        self._state = self._shown[:, 1:]  # all but the horizontal place and the height

    def _healthy(self) -> np.ndarray:
        upright = (self._height > 0.7) & (self._height < np.inf) & (np.abs(self._angle) < 0.2)
        return upright & (np.abs(self._state) < 100.0).all(axis=1)


make = Hopper
