"""A small dense network with as many weights as a sparse one, inside the shapes of the large one.

Only the first units of each hidden layer are kept, with all weights between them. ``engine.sparse.compact``
finds the small network in it again.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from engine.sparse import masks, pruning


def small(parameters: Mapping[str, Any], sparsity: float) -> tuple[masks.Mask, dict[str, np.ndarray]]:
    """The mask of small dense layers, and the weights that such layers begin with.

    Of all widths that are the same share of the large ones, those whose number of weights is nearest to what
    ``sparsity`` leaves of all kernels together; the larger of two that are as near. Kernels are drawn with a
    variance of one over their inputs (LeCun et al. 1998), and those that are kept are stretched to the fewer
    inputs that are left. Raises ValueError for a sparsity outside [0, 1).
    """
    pruning.check_sparsity("sparsity", sparsity)
    names, parts = masks.kernels(parameters), masks.networks(parameters).values()
    hidden = [np.shape(part[name])[1] for part in parts for name in masks.kernels(part)[:-1]]
    wide = max(hidden, default=1)
    size = sum(np.size(parameters[name]) for name in names)
    shares = [units / wide for units in range(wide, 0, -1)]
    found = [_mask(parameters, share) for share in shares]
    mask = min(found, key=lambda each: abs(masks.counts(each)[1] - (1 - sparsity) * size))
    weights = {name: np.array(leaf) for name, leaf in parameters.items()}
    for name in names:
        inputs = np.count_nonzero(mask[name].any(1))
        weights[name] = np.where(mask[name], weights[name] * np.float32((len(mask[name]) / inputs) ** 0.5), 0)
    return mask, weights


def _mask(parameters: Mapping[str, Any], share: float) -> masks.Mask:
    """The first ``share`` of the units of every hidden layer, one at least."""
    found: masks.Mask = {}
    for prefix, part in masks.networks(parameters).items():
        names = masks.kernels(part)
        inputs = len(part[names[0]])
        for name in names:
            shape = np.shape(part[name])
            outputs = shape[1] if name == names[-1] else max(1, round(share * shape[1]))
            kept = np.zeros(shape, bool)
            kept[:inputs, :outputs] = True
            found[f"{prefix}{name}"], inputs = kept, outputs
    return found
