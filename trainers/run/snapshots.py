"""A learner's state at one moment, as named arrays and back: what is kept, and what a run begins with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import jax
import numpy as np

from engine.algorithms.sac import DENSE, Masks, SACState
from engine.normalizer import Moments
from fastcollect.support.errors import ConfigError
from trainers.store.layout import STATE

_NORMALIZER = "normalizer/"


@dataclass(frozen=True)
class Snapshot:
    """A learner at one moment. state: arrays of its own. env_steps, updates: done until then."""

    state: SACState
    moments: Moments
    env_steps: int
    updates: int


@dataclass(frozen=True)
class Start:
    """What a run begins with. masks: of its networks. snapshot: None for fresh weights.

    random_actions: whether it collects at random until start_steps. replay: None, or arrays of
    ``Learner.get_state`` to begin with. keep: which artifacts it leaves beside "final": any of "initial",
    "anchor", "best", "saliency".
    """

    masks: Masks = field(default_factory=lambda: DENSE)
    snapshot: Snapshot | None = None
    replay: Mapping[str, np.ndarray] | None = None
    random_actions: bool = True
    keep: tuple[str, ...] = ("initial", "anchor", "best", "saliency")


def _names(state: SACState) -> list[str]:
    paths, _ = jax.tree_util.tree_flatten_with_path(state)
    return [STATE + jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]


def to_arrays(snapshot: Snapshot) -> dict[str, np.ndarray]:
    """Flat and plain: "sac/actor/kernel_0", "sac/optimizer/critic/0/mu/q0/kernel_1", "normalizer/mean"."""
    leaves = [np.asarray(leaf) for leaf in jax.device_get(jax.tree.leaves(snapshot.state))]
    moments = snapshot.moments
    return {
        **dict(zip(_names(snapshot.state), leaves, strict=True)),
        f"{_NORMALIZER}count": np.int64(moments.count),
        f"{_NORMALIZER}mean": moments.mean,
        f"{_NORMALIZER}squares": moments.squares,
        "env_steps": np.int64(snapshot.env_steps),
        "updates": np.int64(snapshot.updates),
    }


def from_arrays(arrays: Mapping[str, np.ndarray], template: SACState, where: str) -> Snapshot:
    """The snapshot that ``to_arrays`` saved of a learner like the template.

    Raises ConfigError naming ``where``, every leaf that does not fit, and both shapes.
    """
    names, (leaves, structure) = _names(template), jax.tree.flatten(template)
    size = template.actor["kernel_0"].shape[0]
    expected = dict(zip(names, ((leaf.shape, leaf.dtype) for leaf in leaves), strict=True))
    expected |= {f"{_NORMALIZER}{name}": ((size,), np.dtype(np.float64)) for name in ("mean", "squares")}
    counts = (f"{_NORMALIZER}count", "env_steps", "updates")
    expected |= {name: ((), np.dtype(np.int64)) for name in counts}
    problems = []
    for name, (shape, dtype) in expected.items():
        if name not in arrays:
            problems.append(f"{where}: {name} of shape {shape} is missing")
        elif (arrays[name].shape, arrays[name].dtype) != (shape, dtype):
            there = f"{arrays[name].shape} {arrays[name].dtype}"
            problems.append(f"{where}: {name} is {there} there and {shape} {dtype} in this run")
    if problems:
        raise ConfigError(problems)
    moments = Moments(
        int(arrays[f"{_NORMALIZER}count"]), *(arrays[f"{_NORMALIZER}{n}"] for n in ("mean", "squares"))
    )
    # JAX may read a NumPy array after the call, and what it reads is the caller's.
    state = jax.tree.unflatten(structure, [jax.numpy.array(arrays[name].copy()) for name in names])
    return Snapshot(state, moments, int(arrays["env_steps"]), int(arrays["updates"]))
