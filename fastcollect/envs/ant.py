"""Batched Ant-v5 on bare MuJoCo, equal to Gymnasium's bit for bit."""

import mujoco
import numpy as np
from gymnasium.envs.mujoco.ant_v5 import AntEnv

from fastcollect.envs.base import StepBuffers
from fastcollect.envs.locomotion import Locomotion, normal_noise, reward_healthy

_CONTACT_COST_WEIGHT = 5e-4
_TORSO = 1
_WORLD_FORCES = 6  # those on the world, which are not shown


class Ant(Locomotion):
    """One Ant-v5 for each seed, (n,) int64; see ``Locomotion``."""

    def __init__(self, seeds: np.ndarray) -> None:
        super().__init__(seeds, AntEnv(), ctrl_cost_weight=0.5, noise_scale=0.1, velocity_noise=normal_noise)
        # Stock takes the velocity from where the torso was in the integrator's last stage, not from qpos.
        self._arrays["torso_x"] = self._place = np.zeros(self.num_envs)
        self._forces = np.zeros((self.num_envs, self._data.cfrc_ext.size))
        self._moving = self._simulation.matrix[:, : self._num_shown + 2]
        self._live_torso, self._live_forces = self._data.xpos[_TORSO], self._data.cfrc_ext.reshape(-1)
        self._after_row = self._read_row

    def _read_row(self, index: int) -> None:
        mujoco.mj_rnePostConstraint(self._model, self._data)  # computes cfrc_ext
        self._forces[index] = self._live_forces
        self._place[index] = self._live_torso[0]

    def _judge(self, velocity: np.ndarray, cost: np.ndarray, out: StepBuffers) -> None:
        forces = np.minimum(np.maximum(self._forces, -1.0), 1.0)
        out.observation[:, self._num_shown :] = forces[:, _WORLD_FORCES:]
        cost = cost + _CONTACT_COST_WEIGHT * np.square(forces, out=forces).sum(axis=1)
        height = self._qpos[:, 2]
        healthy = (height >= 0.2) & (height <= 1.0) & np.isfinite(self._moving).all(axis=1)
        reward_healthy(healthy, velocity, cost, out)

    def _begin(self, rows: np.ndarray, observation: np.ndarray) -> None:
        super()._begin(rows, observation)
        self._place[rows] = self._qpos[rows, 0]  # mj_forward puts a free body exactly there
        observation[rows, self._num_shown :] = 0.0  # no contact forces are computed before a step


make = Ant
