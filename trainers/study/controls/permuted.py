"""Controls that keep a ticket's weights, and not where they were."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from engine.algorithms.base import Masks, map_weights
from engine.sparse import masks as mask_functions
from trainers.run.learner import Start
from trainers.store.layout import NETWORKS
from trainers.study.controls.base import Round, random_masks
from trainers.study.rewind import as_arrays


def weights(ticket: Round, seed: Sequence[int]) -> tuple[Masks, Callable[[], Start]]:
    """The ticket's mask, its weights in random order within each layer."""
    return ticket.masks, lambda: _permuted(seed, ticket, ticket.masks)


def mask(ticket: Round, seed: Sequence[int]) -> tuple[Masks, Callable[[], Start]]:
    """The mask and its weights in random order within each layer, each in one of its own."""
    onto = random_masks(seed, ticket.masks)
    return onto, lambda: _permuted(seed, ticket, onto)


def _permuted(seed: Sequence[int], ticket: Round, onto: Masks) -> Start:
    """The ticket's start with its weights in random order within each layer, where ``onto`` keeps them.

    What belongs to a weight goes with it: its target and its moments.
    """
    start = ticket.rewound({})

    def permuted(kind: str, tree: Mapping[str, Any]) -> Mapping[str, Any]:
        if not ticket.masks.get(kind):
            return tree
        rng = np.random.default_rng([*seed, NETWORKS.index(kind)])  # the same order in every tree
        moved = mask_functions.permute_weights(rng, as_arrays(tree), ticket.masks[kind], onto[kind])
        return {name: jax.numpy.array(value) for name, value in moved.items()}

    assert start.state is not None, "a rewound start has a state"
    return replace(start, masks=onto, state=map_weights(start.state, permuted))
