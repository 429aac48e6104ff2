"""A control from scratch: a random mask with fresh weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from engine.algorithms.base import Masks
from trainers.run.learner import Start
from trainers.study.controls.base import Round, random_masks
from trainers.study.rewind import fresh


def random_mask(ticket: Round, seed: Sequence[int]) -> tuple[Masks, Callable[[], Start]]:
    """A mask as dense in each layer, with fresh weights and nothing of the source."""
    masks = random_masks(seed, ticket.masks)
    return masks, lambda: Start(masks, fresh(ticket.config, ticket.algorithm, other_seed=True), keep=())
