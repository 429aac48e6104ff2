"""Meta-World v3 as batched environments.

reach-v3, push-v3 and pick-place-v3 run batched (``BatchedSawyer``); the other tasks run as a loop over
stock's classes (``make_stock``). Goals are MT1's 50 of the task; every reset draws one of them from
the environment's own generator. Episodes are truncated after 500 steps, or earlier if asked, and never
terminate.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

import numpy as np
from metaworld.env_dict import ALL_V3_ENVIRONMENTS

from fastcollect.envs.base import BatchedEnv
from fastcollect.envs.metaworld.goals import NUM_GOALS, pinned_goals
from fastcollect.envs.metaworld.sawyer import MAX_HORIZON, PHYSICS, TASKS, BatchedSawyer
from fastcollect.envs.metaworld.stock import make_stock
from fastcollect.envs.registry import nearest

__all__ = ["NUM_GOALS", "BatchedSawyer", "make", "make_stock"]


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
    build = partial(BatchedSawyer, physics=physics) if task in TASKS else make_stock
    return build(task, seeds, pinned, goal_visible=goal_visible, mt1_seed=mt1_seed, horizon=horizon)
