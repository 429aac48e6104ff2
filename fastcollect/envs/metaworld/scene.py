"""A Sawyer task's model, and the states in which its 50 episodes start.

Stock simulates the hand's way to its start (2 x 250 substeps) at every reset. What comes out depends on
nothing but the goal, so it is simulated once here and an episode starts by copying a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mujoco
import numpy as np
from metaworld.sawyer_xyz_env import SawyerXYZEnv

from fastcollect.envs.metaworld.poses import CURRENT_SIZE, Poses, norm
from fastcollect.envs.metaworld.rewards import CAGING_XZ_MARGIN, GoalConstants
from fastcollect.envs.simulation_rows import SimulationRows

FRAME_SKIP = 5
_HAND_RESET_STEPS = 50
MOCAP_QUAT = (1.0, 0.0, 1.0, 0.0)
_OBJECT_QPOS = slice(9, 12)
_OBJECT_QVEL = slice(9, 15)

STATE_FIELDS = ("qpos", "qvel", "qacc_warmstart", "mocap_pos", "ctrl")


@dataclass(frozen=True)
class Starts:
    """How an episode with each of the k goals starts.

    state: (k, size), rows of SimulationRows. current: (k, 18), the observation's present part.
    constants: k rows.
    """

    state: np.ndarray
    current: np.ndarray
    constants: GoalConstants


@dataclass(frozen=True)
class HandStart:
    """What the hand's reset leaves behind, as far as a task's goals depend on it.

    hand, tool: (3,), where the hand was sent and where its fingers came to rest. object_height: of the
    settled object.
    """

    hand: np.ndarray
    tool: np.ndarray
    object_height: float


GoalRule = Callable[[np.ndarray, HandStart], GoalConstants]
"""How a task reads its rand_vecs, (k, 6)."""


def reach_goals(rand_vecs: np.ndarray, start: HandStart) -> GoalConstants:
    """SawyerReachEnvV3.reset_model; the reward has no caging part."""
    target = rand_vecs[:, 3:]
    return GoalConstants.join(target, rand_vecs[:, :3], norm(start.hand - target), np.ones(len(target)))


def push_goals(rand_vecs: np.ndarray, start: HandStart) -> GoalConstants:
    """SawyerPushEnvV3.reset_model: object and goal lie at the height to which the object had settled."""
    puck, target = rand_vecs[:, :3].copy(), rand_vecs[:, 3:].copy()
    puck[:, 2] = target[:, 2] = start.object_height
    return _carried(puck, target, start)


def pick_place_goals(rand_vecs: np.ndarray, start: HandStart) -> GoalConstants:
    """SawyerPickPlaceEnvV3.reset_model."""
    return _carried(rand_vecs[:, :3], rand_vecs[:, 3:], start)


def _carried(puck: np.ndarray, target: np.ndarray, start: HandStart) -> GoalConstants:
    caging = norm(puck[:, ::2] - start.tool[::2]) - CAGING_XZ_MARGIN
    return GoalConstants.join(target, puck, norm(puck - target), caging)


def lean_model(stock: SawyerXYZEnv) -> mujoco.MjModel:
    """The task's model without what cannot touch anything, be seen by physics or be needed here.

    24 of 37 geoms and 12 of 14 meshes are visual only. Their bounding volumes are 100 KB of MjData that
    MuJoCo clears in every substep, so dropping them makes a step about a tenth faster. MuJoCo fixes the
    bodies' inertias before it drops geoms: every number that physics reads stays the same, to the bit.
    """
    spec = mujoco.MjSpec.from_file(stock.model_name)
    spec.compiler.discardvisual = True
    for element in [*spec.cameras, *spec.lights]:
        element.delete()
    model = spec.compile()
    model.eq_data[:] = stock.model.eq_data  # stock rewrites the weld of hand and mocap after loading
    return model


def simulate_starts(
    model: mujoco.MjModel, stock: SawyerXYZEnv, rand_vecs: np.ndarray, goal_rule: GoalRule
) -> Starts:
    """Stock's reset, once for the hand and once more for each goal; rand_vecs: (k, 6)."""
    assert stock.hand_init_pos is not None  # every task of MT1 sets it
    data = mujoco.MjData(model)
    data.mocap_quat[0] = MOCAP_QUAT
    for _ in range(_HAND_RESET_STEPS):
        data.mocap_pos[0] = stock.hand_init_pos
        data.ctrl[:] = -1, 1
        mujoco.mj_step(model, data, FRAME_SKIP)
    hand = Poses(model, 1)
    hand.read(0, data)
    start = HandStart(stock.hand_init_pos, hand.tool_center()[0], float(hand.object[0, 2]))
    constants = goal_rule(rand_vecs, start)

    count = len(rand_vecs)
    after_hand = SimulationRows(model, STATE_FIELDS, 1)
    after_hand.save(0, data)
    starts, poses = SimulationRows(model, STATE_FIELDS, count), Poses(model, count)
    for index, place in enumerate(constants.object_start):
        after_hand.load(0, data)
        data.qpos[_OBJECT_QPOS] = place
        data.qvel[_OBJECT_QVEL] = 0
        mujoco.mj_forward(model, data)
        starts.save(index, data)
        poses.read(index, data)
    current = np.zeros((count, CURRENT_SIZE))
    poses.write_current(current)
    return Starts(starts.matrix, current, constants)
