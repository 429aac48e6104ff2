"""MT1's 50 fixed goals of a task, and which of them each environment draws."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Sequence

import metaworld
import numpy as np
from metaworld.sawyer_xyz_env import SawyerXYZEnv
from metaworld.types import Task

from fastcollect.envs.generators import generators_to_array, make_generators, restore_generators

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
    for index in range(NUM_GOALS):
        for _ in range(_RESETS_PER_GOAL):
            rand_vecs[index] = _draw(draws, space.low, space.high)
    return rand_vecs


def _draw(draws: np.random.RandomState, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    while True:
        rand_vec = draws.uniform(low, high, size=low.size)
        if np.linalg.norm(rand_vec[:2] - rand_vec[3:5]) >= _MIN_DISTANCE:
            return rand_vec


@functools.cache
def mt1_tasks(task: str, mt1_seed: int, goal_visible: bool) -> tuple[Task, ...]:
    """MT1's 50 train tasks of any task name; about a second of simulation, once a process.

    A hidden goal is what ML1 asks of the same environments: the task says ``partially_observable``.
    """
    tasks = metaworld.MT1(task, seed=mt1_seed).train_tasks
    return tuple(tasks) if goal_visible else tuple(_hidden(task) for task in tasks)


def _hidden(task: Task) -> Task:
    content = pickle.loads(task.data)  # Meta-World's own encoding, made in this process a moment ago
    return Task(env_name=task.env_name, data=pickle.dumps({**content, "partially_observable": True}))


class GoalChooser:
    """Which of the 50 goals each environment gets at a reset.

    seeds: (n,) int64. goal_indices: None draws one at every reset from the environment's own generator;
    ``"seed"`` pins environment i to goal ``seeds[i] % 50``; n integers pin each environment to its own.
    """

    def __init__(self, seeds: np.ndarray, goal_indices: Sequence[int] | str | None) -> None:
        self._generators = make_generators(seeds)
        self._pinned = _pinned_goals(seeds, goal_indices)

    def choose(self, env_index: int) -> int:
        """The goal of the episode that environment ``env_index`` begins now."""
        if self._pinned is not None:
            return int(self._pinned[env_index])
        return int(self._generators[env_index].integers(NUM_GOALS))

    def get_state(self) -> np.ndarray:
        """The generators' states, (n, 6) uint64."""
        return generators_to_array(self._generators)

    def set_state(self, rows: np.ndarray) -> None:
        """Restore what ``get_state`` returned."""
        restore_generators(self._generators, rows)


def _pinned_goals(seeds: np.ndarray, goal_indices: Sequence[int] | str | None) -> np.ndarray | None:
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
