"""What a run has learned, as something that acts without the environment and the learner."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fastcollect import ActionSpec, ConfigError, EnvSpec, PolicyConfig
from fastcollect.support.named import below
from trainers.store import artifacts
from trainers.store.folder import RunFolder

_ARTIFACT = "policy"
_PARAMETERS = "parameters/"


class TrainedPolicy:
    """The deterministic policy of a run, on raw observations."""

    def __init__(self, config: PolicyConfig, spec: EnvSpec, parameters: Mapping[str, np.ndarray]) -> None:
        self.spec = spec
        self._policy = config.build(spec, batched=False)
        self._policy.load(parameters)

    def __call__(self, observation: np.ndarray) -> np.ndarray:
        """The action for one observation, or actions (batch, ...) for observations (batch, ...).

        Raises ValueError for observations of another shape.
        """
        observation = np.asarray(observation, self.spec.observation_dtype)
        single = observation.shape == self.spec.observation_shape
        rows = observation[None] if single else observation
        if rows.shape[1:] != self.spec.observation_shape:
            raise ValueError(
                f"observations of shape {observation.shape}; allowed: {self.spec.observation_shape}, or a "
                "batch of those"
            )
        action = np.empty((len(rows), *self.spec.action.shape), self.spec.action.dtype)
        if len(rows):
            self._policy.act(rows, None, action, {})
        return action[0] if single else action


def save_policy(
    folder: RunFolder, config: PolicyConfig, spec: EnvSpec, parameters: Mapping[str, np.ndarray]
) -> None:
    """Keep what ``load_policy`` needs in a run folder."""
    action, dtype = spec.action, str(np.dtype(spec.action.dtype))
    arrays = {f"{_PARAMETERS}{name}": value for name, value in parameters.items()}
    if not action.discrete:
        arrays |= {"low": np.asarray(action.low), "high": np.asarray(action.high)}
    meta = {
        "policy": {"name": config.name, "inline": config.inline, "kwargs": dict(config.kwargs)},
        "observation": {"shape": spec.observation_shape, "dtype": str(np.dtype(spec.observation_dtype))},
        "action": {"shape": action.shape, "dtype": dtype, "num_actions": action.num_actions},
    }
    artifacts.save(folder.path, _ARTIFACT, arrays, meta, config_hash=folder.config_hash)


def load_policy(folder: Path, config_hash: str) -> TrainedPolicy:
    """What ``save_policy`` kept. Raises ConfigError if it is not there, was changed, or is code of others."""
    found = artifacts.load(folder, _ARTIFACT, config_hash)
    policy, observation, action = (found.meta[name] for name in ("policy", "observation", "action"))
    # The file names data; which code runs is not for it to say.
    if not policy["inline"].startswith("fastcollect.policies."):
        raise ConfigError(
            [f"the policy of {str(folder)!r} is {policy['inline']!r}; allowed: those of fastcollect.policies"]
        )
    spec = EnvSpec(
        observation_shape=tuple(observation["shape"]),
        observation_dtype=np.dtype(observation["dtype"]),
        observation_low=np.array(-np.inf, np.float32),
        observation_high=np.array(np.inf, np.float32),
        action=ActionSpec(
            shape=tuple(action["shape"]),
            dtype=np.dtype(action["dtype"]),
            low=found.arrays.get("low"),
            high=found.arrays.get("high"),
            num_actions=action["num_actions"],
        ),
    )
    config = PolicyConfig(**policy, batched=policy["inline"])
    return TrainedPolicy(config, spec, below(found.arrays, _PARAMETERS))
