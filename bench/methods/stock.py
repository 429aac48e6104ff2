"""Stock environments, one copy each, and what acts in them for the peers that have no policy."""

import itertools
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np

from bench.methods.base import Request, UnsupportedError
from fastcollect import ActionSpec, EnvConfig, StepBuffers
from fastcollect.envs.gym_vector import space_spec
from fastcollect.envs.registry import CRAFTER, METAWORLD_TASKS, make_env
from fastcollect.policies.choice import parse_policy

RESEED_STEPS = 500
_ACTION_BYTES = 1 << 20  # of actions drawn beforehand: enough to differ, few enough to stay in the cache


def make_stock(env_id: str) -> Any:
    """One environment as its own library makes it; one copy of ours where there is no other."""
    if env_id in METAWORLD_TASKS:
        return gymnasium.make("metaworld:Meta-World/MT1", env_name=env_id)  # imports what registers it
    if env_id in CRAFTER:
        return _StockCrafter(reward=env_id == "CrafterReward-v1")
    if env_id.startswith("gameboy:"):
        return _OneCopy(env_id)
    stock_id = stock_name(env_id)
    if stock_id not in gymnasium.registry:
        raise UnsupportedError(f"gymnasium has no environment {stock_id!r}")
    return gymnasium.make(stock_id)


def stock_name(env_id: str) -> str:
    """The id without the choice of adapter that the collector knows."""
    prefix, _, rest = env_id.partition(":")
    return rest if prefix in ("gym", "vector", "envpool") and rest else env_id


class _StockCrafter(gymnasium.Env):
    """Crafter as it comes, with gymnasium's interface; a seed is the game's from then on."""

    def __init__(self, reward: bool) -> None:
        import crafter

        self._game = crafter.Env(reward=reward)
        self.observation_space = gymnasium.spaces.Box(0, 255, self._game.observation_space.shape, np.uint8)
        self.action_space = gymnasium.spaces.Discrete(self._game.action_space.n)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        if seed is not None:
            self._game._seed = seed
        return self._game.reset(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        observation, reward, done, info = self._game.step(action)
        dead = info["discount"] == 0
        return observation, reward, dead, done and not dead, {}


class _OneCopy(gymnasium.Env):
    """One copy of an environment of ours, for which there is no other implementation; its seed is fixed."""

    def __init__(self, env_id: str) -> None:
        self._env = make_env(EnvConfig(id=env_id), np.zeros(1, np.int64))
        spec = self._env.spec
        low, high, dtype = spec.observation_low, spec.observation_high, spec.observation_dtype.type
        self.observation_space = gymnasium.spaces.Box(low, high, spec.observation_shape, dtype)
        assert spec.action.num_actions is not None  # as of every environment for which this is made
        self.action_space = gymnasium.spaces.Discrete(spec.action.num_actions)
        self._out, self._begun = StepBuffers.allocate(spec, 1), False

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        if not self._begun:  # later episodes begin within the step that ends the one before
            self._env.reset(self._out.observation)
            self._begun = True
        return self._out.observation[0].copy(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        out = self._out
        self._env.step(np.array([action]), out)
        ends = bool(out.terminated[0]), bool(out.truncated[0])
        observation = out.final_observation if any(ends) else out.observation
        return observation[0].copy(), float(out.reward[0]), *ends, {}

    def close(self) -> None:
        self._env.close()


def draw_actions(action: ActionSpec, num_envs: int, dtype: np.dtype | None = None) -> Iterator[np.ndarray]:
    """Batches of uniform actions, drawn before the clock starts, again and again."""
    rng, shape = np.random.default_rng(0), (num_envs, *action.shape)
    dtype = dtype or action.dtype
    count = max(16, min(RESEED_STEPS, _ACTION_BYTES // int(np.prod(shape) * dtype.itemsize)))
    if action.num_actions is not None:
        batches: np.ndarray = rng.integers(action.num_actions, size=(count, *shape))
    else:
        assert action.low is not None
        assert action.high is not None
        low = np.where(np.isfinite(action.low), action.low, -1.0)
        high = np.where(np.isfinite(action.high), action.high, 1.0)
        batches = rng.uniform(low, high, (count, *shape))
    return itertools.cycle(list(batches.astype(dtype)))


class Actor:
    """The row's policy in NumPy for a peer that has none: the one that env workers use when M is 0."""

    def __init__(self, request: Request, observation_space: Any, action_space: Any, num_envs: int) -> None:
        spec = space_spec(observation_space, action_space)
        self._policy = parse_policy(request.policy, request.env).build(spec, batched=False)
        self._policy.load(self._policy.initial_parameters(0))
        self._action = np.zeros((num_envs, *spec.action.shape), spec.action.dtype)
        self._rng = np.random.default_rng(request.index)

    def __call__(self, observation: np.ndarray) -> np.ndarray:
        """Actions (num_envs, ...) for observations (num_envs, ...); valid until the next call."""
        action, noise = self._action[: len(observation)], None
        if self._policy.noise is not None:
            kind, count = self._policy.noise
            draw = self._rng.standard_normal if kind == "normal" else self._rng.random
            noise = draw((len(observation), count), np.float32)
        self._policy.act(observation, noise, action, {})
        return action
