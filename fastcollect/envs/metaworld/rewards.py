"""Stock's rewards of reach, push and pick-place for a whole batch at once.

The order of the arithmetic follows metaworld.envs.sawyer_{reach,push,pick_place}_v3, so that every
threshold falls on the same side and the rewards agree to the last bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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


@dataclass(frozen=True)
class GoalConstants:
    """What the rewards know of a goal; ``table`` is (k, 8) float64, one row for each goal or environment."""

    table: np.ndarray

    @classmethod
    def join(
        cls, target: np.ndarray, object_start: np.ndarray, in_place_margin: np.ndarray, caging: np.ndarray
    ) -> GoalConstants:
        """target, object_start: (k, 3); in_place_margin, caging (the margin in x and z): (k,)."""
        return cls(np.column_stack([target, object_start, in_place_margin, caging]))

    @property
    def target(self) -> np.ndarray:
        """Where the goal is, (k, 3)."""
        return self.table[:, :3]

    @property
    def object_start(self) -> np.ndarray:
        """Where the object starts, (k, 3)."""
        return self.table[:, 3:6]

    @property
    def in_place_margin(self) -> np.ndarray:
        """The distance at which the reward for the goal's nearness begins, (k,)."""
        return self.table[:, 6]

    @property
    def caging_margin(self) -> np.ndarray:
        """The same for the tool's distance from the object in x and z, (k,)."""
        return self.table[:, 7]


@dataclass(frozen=True)
class Situation:
    """What a reward is a function of, n rows each.

    opening: (n,) float64, the observed gripper opening. effort: (n,) float32, the action's last component.
    """

    poses: Poses
    opening: np.ndarray
    effort: np.ndarray
    goal: GoalConstants


Reward = Callable[[Situation], tuple[np.ndarray, np.ndarray]]
"""``situation -> (reward, success)``, (n,) float64 and (n,) bool."""


def reach_reward(now: Situation) -> tuple[np.ndarray, np.ndarray]:
    """SawyerReachEnvV3.compute_reward; success is the tool within 5 cm of the goal."""
    distance = norm(now.poses.tool_center() - now.goal.target)
    in_place = _tolerance(distance, 0.0, _TARGET_RADIUS, now.goal.in_place_margin)
    return 10 * in_place, distance <= _TARGET_RADIUS


def push_reward(now: Situation) -> tuple[np.ndarray, np.ndarray]:
    """SawyerPushEnvV3.compute_reward; success is the object within 5 cm of the goal."""
    poses, goal = now.poses, now.goal
    tool, puck = poses.tool_center(), poses.object
    to_target = norm(puck - goal.target)
    in_place = _tolerance(to_target, 0.0, _TARGET_RADIUS, goal.in_place_margin)
    near = (norm(puck - tool) < _NEAR_OBJECT) & (now.opening > 0)

    pads_y = np.stack((poses.left_pad[:, 1], poses.right_pad[:, 1]))
    margin = np.abs(np.abs(pads_y - goal.object_start[:, 1]) - _PAD_MARGIN)
    sides = _tolerance(np.abs(pads_y - puck[:, 1]), _OBJECT_RADIUS, _PAD_MARGIN, margin)
    caging = _caging(sides, tool, puck, goal)

    def total(grasped: np.ndarray, _in_place: np.ndarray, extra: np.ndarray) -> np.ndarray:
        reward = 2 * grasped
        return np.where(near, reward + ((1.0 + reward) + extra), reward)

    reward = _in_stock_precision(total, caging, now.effort, in_place, extra=5.0 * in_place)
    return np.where(to_target < _TARGET_RADIUS, 10.0, reward), to_target <= _TARGET_RADIUS


def pick_place_reward(now: Situation) -> tuple[np.ndarray, np.ndarray]:
    """SawyerPickPlaceEnvV3.compute_reward; success is the object within 7 cm of the goal.

    Stock keeps the pads' places "at the start" as views of MjData, so they are the present places.
    """
    poses, goal = now.poses, now.goal
    tool, puck = poses.tool_center(), poses.object
    to_target = norm(puck - goal.target)
    in_place = _tolerance(to_target, 0.0, _TARGET_RADIUS, goal.in_place_margin)
    lifted = puck[:, 2] - 0.01 > goal.object_start[:, 2]
    held = (norm(puck - tool) < _NEAR_OBJECT) & (now.opening > 0) & lifted

    gaps = np.stack((poses.left_pad[:, 1] - puck[:, 1], puck[:, 1] - poses.right_pad[:, 1]))
    sides = _tolerance(gaps, _OBJECT_RADIUS, _PAD_MARGIN, np.abs(np.abs(gaps) - _PAD_MARGIN))
    caging = _caging(sides, tool, puck, goal)

    def total(grasped: np.ndarray, in_place: np.ndarray, extra: np.ndarray) -> np.ndarray:
        reward = _hamacher(grasped, in_place)
        return np.where(held, reward + extra, reward)

    reward = _in_stock_precision(total, caging, now.effort, in_place, extra=1.0 + 5.0 * in_place)
    return np.where(to_target < _TARGET_RADIUS, 10.0, reward), to_target <= _PICK_PLACE_SUCCESS_RADIUS


def _caging(sides: np.ndarray, tool: np.ndarray, puck: np.ndarray, goal: GoalConstants) -> np.ndarray:
    """How well the fingers surround the object; sides: (2, n), one value for each finger."""
    along_y = _hamacher(sides[0], sides[1])
    in_xz = norm(tool[:, ::2] - puck[:, ::2])
    return _hamacher(along_y, _tolerance(in_xz, 0.0, CAGING_XZ_MARGIN, goal.caging_margin))


def _in_stock_precision(
    total: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray],
    caging: np.ndarray,
    effort: np.ndarray,
    in_place: np.ndarray,
    extra: np.ndarray,
) -> np.ndarray:
    """``total(grasped, in_place, extra)`` in the precision that stock uses in each row, as float64.

    Once the object is caged, the action's float32 effort takes part in stock's arithmetic, whose other
    operands are Python floats, so NumPy does all that follows in float32; unless ``min``/``max`` replaced
    the effort by the integer 0 or 1.
    """
    caged = caging > _GRASPED
    if not caged.any():
        return total(caging / 2, in_place, extra)
    gripping = np.where(caged, effort.clip(0, 1).astype(np.float64), 0.0)
    reward = total(_grasped(caging, gripping), in_place, extra)
    single = caged & (effort > 0) & (effort <= 1)
    if single.any():
        narrow = [array.astype(np.float32) for array in (caging, gripping, in_place, extra)]
        grasped = _grasped(narrow[0], narrow[1])
        reward = np.where(single, total(grasped, narrow[2], narrow[3]), reward)
    return reward


def _grasped(caging: np.ndarray, gripping: np.ndarray) -> np.ndarray:
    return (_hamacher(caging, gripping) + caging) / 2


def _tolerance(x: np.ndarray, lower: float, upper: float, margin: np.ndarray) -> np.ndarray:
    """``reward_utils.tolerance`` with the long-tail sigmoid."""
    inside = (lower <= x) & (x <= upper)
    distance = np.where(x < lower, lower - x, x - upper) / margin
    return np.where(inside, 1.0, 1 / ((distance * _LONG_TAIL_SCALE) ** 2 + 1))


def _hamacher(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``reward_utils.hamacher_product``, in the common dtype of ``a`` and ``b``."""
    product = a * b
    denominator = a + b - product
    return np.where(denominator > 0, product / denominator, 0.0)
