"""How saved arrays are named: of a learner's state, and of masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastcollect.support.named import below

NETWORKS = ("actor", "critic")
"""Those that can be pruned."""


def network(arrays: Mapping[str, np.ndarray], name: str, kind: str = "parameters") -> dict[str, np.ndarray]:
    """The "parameters", "targets" or "masks" of one network among the arrays of a state."""
    return below(arrays, f"{kind}/{name}/")


def pack_masks(masks: Mapping[str, Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Masks as an artifact's arrays: "actor/kernel_0", "critic/q0/kernel_0", ..."""
    return {f"{kind}/{leaf}": np.asarray(v) for kind, mask in masks.items() for leaf, v in mask.items()}


def unpack_masks(arrays: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """The inverse of ``pack_masks``."""
    return {kind: below(arrays, f"{kind}/") for kind in NETWORKS}
