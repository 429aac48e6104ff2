"""Every other Meta-World task: a loop over instances of stock's class, behind the batched protocol."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metaworld.types import Task

from fastcollect.envs.gym import GymEnv
from fastcollect.envs.metaworld.goals import NUM_GOALS, mt1_tasks
from fastcollect.envs.metaworld.sawyer import sawyer_spec


class _GoalOfEpisode(gymnasium.Wrapper):
    """Stock's environment with one of the 50 goals at each reset; ``pinned``, or drawn from np_random."""

    def __init__(self, env: Any, tasks: tuple[Task, ...], pinned: int | None) -> None:
        super().__init__(env)
        self._stock, self._tasks, self._pinned = env, tasks, pinned

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        if seed is not None:
            self._stock.np_random = np.random.default_rng(seed)
        goal = self._stock.np_random.integers(NUM_GOALS) if self._pinned is None else self._pinned
        self._stock.set_task(self._tasks[goal])
        return self._stock.reset()


def make_stock(
    task: str,
    seeds: np.ndarray,
    pinned: np.ndarray | None,
    *,
    goal_visible: bool,
    mt1_seed: int,
    horizon: int,
) -> GymEnv:
    """n instances of a task's class, stepped one after the other; arguments as in ``metaworld.make``.

    Tasks that move bodies of their model need a model for each environment, so this costs tens of megabytes
    an environment and runs at stock's speed.
    """
    tasks = mt1_tasks(task, mt1_seed, goal_visible)
    stocks = [ALL_V3_ENVIRONMENTS[task]() for _ in seeds]
    for stock in stocks:
        stock.max_path_length = horizon
    goals = [None] * len(seeds) if pinned is None else pinned.tolist()
    envs = [_GoalOfEpisode(stock, tasks, goal) for stock, goal in zip(stocks, goals, strict=True)]
    return GymEnv(seeds, envs, sawyer_spec(stocks[0], goal_visible), record_actions=True)
