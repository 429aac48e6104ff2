"""The few body, site and geom poses that observations and rewards read, for n environments."""

from __future__ import annotations

import mujoco
import numpy as np
from scipy.spatial.transform import Rotation

CURRENT_SIZE = 18  # hand 3, gripper opening 1, objects padded to 14

_HAND, _RIGHT_CLAW, _LEFT_CLAW, _RIGHT_PAD, _LEFT_PAD, _OBJECT = (
    "hand",
    "rightclaw",
    "leftclaw",
    "rightpad",
    "leftpad",
    "obj",
)
_RIGHT_FINGER, _LEFT_FINGER = "rightEndEffector", "leftEndEffector"
_OBJECT_GEOM = "objGeom"


class Poses:
    """Poses of n environments, each kind a C-contiguous float64 array with views by name.

    Bodies and sites are kept as one contiguous stretch of MjData's rows each, because one copy of a stretch
    is cheaper in the simulation loop than a copy per body. ``rows[i]`` holds environment i's three
    destinations, in the order of ``live_views``.
    """

    def __init__(self, model: mujoco.MjModel, num_envs: int) -> None:
        names = (_HAND, _RIGHT_CLAW, _LEFT_CLAW, _RIGHT_PAD, _LEFT_PAD, _OBJECT)
        bodies = {name: model.body(name).id for name in names}
        sites = {name: model.site(name).id for name in (_RIGHT_FINGER, _LEFT_FINGER)}
        self._bodies = slice(min(bodies.values()), max(bodies.values()) + 1)
        self._sites = slice(min(sites.values()), max(sites.values()) + 1)
        self._geom = model.geom(_OBJECT_GEOM).id
        body_poses = np.zeros((num_envs, self._bodies.stop - self._bodies.start, 3))
        site_poses = np.zeros((num_envs, self._sites.stop - self._sites.start, 3))
        self._matrices = np.tile(np.eye(3).ravel(), (num_envs, 1))
        self.rows = list(zip(body_poses, site_poses, self._matrices, strict=True))

        def body(name: str) -> np.ndarray:
            return body_poses[:, bodies[name] - self._bodies.start]

        self.hand, self.object = body(_HAND), body(_OBJECT)
        self.right_claw, self.left_claw = body(_RIGHT_CLAW), body(_LEFT_CLAW)
        self.right_pad, self.left_pad = body(_RIGHT_PAD), body(_LEFT_PAD)
        self._right_finger = site_poses[:, sites[_RIGHT_FINGER] - self._sites.start]
        self._left_finger = site_poses[:, sites[_LEFT_FINGER] - self._sites.start]

    def live_views(self, data: mujoco.MjData) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Views into ``data`` that match one of ``rows``; they follow the simulation."""
        return data.xpos[self._bodies], data.site_xpos[self._sites], data.geom_xmat[self._geom]

    def read(self, env_index: int, data: mujoco.MjData) -> None:
        """Copy ``data``'s poses to environment ``env_index``."""
        for row, view in zip(self.rows[env_index], self.live_views(data), strict=True):
            row[...] = view

    def tool_center(self) -> np.ndarray:
        """The middle of the two fingers, (n, 3): stock's ``tcp_center``."""
        return (self._right_finger + self._left_finger) / 2.0

    def write_current(self, current: np.ndarray) -> None:
        """Stock's ``_get_curr_obs_combined_no_goal``; current: (n, 18), whose padding is left alone."""
        current[:, 0:3] = self.hand
        opening = norm(self.right_claw - self.left_claw)
        current[:, 3] = np.minimum(opening / 0.1, 1.0)
        current[:, 4:7] = self.object
        # assume_valid skips SciPy's orthogonality check (100 us a call), which MuJoCo's matrices always
        # pass; what follows it is the same code, so the quaternion has the same bits as stock's.
        matrices = self._matrices.reshape(-1, 3, 3)
        current[:, 7:11] = Rotation.from_matrix(matrices, assume_valid=True).as_quat()


def norm(vectors: np.ndarray) -> np.ndarray:
    """Length of each row of a C-contiguous (n, k) array, with the bits of ``np.linalg.norm(row)``.

    Both take BLAS's dot product of the row with itself; a sum of squares could round differently.
    """
    return np.sqrt(np.vecdot(vectors, vectors))
