"""What the batched robots of gymnasium's v5 environments share: HalfCheetah, Hopper, Walker2d and Ant.

Each is simulated on bare MuJoCo and equals the stock environment with its default arguments bit for bit.
"""

import abc
from collections.abc import Callable
from typing import Any

import mujoco
import numpy as np

from fastcollect.envs.base import EnvStepError, StepBuffers
from fastcollect.envs.gym_vector import space_spec
from fastcollect.envs.simulation_rows import SimulatedBatch, without_cameras

MAX_EPISODE_STEPS = 1000  # gymnasium's registration of each of them
_STATE_FIELDS = ("qpos", "qvel", "qacc_warmstart", "ctrl")

Noise = Callable[[np.random.Generator, float, int], np.ndarray]
"""``(generator, scale, size)`` -> (size,) float64, the noise of an episode's first velocities."""


def uniform_noise(generator: np.random.Generator, scale: float, size: int) -> np.ndarray:
    """Between -scale and scale."""
    return generator.uniform(-scale, scale, size)


def normal_noise(generator: np.random.Generator, scale: float, size: int) -> np.ndarray:
    """Of standard deviation ``scale``."""
    return scale * generator.standard_normal(size)


class Locomotion(SimulatedBatch):
    """One robot for each seed, (n,) int64.

    Environment i behaves as ``gymnasium.make(ID)`` whose first reset gets ``seed=seeds[i]`` and whose later
    resets get none. A subclass says what a step is worth and when it ends the episode (``_judge``).

    stock: gymnasium's environment, which is closed. ctrl_cost_weight: its default.
    noise_scale: its default ``reset_noise_scale``.
    velocity_noise: see Noise; that of the positions is uniform in all of them.
    """

    def __init__(
        self,
        seeds: np.ndarray,
        stock: Any,
        *,
        ctrl_cost_weight: float,
        noise_scale: float,
        velocity_noise: Noise,
    ) -> None:
        spec = space_spec(stock.observation_space, stock.action_space, MAX_EPISODE_STEPS)
        super().__init__(without_cameras(stock.fullpath).compile(), _STATE_FIELDS, seeds, spec)
        self._init_qpos, self._init_qvel = stock.init_qpos, stock.init_qvel
        self._frame_skip, self._dt = stock.frame_skip, stock.dt
        stock.close()
        self._ctrl_cost_weight = ctrl_cost_weight
        self._noise_scale, self._velocity_noise = noise_scale, velocity_noise
        columns = self._simulation.columns
        self._qpos, self._qvel, self._ctrl = columns["qpos"], columns["qvel"], columns["ctrl"]
        self._place = self._qpos[:, 0]  # of which the forward velocity is made
        moving = self._qpos.shape[1] + self._qvel.shape[1]  # the state's first fields lie side by side
        hidden = stock.observation_structure["skipped_qpos"]
        self._shown, self._num_shown = self._simulation.matrix[:, hidden:moving], moving - hidden
        self._lanes = list(enumerate(self._simulation.parts))
        self._after_row: Callable[[int], None] | None = None  # what else a robot reads from MjData

    @abc.abstractmethod
    def _judge(self, velocity: np.ndarray, cost: np.ndarray, out: StepBuffers) -> None:
        """Write rewards, terminations, which are False, and what of the observations is not the bare state.

        velocity: (n,) float64, forward. cost: (n,) float32, of the actions.
        """

    def _advance(self, action: np.ndarray, out: StepBuffers) -> None:
        self._ctrl[...] = action
        before = self._place.copy()
        self._simulate()
        out.observation[:, : self._num_shown] = self._shown
        # As in stock, the cost is a float32 number: it is made of float32 actions and a Python float.
        cost = self._ctrl_cost_weight * np.square(action).sum(axis=1)
        self._judge((self._place - before) / self._dt, cost, out)

    def _simulate(self) -> None:
        # The hottest loop: every name is local, and plain array copies beat mj_setState and mj_getState.
        model, data, step, frame_skip = self._model, self._data, mujoco.mj_step, self._frame_skip
        live_qpos, live_qvel, live_warmstart, live_ctrl = self._simulation.live_views(data)
        index, after_row = 0, self._after_row
        try:
            for index, (qpos, qvel, warmstart, ctrl) in self._lanes:
                live_qpos[...] = qpos
                live_qvel[...] = qvel
                live_warmstart[...] = warmstart
                live_ctrl[...] = ctrl
                step(model, data, frame_skip)
                qpos[...] = live_qpos
                qvel[...] = live_qvel
                warmstart[...] = live_warmstart
                if after_row is not None:
                    after_row(index)
        except Exception as error:
            raise EnvStepError(index, f"MuJoCo failed in row {index}: {error}") from error

    def _begin(self, rows: np.ndarray, observation: np.ndarray) -> None:
        model, data, scale = self._model, self._data, self._noise_scale
        live_qpos, live_qvel, live_warmstart, live_ctrl = self._simulation.live_views(data)
        # All that mj_resetData would clear of what mj_forward reads, for less.
        live_ctrl.fill(0.0)
        for i in rows:
            generator = self._generators[i]
            live_qpos[...] = self._init_qpos + generator.uniform(-scale, scale, model.nq)
            live_qvel[...] = self._init_qvel + self._velocity_noise(generator, scale, model.nv)
            live_warmstart.fill(0.0)
            mujoco.mj_forward(model, data)  # leaves the solver's first warm start
            self._simulation.save(i, data)
        observation[rows, : self._num_shown] = self._shown[rows]


class TwoDimensionalWalker(Locomotion):
    """Hopper and Walker2d: the velocities that are shown are clipped, and falling ends the episode."""

    def __init__(self, seeds: np.ndarray, stock: Any) -> None:
        super().__init__(seeds, stock, ctrl_cost_weight=1e-3, noise_scale=5e-3, velocity_noise=uniform_noise)
        self._height, self._angle = self._qpos[:, 1], self._qpos[:, 2]

    @abc.abstractmethod
    def _healthy(self) -> np.ndarray:
        """Which robots, (n,) bool, are in a state in which the episode goes on."""

    def _judge(self, velocity: np.ndarray, cost: np.ndarray, out: StepBuffers) -> None:
        shown = out.observation[:, -self._qvel.shape[1] :]
        np.minimum(np.maximum(shown, -10.0, out=shown), 10.0, out=shown)
        reward_healthy(self._healthy(), velocity, cost, out)


def reward_healthy(healthy: np.ndarray, velocity: np.ndarray, cost: np.ndarray, out: StepBuffers) -> None:
    """Reward each robot's velocity less its cost, and 1 for being healthy; end the others' episodes."""
    np.logical_not(healthy, out=out.terminated)
    np.subtract(velocity + healthy, cost, out=out.reward)
