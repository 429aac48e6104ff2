"""What a network's policy can write beside each action: one table, with a twin in ``engine.policies``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fastcollect.envs.base import ActionSpec
from fastcollect.memory.segment import FieldSpec
from fastcollect.policies.base import POLICY_VERSION


class Drawn(Protocol):
    """Actions that were drawn for b observations, and what is known of them."""

    def action(self) -> np.ndarray:
        """The actions, (b, *action.shape)."""

    def log_prob(self) -> np.ndarray:
        """The logarithm of each action's probability or density, (b,)."""

    def mean_action(self) -> np.ndarray:
        """The action without noise, (b, *action.shape); boxes only."""


@dataclass(frozen=True)
class Extra:
    """One entry of the table.

    field: the shape and dtype of one value, from the action space; a ValueError where the space has none.
    compute: the values for b actions, (b, *shape), from what was drawn; None where they come from elsewhere.
    network: whether they are the outputs of a network of their own, whose parameters carry the extra's name
        as prefix ("value/kernel_0"). What has neither ``compute`` nor ``network`` is written by the engine.
    """

    field: Callable[[ActionSpec], FieldSpec]
    compute: Callable[[Drawn], np.ndarray] | None = None
    network: bool = False


def _scalar(action: ActionSpec) -> FieldSpec:
    return FieldSpec((), np.dtype(np.float32))


def _like_action(action: ActionSpec) -> FieldSpec:
    if action.discrete:
        raise ValueError("a discrete action has no mean_action")
    return FieldSpec(action.shape, np.dtype(np.float32))


EXTRAS = {
    "log_prob": Extra(_scalar, lambda drawn: drawn.log_prob()),
    "mean_action": Extra(_like_action, lambda drawn: drawn.mean_action()),
    "value": Extra(_scalar, network=True),
    POLICY_VERSION: Extra(lambda action: FieldSpec((), np.dtype(np.int64))),
}
"""Every extra by name. A new one is one entry here and one in ``engine.policies.EXTRAS``."""


def extra_fields(action: ActionSpec, names: Sequence[str]) -> dict[str, FieldSpec]:
    """Shapes and dtypes of these extras. Raises ValueError for a name that is not in the table."""
    if unknown := [name for name in names if name not in EXTRAS]:
        raise ValueError(f"unknown extras {unknown}; a network's policy gives any of {list(EXTRAS)}")
    return {name: EXTRAS[name].field(action) for name in names}


def own_networks(action: ActionSpec, names: Iterable[str]) -> dict[str, int]:
    """Of these extras, those with a network of their own, and how many outputs it has."""
    return {
        name: math.prod(EXTRAS[name].field(action).shape)
        for name in names
        if name in EXTRAS and EXTRAS[name].network
    }
