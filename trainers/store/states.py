"""An agent's state as named arrays and back."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np

from engine.algorithms.base import AgentState
from fastcollect.support.errors import ConfigError


def _names(state: AgentState) -> list[str]:
    paths, _ = jax.tree_util.tree_flatten_with_path(state)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]


def to_arrays(state: AgentState) -> dict[str, np.ndarray]:
    """Flat and plain: "parameters/actor/kernel_0", "optimizer/critic/mu/q0/kernel_1", "normalizer/mean"."""
    leaves = [np.asarray(leaf) for leaf in jax.device_get(jax.tree.leaves(state))]
    return dict(zip(_names(state), leaves, strict=True))


def from_arrays(arrays: Mapping[str, np.ndarray], template: AgentState, where: str) -> AgentState:
    """The state that ``to_arrays`` gave of an agent like the template.

    Raises ConfigError naming ``where``, every leaf that does not fit, and both shapes.
    """
    names, (leaves, structure) = _names(template), jax.tree.flatten(template)
    problems, found = [], []
    for name, leaf in zip(names, leaves, strict=True):
        expected = np.asarray(leaf)
        if name not in arrays:
            problems.append(f"{where}: {name} of shape {expected.shape} is missing")
        elif (arrays[name].shape, arrays[name].dtype) != (expected.shape, expected.dtype):
            there = f"{arrays[name].shape} {arrays[name].dtype}"
            problems.append(
                f"{where}: {name} is {there} there and {expected.shape} {expected.dtype} in this run"
            )
        else:
            # JAX may read a NumPy array after the call, and what it reads is the caller's.
            value = arrays[name].copy()
            found.append(jax.numpy.array(value) if isinstance(leaf, jax.Array) else value)
    if problems:
        raise ConfigError(problems)
    return jax.tree.unflatten(structure, found)
