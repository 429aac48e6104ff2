"""The few body, site and geom poses that observations and rewards read, for n environments."""

import mujoco
import numpy as np
from scipy.spatial.transform import Rotation

CURRENT_SIZE = 18  # hand 3, gripper opening 1, objects padded to 14


class Poses:
    """Poses of n environments, each an (n, 3) float64 view of one array for bodies or one for sites.

    Bodies and sites are kept as one contiguous stretch of MjData's rows each, because one copy of a stretch
    is cheaper in the simulation loop than a copy per body. ``rows[i]`` holds environment i's three
    destinations, in the order of ``live_views``.
    """

    def __init__(self, model: mujoco.MjModel, num_envs: int) -> None:
        bodies = [
            model.body(name).id for name in ("hand", "rightclaw", "leftclaw", "rightpad", "leftpad", "obj")
        ]
        sites = [model.site(name).id for name in ("rightEndEffector", "leftEndEffector")]
        self._bodies, self._sites = (slice(min(ids), max(ids) + 1) for ids in (bodies, sites))
        self._geom = model.geom("objGeom").id
        body_poses, site_poses = (
            np.zeros((num_envs, span.stop - span.start, 3)) for span in (self._bodies, self._sites)
        )
        self._matrices = np.tile(np.eye(3).ravel(), (num_envs, 1))
        self.rows = list(zip(body_poses, site_poses, self._matrices, strict=True))
        self.hand, self._right_claw, self._left_claw, self.right_pad, self.left_pad, self.object = (
            body_poses[:, body - self._bodies.start] for body in bodies
        )
        self._fingers = [site_poses[:, site - self._sites.start] for site in sites]

    def live_views(self, data: mujoco.MjData) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Views into ``data`` that match one of ``rows``; they follow the simulation."""
        return data.xpos[self._bodies], data.site_xpos[self._sites], data.geom_xmat[self._geom]

    def read(self, env_index: int, data: mujoco.MjData) -> None:
        """Copy ``data``'s poses to environment ``env_index``."""
        for row, view in zip(self.rows[env_index], self.live_views(data), strict=True):
            row[...] = view

    def tool_center(self) -> np.ndarray:
        """The middle of the two fingers, (n, 3): stock's ``tcp_center``."""
        right, left = self._fingers
        return (right + left) / 2.0

    def write_current(self, current: np.ndarray) -> None:
        """Stock's ``_get_curr_obs_combined_no_goal``; current: (n, 18), whose padding is left alone."""
        current[:, 0:3] = self.hand
        opening = norm(self._right_claw - self._left_claw)
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
