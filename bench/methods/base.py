"""What every method of ``bench.fps`` is made of. Imports nothing that a peer's virtual environment lacks."""

from __future__ import annotations

import ctypes
import itertools
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastcollect.envs.base import ActionSpec, EnvSpec
from fastcollect.envs.registry import CRAFTER, METAWORLD_TASKS
from fastcollect.memory.tokens import TokenChannel
from fastcollect.policies.choice import parse_policy

RESEED_STEPS = 500
_PR_SET_PDEATHSIG = 1
_ACTION_BYTES = 1 << 20  # of actions drawn beforehand: enough to differ, few enough to stay in the cache


@dataclass(frozen=True, kw_only=True)
class Request:
    """One measurement in one process.

    method: a key of ``METHODS``. env: the environment's id. n, N, M: as in the row.
    policy: see ``fastcollect.support.command.parse_policy``. seconds: on the clock, after ``warm_up``.
    index: which of several processes of the same method this is. tokens: see ``CollectorConfig``.
    """

    method: str
    env: str
    n: int
    N: int
    M: int
    policy: str | None
    seconds: float
    warm_up: float
    index: int = 0
    tokens: TokenChannel = "pipes"


@dataclass(frozen=True)
class Subject:
    """What is measured. step: advances and says by how many environment steps. close: frees it.

    num_envs: environments that exist at the same time. facts: what is worth telling once the clock has
    stopped.
    """

    step: Callable[[], int]
    close: Callable[[], None]
    num_envs: int
    facts: Callable[[], dict[str, Any]] = dict


def die_with(parent: int) -> None:
    """Have this process killed when its parent, whose number this is, ends in whatever way."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the request took effect
        os._exit(1)


class UnsupportedError(ValueError):
    """This method does not exist for this environment or on this machine; the text says what does."""


def make_stock(env_id: str) -> Any:
    """One environment as its own library makes it; one copy of ours where there is no other."""
    import gymnasium

    if env_id in METAWORLD_TASKS:
        return gymnasium.make("metaworld:Meta-World/MT1", env_name=env_id)  # imports what registers it
    if env_id in CRAFTER:
        from bench.methods.stock import StockCrafter

        return StockCrafter(reward=env_id == "CrafterReward-v1")
    if env_id.startswith("gameboy:"):
        from bench.methods.stock import OneCopy

        return OneCopy(env_id)
    stock_id = stock_name(env_id)
    if stock_id not in gymnasium.registry:
        raise UnsupportedError(f"gymnasium has no environment {stock_id!r}")
    return gymnasium.make(stock_id)


def stock_name(env_id: str) -> str:
    """The id without the engine's choice of adapter."""
    prefix, _, rest = env_id.partition(":")
    return rest if prefix in ("gym", "vector", "envpool") and rest else env_id


def draw_actions(action: ActionSpec, num_envs: int, dtype: np.dtype | None = None) -> Iterator[np.ndarray]:
    """Batches of uniform actions, drawn before the clock starts, again and again."""
    rng = np.random.default_rng(0)
    dtype = dtype or action.dtype
    shape = (num_envs, *action.shape)
    count = max(16, min(RESEED_STEPS, _ACTION_BYTES // int(np.prod(shape) * dtype.itemsize)))
    if action.discrete:
        batches = rng.integers(action.num_actions, size=(count, *shape))
    else:
        low = np.where(np.isfinite(action.low), action.low, -1.0)
        high = np.where(np.isfinite(action.high), action.high, 1.0)
        batches = rng.uniform(low, high, (count, *shape))
    return itertools.cycle(list(batches.astype(dtype)))


class Actor:
    """The row's policy in NumPy for a peer that has none: the one that the engine's inline workers use."""

    def __init__(self, request: Request, observation_space: Any, action_space: Any, num_envs: int) -> None:
        from fastcollect.envs.gym_vector import action_spec, observation_bounds

        shape, dtype, low, high = observation_bounds(observation_space)
        action = action_spec(action_space)
        spec = EnvSpec(
            observation_shape=shape,
            observation_dtype=dtype,
            observation_low=low,
            observation_high=high,
            action=action,
        )
        self._policy = parse_policy(request.policy, request.env).build(spec, batched=False)
        self._policy.load(self._policy.initial_parameters(0))
        self._action = np.zeros((num_envs, *action.shape), action.dtype)
        self._rng = np.random.default_rng(request.index)

    def __call__(self, observation: np.ndarray) -> np.ndarray:
        """Actions (num_envs, ...) for observations (num_envs, ...); valid until the next call."""
        action = self._action[: len(observation)]
        self._policy.act(observation, self._noise(len(observation)), action, {})
        return action

    def _noise(self, rows: int) -> np.ndarray | None:
        if self._policy.noise is None:
            return None
        kind, count = self._policy.noise
        shape = (rows, count)
        if kind == "normal":
            return self._rng.standard_normal(shape, np.float32)
        return self._rng.random(shape, np.float32)
