"""Theoretical floating-point operations of dense, masked and compact networks.

A multiply-add counts as 2 and the addition of a bias as 1; activations and their normalisation, losses,
averages of weights and the optimizer, which do not grow with weights times rows, count as nothing. No
hardware reaches the masked count with dense kernels; the compact one is what dense kernels do reach. A
backward pass counts as two forward passes: one for the gradient of the inputs, one for that of the weights
(as in Evci et al. 2020).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from engine.sparse import masks
from engine.sparse.compact import compact


def forward(mask: masks.MaskLike, parameters: Mapping[str, Any], normalise: bool = False) -> dict[str, int]:
    """{"dense", "masked", "compact"}: operations of a forward pass on one row.

    Of every network in the parameters together: of both critics, if they are a twin critic's. normalise: as
    ``compact`` has it.
    Raises ValueError if the mask does not match the parameters.
    """
    masks.check_matches(mask, parameters)
    full, parts = masks.full(parameters), masks.networks(mask)
    small = [
        compact(parts.get(prefix, {}), part, normalise) for prefix, part in masks.networks(parameters).items()
    ]
    return {
        "dense": _operations(full, parameters),
        "masked": _operations(mask or full, parameters),
        "compact": sum(_operations(masks.full(each.parameters), each.parameters) for each in small),
    }


def _operations(mask: masks.MaskLike, parameters: Mapping[str, Any]) -> int:
    biases = sum(np.size(leaf) for name, leaf in parameters.items() if name not in mask)
    return 2 * masks.counts(mask)[1] + biases
