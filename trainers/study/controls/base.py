"""What a control is made of: the round of a ticket that it is matched with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from engine.algorithms.base import AgentState, Algorithm, Masks
from engine.sparse import masks as mask_functions
from trainers.config.training import RewindConfig, TrainConfig
from trainers.run.learner import Start
from trainers.study import rewind
from trainers.study.rewind import Source


@dataclass(frozen=True)
class Round:
    """One round of a ticket. masks: the ticket's. last: the round before, trained. number: from 1."""

    config: TrainConfig
    algorithm: Algorithm
    matrix: RewindConfig
    source: Source
    number: int
    masks: Masks
    last: AgentState

    def rewound(self, masks: Masks) -> Start:
        """What the ticket begins with, under these masks. Raises ConfigError; see ``rewind.rewound``."""
        return rewind.rewound(self.config, self.algorithm, self.matrix, self.source, self.last, masks)


Control = Callable[[Round, Sequence[int]], tuple[Masks, Callable[[], Start]]]
"""Of a round and a seed, for whatever it leaves to chance: its masks, and what makes its start."""


def random_masks(seed: Sequence[int], masks: Masks) -> dict[str, mask_functions.Mask]:
    """Random masks with the same number of weights in each layer of each network."""
    rng = np.random.default_rng(seed)
    return {kind: mask_functions.random_like(rng, mask) for kind, mask in masks.items()}
