"""MT1's 50 fixed goals of a task, and which of them each environment draws."""

import functools
import pickle
from collections.abc import Sequence

import metaworld
import numpy as np
from metaworld.sawyer_xyz_env import SawyerXYZEnv
from metaworld.types import Task

NUM_GOALS = 50
_MIN_DISTANCE = 0.15
_RESETS_PER_GOAL = 2  # SawyerXYZEnv.reset runs reset_model twice, and each of the two draws a place


def sampled_rand_vecs(env: SawyerXYZEnv, mt1_seed: int) -> np.ndarray:
    """The ``rand_vec`` (object's place, goal) of MT1's tasks for reach, push and pick-place, (50, 6) float64.

    MT1 seeds NumPy's global generator and resets an environment 50 times; this draws the same numbers
    from a private generator of the same kind, so it needs no simulation and leaves the global one alone.
    """
    space = env._random_reset_space
    assert space is not None  # every task of MT1 sets it
    draws = np.random.RandomState(mt1_seed)
    rand_vecs = np.empty((NUM_GOALS, space.low.size))
    for row in np.repeat(np.arange(NUM_GOALS), _RESETS_PER_GOAL):
        rand_vecs[row] = 0  # the object at the goal, which is too near
        while np.linalg.norm(rand_vecs[row, :2] - rand_vecs[row, 3:5]) < _MIN_DISTANCE:
            rand_vecs[row] = draws.uniform(space.low, space.high, size=space.low.size)
    return rand_vecs


@functools.cache
def mt1_tasks(task: str, mt1_seed: int, goal_visible: bool) -> tuple[Task, ...]:
    """MT1's 50 train tasks of any task name; about a second of simulation, once a process.

    A hidden goal is what ML1 asks of the same environments: the task says ``partially_observable``.
    """
    tasks = metaworld.MT1(task, seed=mt1_seed).train_tasks
    if goal_visible:
        return tuple(tasks)
    hidden = {"partially_observable": True}
    # The data is Meta-World's own encoding, made in this process a moment ago.
    return tuple(Task(each.env_name, pickle.dumps({**pickle.loads(each.data), **hidden})) for each in tasks)


def pinned_goals(seeds: np.ndarray, goal_indices: Sequence[int] | str | None) -> np.ndarray | None:
    """The goal of each environment, (n,) int64, as ``metaworld.make`` reads goal_indices; None for none."""
    if goal_indices is None:
        return None
    if isinstance(goal_indices, str):
        if goal_indices != "seed":
            raise ValueError(f"goal_indices={goal_indices!r}: the only string allowed is 'seed'")
        return np.asarray(seeds) % NUM_GOALS
    pinned = np.asarray(goal_indices, np.int64)
    if pinned.shape != (len(seeds),):
        raise ValueError(f"goal_indices has shape {pinned.shape}, expected ({len(seeds)},): one for each env")
    if ((pinned < 0) | (pinned >= NUM_GOALS)).any():
        raise ValueError(f"goal_indices must lie in 0..{NUM_GOALS - 1}, got {pinned.tolist()}")
    return pinned
