"""Stock's rewards of reach, push and pick-place for a whole batch at once.

The order of the arithmetic follows metaworld.envs.sawyer_{reach,push,pick_place}_v3, so that every
threshold falls on the same side and the rewards agree to the last bits.
"""

from collections.abc import Callable

import numpy as np

from fastcollect.envs.metaworld.poses import Poses, norm

CAGING_XZ_MARGIN = 0.005
_TARGET_RADIUS = 0.05
_PICK_PLACE_SUCCESS_RADIUS = 0.07
_NEAR_OBJECT = 0.02
_OBJECT_RADIUS = 0.015
_PAD_MARGIN = 0.05
_GRASPED = 0.97
_LONG_TAIL_SCALE = float(np.sqrt(1 / 0.1 - 1))  # reward_utils: the value at the margin is 0.1

GOAL = np.dtype(
    [("target", "f8", 3), ("object_start", "f8", 3), ("in_place_margin", "f8"), ("caging_margin", "f8")]
)
"""What rewards know of a goal. The margins are the distances at which the rewards for the object's nearness
to the goal, and for the tool's nearness to the object in x and z, begin."""

Reward = Callable[[Poses, np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""``(poses, goal, opening, effort) -> (reward, success)`` of n environments.

goal: (n,) GOAL. opening: (n,) float64, the observed gripper opening. effort: (n,) float32, the action's last
component. reward: (n,) float64. success: (n,) bool.
"""


def reach_reward(
    poses: Poses, goal: np.ndarray, opening: np.ndarray, effort: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """SawyerReachEnvV3.compute_reward; success is the tool within 5 cm of the goal."""
    distance = norm(poses.tool_center() - goal["target"])
    return 10 * _tolerance(distance, _TARGET_RADIUS, goal["in_place_margin"]), distance <= _TARGET_RADIUS


def push_reward(
    poses: Poses, goal: np.ndarray, opening: np.ndarray, effort: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """SawyerPushEnvV3.compute_reward; success is the object within 5 cm of the goal."""
    puck, tool = poses.object, poses.tool_center()
    near = (norm(puck - tool) < _NEAR_OBJECT) & (opening > 0)
    pads_y = np.stack((poses.left_pad[:, 1], poses.right_pad[:, 1]))
    margin = np.abs(np.abs(pads_y - goal["object_start"][:, 1]) - _PAD_MARGIN)
    sides = _tolerance(np.abs(pads_y - puck[:, 1]), _PAD_MARGIN, margin, _OBJECT_RADIUS)

    def total(grasped: np.ndarray, _in_place: np.ndarray, extra: np.ndarray) -> np.ndarray:
        reward = 2 * grasped
        return np.where(near, reward + ((1.0 + reward) + extra), reward)

    reward, to_target = _carrying_reward(total, 0.0, puck, tool, sides, goal, effort)
    return reward, to_target <= _TARGET_RADIUS


def pick_place_reward(
    poses: Poses, goal: np.ndarray, opening: np.ndarray, effort: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """SawyerPickPlaceEnvV3.compute_reward; success is the object within 7 cm of the goal.

    Stock keeps the pads' places "at the start" as views of MjData, so they are the present places.
    """
    puck, tool = poses.object, poses.tool_center()
    lifted = puck[:, 2] - 0.01 > goal["object_start"][:, 2]
    held = (norm(puck - tool) < _NEAR_OBJECT) & (opening > 0) & lifted
    gaps = np.stack((poses.left_pad[:, 1] - puck[:, 1], puck[:, 1] - poses.right_pad[:, 1]))
    sides = _tolerance(gaps, _PAD_MARGIN, np.abs(np.abs(gaps) - _PAD_MARGIN), _OBJECT_RADIUS)

    def total(grasped: np.ndarray, in_place: np.ndarray, extra: np.ndarray) -> np.ndarray:
        reward = _hamacher(grasped, in_place)
        return np.where(held, reward + extra, reward)

    reward, to_target = _carrying_reward(total, 1.0, puck, tool, sides, goal, effort)
    return reward, to_target <= _PICK_PLACE_SUCCESS_RADIUS


def _carrying_reward(
    total: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray],
    bonus: float,
    puck: np.ndarray,
    tool: np.ndarray,
    sides: np.ndarray,
    goal: np.ndarray,
    effort: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """``total(grasped, in_place, bonus + 5 * in_place)``, or 10 at the goal, and the way to the goal.

    sides: (2, n), how well each of the two fingers surrounds the object. Each row is computed in stock's
    precision: once the object is caged, the action's float32 effort takes part in stock's arithmetic, whose
    other operands are Python floats, so NumPy does all that follows in float32; unless ``min``/``max``
    replaced the effort by the integer 0 or 1.
    """
    to_target = norm(puck - goal["target"])
    in_place = _tolerance(to_target, _TARGET_RADIUS, goal["in_place_margin"])
    extra = 5.0 * in_place
    if bonus:
        extra += bonus
    in_xz = _tolerance(norm(tool[:, ::2] - puck[:, ::2]), CAGING_XZ_MARGIN, goal["caging_margin"])
    caging = _hamacher(_hamacher(sides[0], sides[1]), in_xz)
    caged = caging > _GRASPED
    if not caged.any():
        reward = total(caging / 2, in_place, extra)
    else:
        gripping = np.where(caged, effort.clip(0, 1).astype(np.float64), 0.0)
        reward = total(_grasped(caging, gripping), in_place, extra)
        single = caged & (effort > 0) & (effort <= 1)
        if single.any():
            narrow = [array.astype(np.float32) for array in (caging, gripping, in_place, extra)]
            reward = np.where(single, total(_grasped(*narrow[:2]), *narrow[2:]), reward)
    return np.where(to_target < _TARGET_RADIUS, 10.0, reward), to_target


def _grasped(caging: np.ndarray, gripping: np.ndarray) -> np.ndarray:
    return (_hamacher(caging, gripping) + caging) / 2


def _tolerance(x: np.ndarray, upper: float, margin: np.ndarray, lower: float = 0.0) -> np.ndarray:
    """``reward_utils.tolerance`` with the long-tail sigmoid."""
    inside = (lower <= x) & (x <= upper)
    distance = np.where(x < lower, lower - x, x - upper) / margin
    return np.where(inside, 1.0, 1 / ((distance * _LONG_TAIL_SCALE) ** 2 + 1))


def _hamacher(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``reward_utils.hamacher_product``, in the common dtype of ``a`` and ``b``."""
    product = a * b
    denominator = a + b - product
    return np.where(denominator > 0, product / denominator, 0.0)
