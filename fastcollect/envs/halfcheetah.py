"""Batched HalfCheetah-v5 on bare MuJoCo, equal to Gymnasium's bit for bit."""

from __future__ import annotations

from collections.abc import Mapping

import mujoco
import numpy as np
from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv

from fastcollect.envs.base import ActionSpec, EnvSpec, EnvStepError, State, StepBuffers
from fastcollect.envs.generators import generators_to_array, make_generators, restore_generators
from fastcollect.envs.simulation_rows import SimulationRows

MAX_EPISODE_STEPS = 1000  # gymnasium's registration of HalfCheetah-v5
_FRAME_SKIP = 5
_CTRL_COST_WEIGHT = 0.1
_RESET_NOISE_SCALE = 0.1
_STATE_FIELDS = ("qpos", "qvel", "qacc_warmstart", "ctrl")


def make(seeds: np.ndarray) -> HalfCheetah:
    """One HalfCheetah-v5 for each seed, (n,) int64.

    Environment i behaves as ``gymnasium.make("HalfCheetah-v5")`` whose first reset gets ``seed=seeds[i]`` and
    whose later resets get none. Gymnasium's default arguments are the only ones.
    """
    return HalfCheetah(seeds)


class HalfCheetah:
    """n copies of HalfCheetah-v5 that take turns in one MjData."""

    def __init__(self, seeds: np.ndarray) -> None:
        stock = HalfCheetahEnv()
        self.num_envs = len(seeds)
        self._generators = make_generators(seeds)
        self._init_qpos, self._init_qvel, self._dt = stock.init_qpos, stock.init_qvel, stock.dt
        self._model = _lean_model(stock.fullpath)
        stock.close()
        self._data = mujoco.MjData(self._model)
        self._simulation = SimulationRows(self._model, _STATE_FIELDS, self.num_envs)
        columns = self._simulation.columns
        self._qpos, self._qvel, self._ctrl = columns["qpos"], columns["qvel"], columns["ctrl"]
        self._lanes = list(enumerate(self._simulation.parts))
        self._elapsed = np.full(self.num_envs, -1, np.int64)
        self.spec = _spec(self._model)

    def reset(self, observation: np.ndarray) -> None:
        """Start a new episode everywhere; observation: (n, 17) float64, written."""
        self._begin(np.arange(self.num_envs), observation)

    def step(self, action: np.ndarray, out: StepBuffers) -> None:
        """action: (n, 6) float32. See ``BatchedEnv.step``."""
        self._require_episode()
        self._ctrl[...] = action
        x_before = self._qpos[:, 0].copy()
        self._simulate()
        self._observe(out.observation)
        velocity = (self._qpos[:, 0] - x_before) / self._dt
        # As in stock, the cost is a float32 number: it is made of float32 actions and a Python float.
        np.subtract(velocity, _CTRL_COST_WEIGHT * np.square(action).sum(axis=1), out=out.reward)
        out.terminated[...] = False
        self._elapsed += 1
        np.equal(self._elapsed, MAX_EPISODE_STEPS, out=out.truncated)
        ended = np.flatnonzero(out.truncated)
        if ended.size:
            out.final_observation[ended] = out.observation[ended]
            self._begin(ended, out.observation)

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

    def _observe(self, observation: np.ndarray) -> None:
        shown = self._qpos.shape[1] - 1  # all but the horizontal place
        observation[:, :shown] = self._qpos[:, 1:]
        observation[:, shown:] = self._qvel

    def _begin(self, rows: np.ndarray, observation: np.ndarray) -> None:
        for i in rows:
            self._begin_one(i)
        shown = self._qpos.shape[1] - 1
        observation[rows, :shown] = self._qpos[rows, 1:]
        observation[rows, shown:] = self._qvel[rows]
        self._elapsed[rows] = 0

    def _begin_one(self, i: int) -> None:
        model, data, generator = self._model, self._data, self._generators[i]
        low, high = -_RESET_NOISE_SCALE, _RESET_NOISE_SCALE
        mujoco.mj_resetData(model, data)
        data.qpos[:] = self._init_qpos + generator.uniform(low=low, high=high, size=model.nq)
        data.qvel[:] = self._init_qvel + _RESET_NOISE_SCALE * generator.standard_normal(model.nv)
        mujoco.mj_forward(model, data)  # leaves the solver's first warm start
        self._simulation.save(i, data)

    def _require_episode(self) -> None:
        if self._elapsed[0] < 0:
            raise RuntimeError("no episode has begun: call reset or set_state first")

    def get_state(self) -> State:
        """See ``BatchedEnv.get_state``."""
        self._require_episode()
        return {
            "simulation": self._simulation.matrix.copy(),
            "elapsed": self._elapsed.copy(),
            "generators": generators_to_array(self._generators),
        }

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        """See ``BatchedEnv.set_state``."""
        expected = self._simulation.matrix.shape
        if state["simulation"].shape != expected:
            raise ValueError(f"saved 'simulation' has shape {state['simulation'].shape}, expected {expected}")
        self._simulation.matrix[...] = state["simulation"]
        self._elapsed[...] = state["elapsed"]
        restore_generators(self._generators, state["generators"])

    def close(self) -> None:
        """Nothing is held but memory."""


def _lean_model(path: str) -> mujoco.MjModel:
    """Stock's model without the camera and the light, whose poses MuJoCo computes in every substep."""
    spec = mujoco.MjSpec.from_file(path)
    for element in [*spec.cameras, *spec.lights]:
        element.delete()
    return spec.compile()


def _spec(model: mujoco.MjModel) -> EnvSpec:
    size = model.nq - 1 + model.nv
    low, high = model.actuator_ctrlrange.astype(np.float32).T
    return EnvSpec(
        observation_shape=(size,),
        observation_dtype=np.dtype(np.float64),
        observation_low=np.full(size, -np.inf),
        observation_high=np.full(size, np.inf),
        action=ActionSpec(shape=(model.nu,), dtype=np.dtype(np.float32), low=low.copy(), high=high.copy()),
        max_episode_steps=MAX_EPISODE_STEPS,
    )
