"""Batched reach, push and pick-place: one model and one MjData for all the environments of a process."""

import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import mujoco
import numpy as np
from gymnasium.spaces import Box
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metaworld.sawyer_xyz_env import SawyerXYZEnv

from fastcollect.envs.base import EnvSpec, EnvStepError, StepBuffers
from fastcollect.envs.gym_vector import space_spec
from fastcollect.envs.metaworld import rewards, scene
from fastcollect.envs.metaworld.goals import NUM_GOALS, sampled_rand_vecs
from fastcollect.envs.metaworld.poses import CURRENT_SIZE, Poses
from fastcollect.envs.simulation_rows import SimulatedBatch

_GOAL = slice(2 * CURRENT_SIZE, 2 * CURRENT_SIZE + 3)
_PREVIOUS = slice(CURRENT_SIZE, 2 * CURRENT_SIZE)
_OPENING = 3

TASKS: dict[str, tuple[scene.GoalRule, rewards.Reward]] = {
    "reach-v3": (scene.reach_goals, rewards.reach_reward),
    "push-v3": (scene.push_goals, rewards.push_reward),
    "pick-place-v3": (scene.pick_place_goals, rewards.pick_place_reward),
}
PHYSICS = {"exact": mujoco.mj_forward, "fast": mujoco.mj_kinematics}
"""What follows the substeps. Stock calls mj_forward, which also refreshes the solver's warm start; only the
poses are needed, but without the new warm start the next step differs in its last bits."""

MAX_HORIZON = int(SawyerXYZEnv.max_path_length)


def sawyer_spec(stock: SawyerXYZEnv, goal_visible: bool) -> EnvSpec:
    """The specification of any Sawyer task, with the bounds to which stock's ``step`` clips.

    The space that stock itself declares has goal bounds [0, 0] even where the goal is visible.
    """
    goal = stock.goal_space
    assert goal is not None  # every task of MT1 sets it
    goal_low, goal_high = (goal.low, goal.high) if goal_visible else (np.zeros(3), np.zeros(3))
    objects = np.full(CURRENT_SIZE - 4, np.inf)
    low = np.hstack((stock._HAND_SPACE.low, -1.0, -objects))
    high = np.hstack((stock._HAND_SPACE.high, 1.0, objects))
    bounds = np.hstack((low, low, goal_low)), np.hstack((high, high, goal_high))
    return space_spec(
        Box(*bounds, dtype=np.float64), Box(-1, 1, (4,), np.float32), stock.max_path_length, has_success=True
    )


class _Parts(NamedTuple):
    """What all batches of a task and of MT1's seed share, and never change."""

    model: mujoco.MjModel
    starts: tuple[np.ndarray, np.ndarray, np.ndarray]
    specs: tuple[EnvSpec, EnvSpec]
    """With the goal hidden, and with the goal visible."""
    action_scale: float
    mocap_low: np.ndarray
    mocap_high: np.ndarray


@functools.cache
def _parts(task: str, mt1_seed: int) -> _Parts:
    """Reading the model's meshes takes as long as thousands of steps: once a process, not once a batch."""
    stock: Any = ALL_V3_ENVIRONMENTS[task]()
    model = scene.lean_model(stock)
    starts = scene.simulate_starts(model, stock, sampled_rand_vecs(stock, mt1_seed), TASKS[task][0])
    specs = sawyer_spec(stock, False), sawyer_spec(stock, True)
    stock.close()
    return _Parts(model, starts, specs, stock.action_scale, stock.mocap_low, stock.mocap_high)


class BatchedSawyer(SimulatedBatch):
    """n copies of reach-v3, push-v3 or pick-place-v3, equal to stock's environment bit for bit ("exact").

    Arguments as in ``metaworld.make``; pinned: the goals that the environments keep, (n,) int64, or None.
    The environments' simulation states are the rows of one matrix. A step writes all the actions into it,
    then takes one row after the other through the same MjData, which therefore stays in the cache.
    """

    def __init__(
        self,
        task: str,
        seeds: np.ndarray,
        pinned: np.ndarray | None,
        physics: str,
        goal_visible: bool,
        mt1_seed: int,
        horizon: int,
    ) -> None:
        parts = _parts(task, mt1_seed)
        spec = replace(parts.specs[goal_visible], max_episode_steps=horizon)
        super().__init__(parts.model, scene.STATE_FIELDS, seeds, spec)
        self._starts, self._reward, self._refresh = parts.starts, TASKS[task][1], PHYSICS[physics]
        self._action_scale = parts.action_scale
        self._mocap_low, self._mocap_high = parts.mocap_low, parts.mocap_high
        n = self.num_envs
        self._pinned = pinned
        self._ctrl = self._simulation.columns["ctrl"]
        self._mocap_pos = self._simulation.columns["mocap_pos"]
        self._arrays["current"] = self._current = np.zeros((n, CURRENT_SIZE))
        self._arrays["goal"] = self._goal = np.zeros(n, np.int64)
        self._goals = np.zeros(n, rewards.GOAL)  # what the rewards know of ``_goal``
        self._shown_goal = self._goals["target"] if goal_visible else np.zeros((n, 3))
        self._poses = Poses(parts.model, n)
        self._lanes = [(i, *self._simulation.parts[i], *self._poses.rows[i]) for i in range(n)]

    def _advance(self, action: np.ndarray, out: StepBuffers) -> None:
        self._apply(action)
        self._simulate()
        observation = out.observation
        observation[:, _PREVIOUS] = self._current
        self._poses.write_current(self._current)
        observation[:, :CURRENT_SIZE] = self._current
        observation[:, _GOAL] = self._shown_goal
        _clip(observation, self.spec.observation_low, self.spec.observation_high, out=observation)
        with np.errstate(divide="ignore", invalid="ignore"):  # margins of 0 are decided by the bounds
            opening, effort = observation[:, _OPENING], action[:, -1]
            out.reward[...], out.success[...] = self._reward(self._poses, self._goals, opening, effort)

    def _apply(self, action: np.ndarray) -> None:
        # As in stock, the displacement is rounded to float32 before it is added to the float64 position.
        displacement = np.minimum(np.maximum(action[:, :3], -1), 1) * self._action_scale
        _clip(self._mocap_pos + displacement, self._mocap_low, self._mocap_high, out=self._mocap_pos)
        np.copyto(self._ctrl[:, 0], action[:, 3])
        np.negative(action[:, 3], out=self._ctrl[:, 1])

    def _simulate(self) -> None:
        # The hottest loop: every name is local, and plain array copies beat mj_setState and mj_getState.
        model, data, step, refresh = self._model, self._data, mujoco.mj_step, self._refresh
        frame_skip, mocap_quat = scene.FRAME_SKIP, np.array(scene.MOCAP_QUAT)
        live_qpos, live_qvel, live_warmstart, live_pos, live_ctrl = self._simulation.live_views(data)
        live_quat = data.mocap_quat[0]
        live_bodies, live_sites, live_matrix = self._poses.live_views(data)
        index = 0
        try:
            for index, qpos, qvel, warmstart, pos, ctrl, bodies, sites, matrix in self._lanes:  # noqa: B007
                live_qpos[...] = qpos
                live_qvel[...] = qvel
                live_warmstart[...] = warmstart
                live_pos[...] = pos
                live_quat[...] = mocap_quat
                live_ctrl[...] = ctrl
                step(model, data, frame_skip)
                refresh(model, data)
                qpos[...] = live_qpos
                qvel[...] = live_qvel
                warmstart[...] = live_warmstart
                pos[...] = live_pos  # moved only where MuJoCo found the state unstable and reset it
                bodies[...] = live_bodies
                sites[...] = live_sites
                matrix[...] = live_matrix
        except Exception as error:
            raise EnvStepError(index, f"MuJoCo failed in row {index}: {error}") from error

    def _begin(self, rows: np.ndarray, observation: np.ndarray) -> None:
        if self._pinned is None:
            goals = np.array([self._generators[row].integers(NUM_GOALS) for row in rows])
        else:
            goals = self._pinned[rows]
        states, current, constants = (start[goals] for start in self._starts)
        self._goal[rows], self._goals[rows] = goals, constants
        self._simulation.matrix[rows] = states
        self._current[rows] = current
        observation[rows] = np.hstack((current, current, self._shown_goal[rows]))

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        """See ``SimulatedBatch.set_state``."""
        super().set_state(state)
        self._goals[...] = self._starts[2][self._goal]


def _clip(values: np.ndarray, low: np.ndarray, high: np.ndarray, out: np.ndarray) -> None:
    """``np.clip`` without its Python layers, which cost as much as the work at these sizes."""
    np.minimum(np.maximum(values, low, out=out), high, out=out)
