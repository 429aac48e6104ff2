"""How saved arrays are named: of a learner's state, and of masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

NETWORKS = ("actor", "critic")
"""Those that can be pruned."""
STATE = "sac/"
"""What the arrays of an algorithm's state begin with."""


def network(arrays: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """The parameters of "actor", "critic" or "target_critic" among a snapshot's arrays."""
    prefix = f"{STATE}{name}/"
    return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}


def pack_masks(masks: Mapping[str, Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Masks as an artifact's arrays: "actor/kernel_0", "critic/q0/kernel_0", ..."""
    return {f"{kind}/{leaf}": np.asarray(v) for kind in NETWORKS for leaf, v in masks[kind].items()}


def unpack_masks(arrays: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """The inverse of ``pack_masks``."""
    return {
        kind: {k.removeprefix(f"{kind}/"): v for k, v in arrays.items() if k.startswith(f"{kind}/")}
        for kind in NETWORKS
    }
