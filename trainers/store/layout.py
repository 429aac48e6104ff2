"""How the saved arrays of an agent's state and of masks are named."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from engine.algorithms.base import AgentState
from fastcollect.support.errors import ConfigError
from fastcollect.support.named import below

NETWORKS = ("actor", "critic")
"""The networks that can be pruned."""


def network(arrays: Mapping[str, np.ndarray], name: str, kind: str = "parameters") -> dict[str, np.ndarray]:
    """The "parameters", "targets", "averages" or "masks" of one network among the arrays of a state."""
    return below(arrays, f"{kind}/{name}/")


def pack_masks(masks: Mapping[str, Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Masks as an artifact's arrays: "actor/kernel_0", "critic/q0/kernel_0", ..."""
    return {f"{kind}/{leaf}": np.asarray(v) for kind, mask in masks.items() for leaf, v in mask.items()}


def unpack_masks(arrays: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """The inverse of ``pack_masks``."""
    return {kind: below(arrays, f"{kind}/") for kind in NETWORKS}


def _names(state: AgentState) -> list[str]:
    paths, _ = jax.tree_util.tree_flatten_with_path(state)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]


def to_arrays(state: AgentState) -> dict[str, np.ndarray]:
    """A state's leaves, by names such as "optimizer/critic/mu/q0/kernel_1" and "normalizer/mean"."""
    leaves = [np.asarray(leaf) for leaf in jax.device_get(jax.tree.leaves(state))]
    return dict(zip(_names(state), leaves, strict=True))


def from_arrays(arrays: Mapping[str, np.ndarray], template: AgentState, where: str) -> AgentState:
    """The state that ``to_arrays`` gave of an agent like the template.

    Raises ConfigError naming ``where``, every leaf that does not fit, and both shapes.
    """
    problems, found = [], []
    leaves, structure = jax.tree.flatten(template)
    for name, leaf in zip(_names(template), leaves, strict=True):
        value, expected = arrays.get(name), np.asarray(leaf)
        here = f"{expected.shape} {expected.dtype} in this run"
        if value is None:
            problems.append(f"{where}: {name} of shape {expected.shape} is missing")
        elif (value.shape, value.dtype) != (expected.shape, expected.dtype):
            problems.append(f"{where}: {name} is {value.shape} {value.dtype} there and {here}")
        else:
            # JAX may read a NumPy array after the call, and what it reads is the caller's.
            value = value.copy()
            found.append(jax.numpy.array(value) if isinstance(leaf, jax.Array) else value)
    if problems:
        raise ConfigError(problems)
    return jax.tree.unflatten(structure, found)
