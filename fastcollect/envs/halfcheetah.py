"""Batched HalfCheetah-v5 on bare MuJoCo, equal to Gymnasium's bit for bit."""

import numpy as np
from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv

from fastcollect.envs.base import StepBuffers
from fastcollect.envs.locomotion import Locomotion, normal_noise


class HalfCheetah(Locomotion):
    """One HalfCheetah-v5 for each seed, (n,) int64; see ``Locomotion``. Only the horizon ends an episode."""

    def __init__(self, seeds: np.ndarray) -> None:
        super().__init__(
            seeds, HalfCheetahEnv(), ctrl_cost_weight=0.1, noise_scale=0.1, velocity_noise=normal_noise
        )

    def _judge(self, velocity: np.ndarray, cost: np.ndarray, out: StepBuffers) -> None:
        np.subtract(velocity, cost, out=out.reward)


make = HalfCheetah
