"""Environments that come vectorised (gymnasium's ``VectorEnv``) as a ``BatchedEnv``, and what the
gymnasium adapters share: how a gymnasium space becomes a spec.

What a vector environment does with an episode that ended is read from its
``metadata["autoreset_mode"]`` and turned into a reset within the same step:

- SAME_STEP: it resets in the same step already; the last observation is ``info["final_obs"][i]``.
- DISABLED: the rows that ended are reset at once by ``reset(options={"reset_mask": mask})``.
- NEXT_STEP: the environment spends the row's next step on the reset and ignores its action. The mode is
  converted, by the same reset_mask, only where an early reset is known to cancel the pending one:
  gymnasium's SyncVectorEnv and AsyncVectorEnv, and environments whose user vouches for it.

After each masked reset the other rows' observations are compared with what they were: an environment
that does not know the option (CartPoleVectorEnv is one) resets every row, and would do so silently.

**Seeds.** A vector environment that accepts a list of seeds gets one for each row. One that does not gets
``int(seeds[0])``, and its rows then depend on their batch, against the protocol's promise.
"""

import pkgutil
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NoReturn

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from fastcollect.envs.base import (
    ActionSpec,
    EnvSpec,
    EnvStepError,
    State,
    StateUnsupportedError,
    StepBuffers,
    UnsupportedSpaceError,
    checked_seeds,
)

SUCCESS_KEYS = ("success", "is_success")


def observation_bounds(space: Any) -> tuple[tuple[int, ...], np.dtype, np.ndarray, np.ndarray]:
    """Shape, dtype, low and high of one observation.

    Box keeps its own; Discrete is a scalar int64; MultiBinary is int8 of 0 and 1. Raises
    UnsupportedSpaceError for any other space.
    """
    if isinstance(space, spaces.Box) and space.dtype.kind in "fiu":
        return space.shape, space.dtype, space.low, space.high
    if isinstance(space, spaces.Discrete):
        low, dtype = int(space.start), np.dtype(np.int64)
        return (), dtype, np.array(low, dtype), np.array(low + int(space.n) - 1, dtype)
    if isinstance(space, spaces.MultiBinary):
        return space.shape, space.dtype, np.zeros(space.shape, space.dtype), np.ones(space.shape, space.dtype)
    raise UnsupportedSpaceError(
        f"observation space {space!r} is not supported; supported are Box of a numeric dtype, Discrete and "
        "MultiBinary (gymnasium.wrappers.FlattenObservation turns many others into a Box)"
    )


def action_spec(space: Any) -> ActionSpec:
    """The ActionSpec of a Box of floats or of a Discrete that starts at 0; else UnsupportedSpaceError."""
    if isinstance(space, spaces.Box) and space.dtype.kind == "f":
        return ActionSpec(shape=space.shape, dtype=space.dtype, low=space.low, high=space.high)
    if isinstance(space, spaces.Discrete) and int(space.start) == 0:
        return ActionSpec(shape=(), dtype=np.dtype(np.int64), num_actions=int(space.n))
    raise UnsupportedSpaceError(
        f"action space {space!r} is not supported; supported are Box of a float dtype and Discrete that "
        "starts at 0"
    )


def space_spec(
    observation_space: Any,
    action_space: Any,
    max_episode_steps: int | None = None,
    has_success: bool = False,
) -> EnvSpec:
    """The EnvSpec of an environment with these gymnasium spaces. Raises UnsupportedSpaceError."""
    shape, dtype, low, high = observation_bounds(observation_space)
    return EnvSpec(
        observation_shape=shape,
        observation_dtype=dtype,
        observation_low=low,
        observation_high=high,
        action=action_spec(action_space),
        max_episode_steps=max_episode_steps,
        has_success=has_success,
    )


def _success_of(info: Mapping[str, Any], n: int) -> np.ndarray:
    """The success flags that an info gives, (n,) bool; rows and infos without the key are False."""
    flags = np.zeros(n, np.bool_)
    for key in SUCCESS_KEYS:
        if key in info:
            flags |= np.asarray(info[key], np.bool_)
    return flags


def factory_of(
    env_id: Any | None, entry_point: str | Callable[..., Any] | None, by_id: Callable[..., Any]
) -> Callable[..., Any]:
    """What makes environments: ``by_id`` of an id, or the entry point. ValueError unless one is given."""
    if entry_point is None and env_id is not None:
        return partial(by_id, env_id)
    if entry_point is None or env_id is not None:
        raise ValueError("give exactly one of env_id and entry_point")
    return pkgutil.resolve_name(entry_point) if isinstance(entry_point, str) else entry_point


def make(
    seeds: np.ndarray,
    *,
    env_id: str | Any | None = None,
    entry_point: str | Callable[..., VectorEnv] | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    has_success: bool = False,
    honours_reset_mask: bool = False,
) -> "GymVectorEnv":
    """Build one vector environment of ``len(seeds)`` rows.

    env_id: a registered id (or EnvSpec) with a ``vector_entry_point``.
    entry_point: instead of env_id, a VectorEnv class or factory, or its path "package.module:Name";
        called with ``num_envs`` and env_kwargs.
    has_success: whether ``info["success"]`` or ``info["is_success"]`` is the success signal.
    honours_reset_mask: vouch that in a NEXT_STEP environment ``reset(options={"reset_mask": mask})``
        resets the rows of the mask alone, and that their next step is then a real one.

    Raises ValueError where the autoreset mode is missing or cannot be converted, UnsupportedSpaceError
    for spaces the engine cannot carry.
    """
    # make_vec keeps env_id's own TimeLimit arguments and checks the vector entry point.
    by_id = partial(gymnasium.make_vec, vectorization_mode="vector_entry_point")
    factory, seeds = factory_of(env_id, entry_point, by_id), checked_seeds(seeds)
    env = factory(num_envs=seeds.size, **(env_kwargs or {}))
    try:
        mode = _autoreset_mode(env, honours_reset_mask)
        horizon = getattr(getattr(env, "spec", None), "max_episode_steps", None)
        spec = space_spec(env.single_observation_space, env.single_action_space, horizon, has_success)
        return GymVectorEnv(seeds, env, spec, mode)
    except BaseException:
        env.close()
        raise


def _autoreset_mode(env: VectorEnv, honours_reset_mask: bool) -> AutoresetMode:
    """The environment's mode, as its metadata says. Raises ValueError where it cannot be converted."""
    name = type(env.unwrapped).__name__
    value = env.metadata.get("autoreset_mode")
    if value is None:
        raise ValueError(
            f"{name} does not say what it does with an episode that ended: its metadata has no "
            "'autoreset_mode' (a gymnasium.vector.AutoresetMode)"
        )
    mode = AutoresetMode(value)
    known = honours_reset_mask or isinstance(env.unwrapped, (SyncVectorEnv, AsyncVectorEnv))
    if mode is AutoresetMode.NEXT_STEP and not known:
        raise ValueError(
            f"{name} resets in the step after an episode's end (AutoresetMode.NEXT_STEP). That can become a "
            "reset within the step only where reset(options={'reset_mask': mask}) is known to cancel it: "
            "pass honours_reset_mask=True if it is, or use the environment one by one (id 'gym:ID'), or, for "
            "CartPole-v1, the batched one of this package (id 'CartPole-v1')"
        )
    return mode


class GymVectorEnv:
    """A ``BatchedEnv`` over one gymnasium VectorEnv; see ``make``.

    An exception of the environment is passed on as it is, since nothing says which row raised it.
    """

    def __init__(self, seeds: np.ndarray, env: Any, spec: EnvSpec, mode: AutoresetMode) -> None:
        self.num_envs, self.spec = seeds.size, spec
        self._seeds, self._env, self._mode, self._started = seeds, env, mode, False

    def reset(self, observation: np.ndarray) -> None:
        """Start a new episode in every row, seeded the first time; write (n, *observation_shape)."""
        observation[...] = self._checked(self._env.reset()[0] if self._started else self._seeded_reset())
        self._started = True

    def _seeded_reset(self) -> np.ndarray:
        try:
            return self._env.reset(seed=self._seeds.tolist())[0]
        except (TypeError, ValueError, AttributeError, gymnasium.error.Error):
            # Its reset takes one integer only; if that was not the reason, this call raises it again.
            return self._env.reset(seed=int(self._seeds[0]))[0]

    def step(self, action: np.ndarray, out: StepBuffers) -> None:
        """Step every row; ``action`` is (n, *action.shape). Raises EnvStepError where a row is to blame."""
        if not self._started:
            raise RuntimeError("reset() must be called before step()")
        observation, reward, terminated, truncated, info = self._act(action)
        out.observation[...] = observation
        out.reward[...] = reward
        out.terminated[...] = terminated
        out.truncated[...] = truncated
        rows = np.flatnonzero(out.terminated | out.truncated)
        if self.spec.has_success:
            self._write_success(info, rows, out.success)
        if rows.size:
            self._restart(rows, info, out)

    def _act(self, action: np.ndarray) -> tuple[Any, ...]:
        observation, *rest = self._env.step(action.copy())
        return self._checked(observation), *rest

    def _write_success(self, info: Mapping[str, Any], rows: np.ndarray, success: np.ndarray) -> None:
        """In SAME_STEP mode info is about the new episode of a row that ended, final_info the old one."""
        success[...] = _success_of(info, self.num_envs)
        if rows.size and self._mode is AutoresetMode.SAME_STEP and "final_info" in info:
            success[rows] = _success_of(info["final_info"], self.num_envs)[rows]

    def _restart(self, rows: np.ndarray, info: Mapping[str, Any], out: StepBuffers) -> None:
        if self._mode is AutoresetMode.SAME_STEP:
            final = info.get("final_obs")
            for i in rows.tolist():
                if final is None or final[i] is None:
                    self._broken(i, "ended an episode without info['final_obs']")
                out.final_observation[i] = final[i]
            return
        out.final_observation[rows] = out.observation[rows]
        done = out.terminated | out.truncated
        # A fresh dict and a mask of its own: SyncVectorEnv takes the key out of it.
        first = self._checked(self._env.reset(options={"reset_mask": done.copy()})[0])
        others = np.flatnonzero(~done)
        if others.size:
            kept = np.asarray(first).astype(self.spec.observation_dtype, copy=False)[others]
            moved = kept.view(np.uint8) != out.observation[others].view(np.uint8)
            moved_rows = others[moved.reshape(others.size, -1).any(axis=1)]
            if moved_rows.size:
                what = "was moved by a reset_mask that leaves it out; the environment ignores the mask"
                self._broken(int(moved_rows[0]), what)
        out.observation[rows] = first[rows]

    def _broken(self, row: int, what: str) -> NoReturn:
        raise EnvStepError(row, f"row {row} of {self._env} ({self._mode.name}) {what}")

    def _checked(self, observation: np.ndarray) -> np.ndarray:
        """The observations, which NumPy would broadcast from a wrong shape."""
        want = (self.num_envs, *self.spec.observation_shape)
        if np.shape(observation) != want:
            raise ValueError(
                f"{self._env} gave observations of shape {np.shape(observation)}, expected {want}"
            )
        return observation

    def get_state(self) -> State:
        """Always raises StateUnsupportedError."""
        raise StateUnsupportedError(f"{type(self).__name__}: vectorised environments cannot save their state")

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Always raises StateUnsupportedError."""
        self.get_state()

    def close(self) -> None:
        """Close the environment; idempotent."""
        env, self._env = self._env, None
        if env is not None:
            env.close()
