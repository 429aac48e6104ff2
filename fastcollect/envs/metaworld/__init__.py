"""Meta-World v3 as batched environments.

reach-v3, push-v3 and pick-place-v3 run batched (``BatchedSawyer``); the other tasks run as a loop over
stock's classes (``GymEnv``). Goals are MT1's 50 of the task; every reset draws one of them from
the environment's own generator. Episodes are truncated after 500 steps, or earlier if asked, and never
terminate.
"""

from collections.abc import Sequence
from typing import Any, Literal

import gymnasium
import numpy as np
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metaworld.types import Task

from fastcollect.envs.base import BatchedEnv
from fastcollect.envs.gym import GymEnv
from fastcollect.envs.metaworld.goals import NUM_GOALS, mt1_tasks, pinned_goals
from fastcollect.envs.metaworld.sawyer import MAX_HORIZON, PHYSICS, TASKS, BatchedSawyer, sawyer_spec
from fastcollect.envs.registry import nearest

__all__ = ["NUM_GOALS", "BatchedSawyer", "make"]


def make(
    seeds: np.ndarray,
    *,
    task: str,
    physics: Literal["exact", "fast"] = "exact",
    goal_visible: bool = True,
    goal_indices: Sequence[int] | Literal["seed"] | None = None,
    mt1_seed: int = 0,
    horizon: int = MAX_HORIZON,
) -> BatchedEnv:
    """One Meta-World environment for each seed.

    seeds: (n,) int64; environment i draws its goals from ``np.random.default_rng(seeds[i])``.
    task: a name of Meta-World v3 such as "reach-v3".
    physics: "exact" gives stock's observations to the bit. "fast" leaves out the extra ``mj_forward`` after
        each step: the same task to statistics, but the solver starts from another guess, so trajectories
        part in the last bit and grow apart through contacts. Only for the batched tasks.
    goal_visible: False zeroes the observed goal, as in ML1.
    goal_indices: None draws a goal at every reset. n integers in 0..49 pin each environment to a goal;
        "seed" pins environment i to goal ``seeds[i] % 50``, however the environments are spread over workers.
    mt1_seed: the seed of ``metaworld.MT1`` that fixes the 50 goals.
    horizon: steps after which an episode is truncated, 1 to 500.
    """
    if task not in ALL_V3_ENVIRONMENTS:
        near = nearest(task, ALL_V3_ENVIRONMENTS) or ["reach-v3"]
        raise ValueError(f"unknown Meta-World task {task!r}; some are {', '.join(map(repr, near))}")
    if physics not in PHYSICS:
        raise ValueError(f"physics={physics!r}: allowed are {', '.join(map(repr, PHYSICS))}")
    if not 1 <= horizon <= MAX_HORIZON:
        raise ValueError(f"horizon={horizon!r}: allowed are 1 to {MAX_HORIZON}")
    if physics != "exact" and task not in TASKS:
        raise ValueError(f"physics={physics!r} exists for {', '.join(TASKS)}; {task} allows 'exact' only")
    pinned = pinned_goals(seeds, goal_indices)
    if task in TASKS:
        return BatchedSawyer(task, seeds, pinned, physics, goal_visible, mt1_seed, horizon)
    # Tasks that move bodies of their model need one for each environment, which takes tens of megabytes.
    tasks, stocks = mt1_tasks(task, mt1_seed, goal_visible), [ALL_V3_ENVIRONMENTS[task]() for _ in seeds]
    for stock in stocks:
        stock.max_path_length = horizon
    goals = [None] * len(seeds) if pinned is None else pinned.tolist()
    envs = [_GoalOfEpisode(stock, tasks, goal) for stock, goal in zip(stocks, goals, strict=True)]
    return GymEnv(seeds, envs, sawyer_spec(stocks[0], goal_visible), record_actions=True)


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
