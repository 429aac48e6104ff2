"""A Sawyer task's model, and the states in which its 50 episodes start.

Stock simulates the hand's way to its start (2 x 250 substeps) at every reset. What comes out depends on
nothing but the goal, so it is simulated once here and an episode starts by copying a row.
"""

from collections.abc import Callable

import mujoco
import numpy as np
from metaworld.sawyer_xyz_env import SawyerXYZEnv

from fastcollect.envs.metaworld.poses import CURRENT_SIZE, Poses, norm
from fastcollect.envs.metaworld.rewards import CAGING_XZ_MARGIN, GOAL
from fastcollect.envs.simulation_rows import SimulationRows, without_cameras

FRAME_SKIP = 5
_HAND_RESET_STEPS = 50
MOCAP_QUAT = (1.0, 0.0, 1.0, 0.0)
_OBJECT_QPOS = slice(9, 12)
_OBJECT_QVEL = slice(9, 15)

STATE_FIELDS = ("qpos", "qvel", "qacc_warmstart", "mocap_pos", "ctrl")

GoalRule = Callable[[np.ndarray, np.ndarray, Poses], np.ndarray]
"""How a task reads its rand_vecs, (k, 6): ``(rand_vecs, hand, rest) -> goals``, (k,) GOAL.

hand: (3,), where the hand is sent before an episode. rest: the poses, n = 1, in which it came to rest there.
"""


def reach_goals(rand_vecs: np.ndarray, hand: np.ndarray, rest: Poses) -> np.ndarray:
    """SawyerReachEnvV3.reset_model; the reward has no caging part."""
    target = rand_vecs[:, 3:]
    return _goals(target, rand_vecs[:, :3], norm(hand - target), np.ones(len(target)))


def push_goals(rand_vecs: np.ndarray, hand: np.ndarray, rest: Poses) -> np.ndarray:
    """SawyerPushEnvV3.reset_model: object and goal lie at the height to which the object had settled."""
    rand_vecs = rand_vecs.copy()
    rand_vecs[:, [2, 5]] = rest.object[0, 2]
    return pick_place_goals(rand_vecs, hand, rest)


def pick_place_goals(rand_vecs: np.ndarray, hand: np.ndarray, rest: Poses) -> np.ndarray:
    """SawyerPickPlaceEnvV3.reset_model."""
    puck, target = rand_vecs[:, :3], rand_vecs[:, 3:]
    caging = norm(puck[:, ::2] - rest.tool_center()[0, ::2]) - CAGING_XZ_MARGIN
    return _goals(target, puck, norm(puck - target), caging)


def _goals(
    target: np.ndarray, object_start: np.ndarray, in_place_margin: np.ndarray, caging_margin: np.ndarray
) -> np.ndarray:
    return np.column_stack([target, object_start, in_place_margin, caging_margin]).view(GOAL)[:, 0]


def lean_model(stock: SawyerXYZEnv) -> mujoco.MjModel:
    """The task's model without what cannot touch anything, be seen by physics or be needed here.

    24 of 37 geoms and 12 of 14 meshes are visual only. Their bounding volumes are 100 KB of MjData that
    MuJoCo clears in every substep, so dropping them makes a step about a tenth faster. MuJoCo fixes the
    bodies' inertias before it drops geoms: every number that physics reads stays the same, to the bit.
    """
    spec = without_cameras(stock.model_name)
    spec.compiler.discardvisual = True
    model = spec.compile()
    model.eq_data[:] = stock.model.eq_data  # stock rewrites the weld of hand and mocap after loading
    return model


def simulate_starts(
    model: mujoco.MjModel, stock: SawyerXYZEnv, rand_vecs: np.ndarray, goal_rule: GoalRule
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How an episode with each of k goals starts: stock's reset, once for the hand and once for each goal.

    rand_vecs: (k, 6). Returns the states, (k, size) rows of SimulationRows; the observations' present parts,
    (k, 18); and the goals, (k,) GOAL.
    """
    assert stock.hand_init_pos is not None  # every task of MT1 sets it
    data = mujoco.MjData(model)
    data.mocap_quat[0] = MOCAP_QUAT
    for _ in range(_HAND_RESET_STEPS):
        data.mocap_pos[0] = stock.hand_init_pos
        data.ctrl[:] = -1, 1
        mujoco.mj_step(model, data, FRAME_SKIP)
    rest = Poses(model, 1)
    rest.read(0, data)
    goals = goal_rule(rand_vecs, stock.hand_init_pos, rest)

    count = len(rand_vecs)
    after_hand = SimulationRows(model, STATE_FIELDS, 1)
    after_hand.save(0, data)
    starts, poses = SimulationRows(model, STATE_FIELDS, count), Poses(model, count)
    for index, place in enumerate(goals["object_start"]):
        after_hand.load(0, data)
        data.qpos[_OBJECT_QPOS] = place
        data.qvel[_OBJECT_QVEL] = 0
        mujoco.mj_forward(model, data)
        starts.save(index, data)
        poses.read(index, data)
    current = np.zeros((count, CURRENT_SIZE))
    poses.write_current(current)
    return starts.matrix, current, goals
