"""Specs of environments that do not exist, and a policy's answer for arrays that are given."""

import numpy as np

from fastcollect.envs.base import ActionSpec, EnvSpec
from fastcollect.policies.network import EXTRAS


def _spec(action, observation_shape, observation_dtype):
    return EnvSpec(
        observation_shape=observation_shape,
        observation_dtype=np.dtype(observation_dtype),
        observation_low=np.zeros(observation_shape),
        observation_high=np.ones(observation_shape),
        action=action,
    )


def box_spec(low, high, observation_shape=(5,), observation_dtype=np.float32, dtype=np.float32):
    low, high = np.asarray(low, dtype), np.asarray(high, dtype)
    action = ActionSpec(shape=low.shape, dtype=np.dtype(dtype), low=low, high=high)
    return _spec(action, observation_shape, observation_dtype)


def discrete_spec(num_actions, observation_shape=(5,), observation_dtype=np.float32):
    action = ActionSpec(shape=(), dtype=np.dtype(np.int64), num_actions=num_actions)
    return _spec(action, observation_shape, observation_dtype)


def act(policy, spec, observation, noise, extras=()):
    """(action, extras by name) of a policy, in buffers that held nonsense before."""
    batch = len(observation)
    action = np.full((batch, *spec.action.shape), 77, spec.action.dtype)
    fields = {name: EXTRAS[name].field(name, spec.action) for name in extras}
    out = {name: np.full((batch, *fields[name].shape), 77, fields[name].dtype) for name in extras}
    policy.act(observation, noise, action, out)
    return action, out


def random_weights(parameters, seed, scale=1.0):
    """Weights with biases that are not zero; ``scale`` is that of the first layer."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, field in parameters.items():
        spread = 0.3 if len(field.shape) == 1 else field.shape[0] ** -0.5
        spread *= scale if name == "kernel_0" else 1
        weights[name] = (spread * rng.standard_normal(field.shape)).astype(field.dtype)
    return weights


def reference_head(weights, observation, prefix=""):
    """One network in float64, layer by layer, one row and one unit at a time."""
    weights = {
        name.removeprefix(prefix): array
        for name, array in weights.items()
        if name.startswith((f"{prefix}kernel", f"{prefix}bias"))
    }
    depth = len(weights) // 2
    heads = []
    for row in observation.reshape(len(observation), -1).astype(np.float64):
        for i in range(depth):
            kernel, bias = weights[f"kernel_{i}"].astype(np.float64), weights[f"bias_{i}"].astype(np.float64)
            row = np.array([sum(row * kernel[:, j]) + bias[j] for j in range(kernel.shape[1])])
            if i < depth - 1:
                row = np.array([max(x, 0.0) for x in row])
        heads.append(row)
    return np.array(heads)
