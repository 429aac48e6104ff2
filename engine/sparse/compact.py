"""Masked networks as small dense ones: units and inputs that cannot matter are taken out."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from engine.sparse import masks


class CompactMLP(NamedTuple):
    """A dense ReLU network on some of the inputs; layers and inputs may be of width 0."""

    inputs: np.ndarray
    """(k,) int, the inputs to select, ascending."""
    parameters: dict[str, np.ndarray]
    """kernel_i (in, out) and bias_i (out,), float32."""


def compact(mask: masks.MaskLike, parameters: Mapping[str, Any], normalise: bool = False) -> CompactMLP:
    """The network that gives the masked one's outputs with every unit that has no influence removed.

    mask, parameters: of one network, names without a prefix (see ``masks.networks``). Outputs all stay, as do
    inputs and hidden units that lie on a path of kept weights from an input to an output. A unit without
    kept incoming weights has the constant activation relu(bias), which goes into the next bias in float64.
    normalise: of a network whose hidden layers are normalised over their units, where each unit, even a
    constant or an unread one, has a part in what the others are: only inputs without a kept weight go.
    Raises ValueError if the mask does not match, or the names are not kernel_0, bias_0, kernel_1, ...
    """
    masks.check_matches(mask, parameters)
    depth = len(masks.kernels(parameters))
    if not depth or set(parameters) != {f"{kind}_{i}" for i in range(depth) for kind in ("kernel", "bias")}:
        raise ValueError(f"names must be kernel_0, bias_0, kernel_1, ..., not {', '.join(parameters)}")
    mask = mask or masks.full(parameters)
    kept = [np.asarray(mask[f"kernel_{i}"]) for i in range(depth)]
    kernels = [np.where(kept[i], np.asarray(parameters[f"kernel_{i}"]), 0) for i in range(depth)]
    biases = [np.array(parameters[f"bias_{i}"], np.float64) for i in range(depth)]
    alive, constants = _alive(kept)
    if normalise:
        whole = [np.ones(layer.shape[1], bool) for layer in kept]
        alive, constants = [np.asarray(kept[0].any(1)), *whole], []
    for i, constant in enumerate(constants, 1):
        biases[i] += np.maximum(biases[i - 1][constant], 0) @ kernels[i][constant]
    small: dict[str, np.ndarray] = {}
    for i in range(depth):
        small[f"kernel_{i}"] = kernels[i][np.ix_(alive[i], alive[i + 1])].astype(np.float32)
        small[f"bias_{i}"] = biases[i][alive[i + 1]].astype(np.float32)
    return CompactMLP(np.flatnonzero(alive[0]), small)


def _alive(kept: Sequence[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Which units lie on a path from an input to an output, and which hidden ones are constant.

    kept: the mask of each layer. The first list has inputs, hidden layers and outputs: layer i reads units i
    and writes units i + 1.
    """
    alive = [np.ones(kept[0].shape[0], bool), *(np.ones(mask.shape[1], bool) for mask in kept)]
    constants = []
    # One pass forwards for constant units and one backwards for unread ones leave nothing to repeat: no unit
    # loses a reader with a constant one, nor an input with an unread one.
    for i in range(1, len(kept)):
        constants.append(~kept[i - 1][alive[i - 1]].any(0))
        alive[i] &= ~constants[-1]
    for i in reversed(range(len(kept))):
        alive[i] &= kept[i][:, alive[i + 1]].any(1)
    return alive, constants


def effective(mask: masks.MaskLike) -> dict[str, int]:
    """Kept weights of each leaf that lie on a path of kept weights from an input to an output.

    The others change no output, or only as a bias does, unless hidden layers are normalised over their units.
    mask: of any number of networks, written out.
    """
    found = {}
    for prefix, part in masks.networks(mask).items():
        names = masks.kernels(part)
        kept = [np.asarray(part[name]) for name in names]
        alive, _ = _alive(kept)
        for i, name in enumerate(names):
            found[f"{prefix}{name}"] = int(np.count_nonzero(kept[i][np.ix_(alive[i], alive[i + 1])]))
    return found


def forward(parameters: Mapping[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """Outputs (batch, out) of a dense ReLU network for the inputs (batch, in) that it reads."""
    depth = len(parameters) // 2
    for i in range(depth):
        x = x @ parameters[f"kernel_{i}"] + parameters[f"bias_{i}"]
        if i < depth - 1:
            x = np.maximum(x, 0)
    return x
