"""Batched HalfCheetah-v5 on bare MuJoCo, equal to Gymnasium's bit for bit."""

import mujoco
import numpy as np
from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv

from fastcollect.envs.base import EnvStepError, StepBuffers
from fastcollect.envs.gym_vector import space_spec
from fastcollect.envs.simulation_rows import SimulatedBatch, without_cameras

MAX_EPISODE_STEPS = 1000  # gymnasium's registration of HalfCheetah-v5
_FRAME_SKIP = 5
_CTRL_COST_WEIGHT = 0.1
_RESET_NOISE_SCALE = 0.1
_STATE_FIELDS = ("qpos", "qvel", "qacc_warmstart", "ctrl")


class HalfCheetah(SimulatedBatch):
    """One HalfCheetah-v5 for each seed, (n,) int64.

    Environment i behaves as ``gymnasium.make("HalfCheetah-v5")`` whose first reset gets ``seed=seeds[i]`` and
    whose later resets get none. Gymnasium's default arguments are the only ones.
    """

    def __init__(self, seeds: np.ndarray) -> None:
        stock = HalfCheetahEnv()
        self._init_qpos, self._init_qvel, self._dt = stock.init_qpos, stock.init_qvel, stock.dt
        spec = space_spec(stock.observation_space, stock.action_space, MAX_EPISODE_STEPS)
        stock.close()
        super().__init__(without_cameras(stock.fullpath).compile(), _STATE_FIELDS, seeds, spec)
        columns = self._simulation.columns
        self._qpos, self._qvel, self._ctrl = columns["qpos"], columns["qvel"], columns["ctrl"]
        self._lanes = list(enumerate(self._simulation.parts))

    def _advance(self, action: np.ndarray, out: StepBuffers) -> None:
        self._ctrl[...] = action
        x_before = self._qpos[:, 0].copy()
        self._simulate()
        shown = self._qpos.shape[1] - 1  # all but the horizontal place
        out.observation[:, :shown] = self._qpos[:, 1:]
        out.observation[:, shown:] = self._qvel
        velocity = (self._qpos[:, 0] - x_before) / self._dt
        # As in stock, the cost is a float32 number: it is made of float32 actions and a Python float.
        np.subtract(velocity, _CTRL_COST_WEIGHT * np.square(action).sum(axis=1), out=out.reward)

    def _simulate(self) -> None:
        # The hottest loop: every name is local, and plain array copies beat mj_setState and mj_getState.
        model, data, step, frame_skip = self._model, self._data, mujoco.mj_step, _FRAME_SKIP
        live_qpos, live_qvel, live_warmstart, live_ctrl = self._simulation.live_views(data)
        index = 0
        try:
            for index, (qpos, qvel, warmstart, ctrl) in self._lanes:  # noqa: B007 (read in the handler)
                live_qpos[...] = qpos
                live_qvel[...] = qvel
                live_warmstart[...] = warmstart
                live_ctrl[...] = ctrl
                step(model, data, frame_skip)
                qpos[...] = live_qpos
                qvel[...] = live_qvel
                warmstart[...] = live_warmstart
        except Exception as error:
            raise EnvStepError(index, f"MuJoCo failed in row {index}: {error}") from error

    def _begin(self, rows: np.ndarray, observation: np.ndarray) -> None:
        model, data, scale = self._model, self._data, _RESET_NOISE_SCALE
        for i in rows:
            generator = self._generators[i]
            mujoco.mj_resetData(model, data)
            data.qpos[:] = self._init_qpos + generator.uniform(low=-scale, high=scale, size=model.nq)
            data.qvel[:] = self._init_qvel + scale * generator.standard_normal(model.nv)
            mujoco.mj_forward(model, data)  # leaves the solver's first warm start
            self._simulation.save(i, data)
        observation[rows] = np.hstack((self._qpos[rows, 1:], self._qvel[rows]))


make = HalfCheetah
