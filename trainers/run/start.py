"""What a run begins with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from engine.algorithms.base import AgentState, Masks


@dataclass(frozen=True)
class Start:
    """What a run begins with. state: None for fresh weights. masks: networks left out are dense.

    random_actions: whether it collects at random until start_steps. replay: None, or arrays of
    ``Learner.get_state`` to begin with. keep: which artifacts it leaves beside "final": any of "initial",
    "anchor", "best", "saliency".
    """

    masks: Masks = field(default_factory=dict)
    state: AgentState | None = None
    replay: Mapping[str, np.ndarray] | None = None
    random_actions: bool = True
    keep: tuple[str, ...] = ("initial", "anchor", "best", "saliency")
