"""What algorithms need of an environment's spaces."""

from __future__ import annotations

from typing import Any

import numpy as np


def box_problems(spec: Any) -> list[str]:
    """Why an algorithm for vectors of observations and a bounded box of actions cannot learn here.

    spec: of the environment; observation_shape and action.discrete, .num_actions, .low, .high are read.
    """
    action, problems = spec.action, []
    if action.discrete:
        problems.append(f"has {action.num_actions} discrete actions; allowed: a bounded box of them")
    elif not (np.isfinite(action.low).all() and np.isfinite(action.high).all()):
        problems.append("has unbounded actions; allowed: a bounded box of them")
    if len(spec.observation_shape) != 1:
        problems.append(f"has observations of shape {spec.observation_shape}; allowed: vectors")
    return problems
