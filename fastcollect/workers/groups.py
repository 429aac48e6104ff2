"""Builds the groups of one env worker, or of the serial collector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastcollect.envs.base import EnvSpec, EnvStepError
from fastcollect.envs.registry import EnvConfig, make_env, select_rows
from fastcollect.memory.ring import Ring, RingConfig
from fastcollect.memory.segment import FieldSpec
from fastcollect.policies.base import PolicyConfig
from fastcollect.support.errors import ConfigError
from fastcollect.workers.group import Group


@dataclass(frozen=True, kw_only=True)
class GroupsConfig:
    """The environments of one worker.

    env, policy: what to run. ring: sizes. parameters: the board's fields. noise: kind of the policy's noise.
    first_env: global index of the first environment. seed: of the run. life: how often these environments
    were started before; a replacement must not repeat the episodes of the worker that died.
    check: poison blocks before they are written.
    """

    env: EnvConfig
    policy: PolicyConfig
    ring: RingConfig
    parameters: dict[str, FieldSpec]
    noise: str | None
    first_env: int
    seed: int
    life: int = 0
    check: bool = False


def env_seeds(seed: int, first_env: int, num_envs: int, life: int) -> np.ndarray:
    """One int64 seed in [0, 2**63) for each environment, a function of (seed, index, life) alone."""
    words = [
        np.random.SeedSequence([seed, first_env + i, life]).generate_state(1, np.uint64)[0]
        for i in range(num_envs)
    ]
    return (np.array(words, np.uint64) >> np.uint64(1)).astype(np.int64)


def make_groups(config: GroupsConfig, ring: Ring) -> list[Group]:
    """Build and reset every group of a worker."""
    groups, first = [], config.first_env
    for number, size in enumerate(config.ring.envs):
        seeds = env_seeds(config.seed, first, size, config.life)
        try:
            env = make_env(select_rows(config.env, first, size), seeds)
            check_spec(env.spec, config.ring.spec, first)
            group = Group(
                env,
                ring,
                number,
                first_env=first,
                # A second life of the same environments draws other noise, too.
                seed=config.seed + (config.life << 32),
                noise=config.noise,
                check=config.check,
            )
        except EnvStepError as error:
            error.add_note(f"environment {first + error.env_index}, step 0:")
            raise
        groups.append(group)
        first += size
    return groups


def check_spec(found: EnvSpec, expected: EnvSpec, first_env: int) -> None:
    """Raises ConfigError if environments of one run differ in what they emit or take."""

    def essence(spec: EnvSpec) -> tuple[Any, ...]:
        action = spec.action
        observation = spec.observation_shape, np.dtype(spec.observation_dtype)
        return *observation, action.shape, np.dtype(action.dtype), action.num_actions, spec.has_success

    if essence(found) != essence(expected):
        raise ConfigError(
            [
                "all environments of a run must have the same spaces: those from environment "
                f"{first_env} on have {essence(found)}, environment 0 has {essence(expected)}"
            ]
        )
