"""Networks of given widths and random masks of them, in NumPy."""

import itertools

import numpy as np


def network(widths, seed=0, prefix=""):
    rng = np.random.default_rng(seed)
    parameters = {}
    for i, shape in enumerate(itertools.pairwise(widths)):
        parameters[f"{prefix}kernel_{i}"] = rng.standard_normal(shape).astype(np.float32)
        parameters[f"{prefix}bias_{i}"] = rng.standard_normal(shape[1]).astype(np.float32)
    return parameters


def random_mask(parameters, density, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.random(v.shape) < density for name, v in parameters.items() if "kernel" in name}
