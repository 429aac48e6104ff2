"""Stock gymnasium environments as a ``BatchedEnv``: a plain loop over n of them.

Anything that ``gymnasium.make`` accepts works, and so does any class or factory that returns an
environment. The adapter adds three things to the loop: an episode that ends is reset within the same
step, an exception says which row raised it, and state can be saved without pickling the environment.

**State.** An episode is saved as what produced it: the seed, the state of ``env.unwrapped.np_random`` at
its start, and the actions since. Restoring replays them and compares the last observation bit for bit. An
environment that draws from any other generator, or carries anything from one episode to the next, is
refused when that shows in the observation.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium
import numpy as np

from fastcollect.envs.base import (
    EnvSpec,
    EnvStepError,
    State,
    StateUnsupportedError,
    StepBuffers,
    UnsupportedSpaceError,
    checked_seeds,
)
from fastcollect.envs.gym_vector import SUCCESS_KEYS, factory_of, space_spec

_NOT_RECORDED = "the environments were built with record_actions=False, so there are no actions to replay"


def make(
    seeds: np.ndarray,
    *,
    env_id: str | Any | None = None,
    entry_point: str | Callable[..., gymnasium.Env] | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    per_env_kwargs: Sequence[Mapping[str, Any]] | None = None,
    has_success: bool | None = None,
    time_limit: int | None = None,
    record_actions: bool = True,
) -> "GymEnv":
    """Build ``len(seeds)`` gymnasium environments.

    seeds: (n,) int64; environment i's first reset gets ``seed=int(seeds[i])``, later resets get none.
    env_id: an id (or EnvSpec) for ``gymnasium.make``: "Pendulum-v1", "module:EnvId".
    entry_point: instead of env_id, a class or factory, or its path "package.module:Name".
    env_kwargs: keyword arguments of every environment.
    per_env_kwargs: one mapping for each row, merged over env_kwargs.
    has_success: whether ``info["success"]`` or ``info["is_success"]`` is the success signal. None: as the
        environment's boolean attribute ``has_success`` says; without one, a throwaway copy is stepped
        once, and either key in its info means yes. Say True where only some steps give the key (a step
        without it counts as no success).
    time_limit: truncate episodes after this many steps (gymnasium's TimeLimit wrapper).
    record_actions: keep the actions of unfinished episodes, which ``get_state`` needs. False spares
        that memory in environments whose episodes never end.

    Raises UnsupportedSpaceError for spaces the engine cannot carry, ValueError for arguments that do
    not fit together, and whatever an environment's constructor raises, with a note of its row.
    """
    factory = factory_of(env_id, entry_point, partial(gymnasium.make, disable_env_checker=True))
    seeds = checked_seeds(seeds)
    per_row = [{}] * seeds.size if per_env_kwargs is None else per_env_kwargs
    if len(per_row) != seeds.size:
        raise ValueError(f"per_env_kwargs has {len(per_row)} entries for {seeds.size} environments")
    rows = [{**(env_kwargs or {}), **row} for row in per_row]
    build = partial(_build, factory, time_limit)
    with ExitStack() as built:
        envs: list[gymnasium.Env] = []
        for i, kwargs in enumerate(rows):
            try:
                envs.append(built.enter_context(closing(build(kwargs))))
            except Exception as exc:
                exc.add_note(f"while constructing row {i}")
                raise
        spec = _batch_spec(envs, has_success, partial(build, rows[0]))
        built.pop_all()  # they stay open from here on
    return GymEnv(seeds, envs, spec, record_actions)


def _build(
    factory: Callable[..., gymnasium.Env], time_limit: int | None, kwargs: Mapping[str, Any]
) -> gymnasium.Env:
    """One environment. The passive checker stays out: this adapter checks each observation itself."""
    env = factory(**kwargs)
    missing = [a for a in ("reset", "step", "observation_space", "action_space") if not hasattr(env, a)]
    if missing:
        raise TypeError(f"{factory!r} returned {env!r}, no gymnasium environment: it lacks {missing}")
    return env if time_limit is None else gymnasium.wrappers.TimeLimit(env, time_limit)


def _batch_spec(
    envs: Sequence[gymnasium.Env], has_success: bool | None, throwaway: Callable[[], gymnasium.Env]
) -> EnvSpec:
    """One spec for all rows: equal actions and observation shapes, the union of observation bounds."""
    specs = [space_spec(env.observation_space, env.action_space, _horizon(env)) for env in envs]
    kinds = [(spec.observation_shape, spec.observation_dtype, spec.max_episode_steps) for spec in specs]
    for i, env in enumerate(envs):
        if kinds[i][:2] != kinds[0][:2] or env.action_space != envs[0].action_space:
            raise UnsupportedSpaceError(
                f"environment {i} has observation space {env.observation_space!r} and action space "
                f"{env.action_space!r}, environment 0 has {envs[0].observation_space!r} and "
                f"{envs[0].action_space!r}; the rows of a batch must have the same"
            )
    return replace(
        specs[0],
        observation_low=np.minimum.reduce([spec.observation_low for spec in specs]),
        observation_high=np.maximum.reduce([spec.observation_high for spec in specs]),
        max_episode_steps=kinds[0][2] if len(set(kinds)) == 1 else None,
        has_success=_detect_success(envs[0], throwaway) if has_success is None else has_success,
    )


def _horizon(env: gymnasium.Env) -> int | None:
    """The outermost TimeLimit's, else what the environment's registration says, else None."""
    layer = env
    while isinstance(layer, gymnasium.Wrapper):
        if isinstance(layer, gymnasium.wrappers.TimeLimit):
            return layer._max_episode_steps
        layer = layer.env
    steps = getattr(getattr(getattr(env, "unwrapped", env), "spec", None), "max_episode_steps", None)
    return steps if steps is not None and steps > 0 else None


def _detect_success(env: gymnasium.Env, throwaway: Callable[[], gymnasium.Env]) -> bool:
    declared = getattr(getattr(env, "unwrapped", env), "has_success", None)
    if isinstance(declared, bool):
        return declared
    # A copy of its own: the real one must not have lived before its first seeded reset. A failure here
    # is suppressed because the same one in a real row is reported with its row, which helps more.
    with suppress(Exception), closing(throwaway()) as probe:
        probe.reset(seed=0)
        probe.action_space.seed(0)
        info = probe.step(probe.action_space.sample())[4]
        return any(key in info for key in SUCCESS_KEYS)
    return False


class GymEnv:
    """A ``BatchedEnv`` over a list of gymnasium environments; see ``make``.

    After an EnvStepError the rows before the failing one have moved and the others have not, so the
    batch has to be rebuilt or restored.
    """

    def __init__(
        self, seeds: np.ndarray, envs: Sequence[gymnasium.Env], spec: EnvSpec, record_actions: bool
    ) -> None:
        self.num_envs = len(envs)
        self.spec = spec
        self._seeds = seeds.tolist()
        self._envs = list(envs)
        self._recording = record_actions
        self._actions: list[np.ndarray] = []  # of every row, since the oldest running episode began
        self._lengths = np.zeros(self.num_envs, np.int64)  # of the running episodes
        self._starts: list[dict[str, Any]] = [{} for _ in envs]
        self._last = np.zeros((self.num_envs, *spec.observation_shape), spec.observation_dtype)
        self._started = False

    def reset(self, observation: np.ndarray) -> None:
        """Start a new episode in every row, seeded the first time; write (n, *observation_shape)."""
        for i in range(self.num_envs):
            self._reset_row(i, observation, None if self._started else self._seeds[i])
        self._started = True
        self._finish(observation)

    def step(self, action: np.ndarray, out: StepBuffers) -> None:
        """Step every row; ``action`` is (n, *action.shape). Raises EnvStepError with the failing row."""
        if not self._started:
            raise RuntimeError("reset() must be called before step()")
        want = (self.num_envs, *self.spec.action.shape)
        if action.shape != want:
            raise ValueError(f"actions must have shape {want}, got {action.shape}")
        if self._recording:
            self._actions.append(action.astype(self.spec.action.dtype))
            self._lengths += 1
        rows = self._rows(action)
        for i in range(self.num_envs):
            if self._step_row(i, rows[i], out):
                out.final_observation[i] = out.observation[i]
                self._reset_row(i, out.observation, None)
        self._finish(out.observation)

    def _rows(self, action: np.ndarray) -> Any:
        """Integers, or rows of a copy, because an environment may keep or change what it is given."""
        return action.tolist() if self.spec.action.discrete else action.astype(self.spec.action.dtype)

    def _finish(self, observation: np.ndarray) -> None:
        """Note the last observations, and forget the actions of finished episodes."""
        if self._recording:
            self._last[...] = observation
            del self._actions[: len(self._actions) - self._lengths.max()]

    def _step_row(self, i: int, action: Any, out: StepBuffers) -> bool:
        """Step row i and write its results; return whether its episode ended."""
        try:
            observation, reward, terminated, truncated, info = self._envs[i].step(action)
            out.observation[i] = self._checked(observation)
            out.reward[i] = reward
            out.terminated[i] = terminated
            out.truncated[i] = truncated
            if self.spec.has_success:
                out.success[i] = any(bool(info.get(key, False)) for key in SUCCESS_KEYS)
            return bool(terminated or truncated)
        except Exception as exc:
            raise self._error(i, "step", exc) from exc

    def _reset_row(self, i: int, observation: np.ndarray, seed: int | None) -> None:
        env = self._envs[i]
        try:
            if self._recording:
                self._starts[i] = {"generator": _generator_state(env)} if seed is None else {}
                self._lengths[i] = 0
            first, _ = env.reset() if seed is None else env.reset(seed=seed)
            observation[i] = self._checked(first)
        except Exception as exc:
            raise self._error(i, "reset", exc) from exc

    def _checked(self, observation: Any) -> np.ndarray:
        """The observation as an array of the right shape; NumPy would broadcast a wrong one."""
        array, want = np.asarray(observation), self.spec.observation_shape
        if array.shape != want:
            raise ValueError(f"observation has shape {array.shape}, its space says {want}")
        return array

    def _error(self, i: int, where: str, exc: Exception) -> EnvStepError:
        name = type(getattr(self._envs[i], "unwrapped", self._envs[i])).__name__
        return EnvStepError(i, f"row {i} ({name}) failed in {where}: {type(exc).__name__}: {exc}")

    def get_state(self) -> State:
        """seeds, lengths (n,) int64, observation (n, ...), actions (sum(lengths), ...), starts (uint8, JSON).

        Raises StateUnsupportedError where an episode cannot be described that way.
        """
        if not self._recording:
            raise StateUnsupportedError(_NOT_RECORDED)
        if not self._started:
            raise StateUnsupportedError("there is no episode to save before reset()")
        for i, start in enumerate(self._starts):
            if start.get("generator", start) is None:
                raise StateUnsupportedError(f"environment {i} has no np_random whose state could be saved")
        actions = np.array(self._actions, self.spec.action.dtype)
        actions = actions.reshape(-1, self.num_envs, *self.spec.action.shape)
        episodes = [actions[len(actions) - length :, i] for i, length in enumerate(self._lengths)]
        starts = json.dumps(self._starts, default=np.ndarray.tolist)  # MT19937's state holds an array
        return {
            "seeds": np.array(self._seeds, np.int64),
            "lengths": self._lengths.copy(),
            "actions": np.concatenate(episodes),
            "observation": self._last.copy(),
            "starts": np.frombuffer(starts.encode(), np.uint8).copy(),
        }

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Replay the saved episodes.

        Raises StateUnsupportedError where one does not come out the same, ValueError for a state of another
        number of environments.
        """
        if not self._recording:
            raise StateUnsupportedError(_NOT_RECORDED)
        if state["observation"].shape != self._last.shape:
            raise ValueError(f"state of {state['observation'].shape}, expected {self._last.shape}")
        self._seeds = state["seeds"].tolist()
        self._starts = json.loads(state["starts"].tobytes().decode())
        episodes = np.split(state["actions"], np.cumsum(state["lengths"])[:-1])
        for i, episode in enumerate(episodes):
            try:
                self._last[i] = self._replay(i, self._rows(episode))
            except Exception as exc:
                message = f"environment {i}: the replay failed: {type(exc).__name__}: {exc}"
                raise StateUnsupportedError(message) from exc
            if self._last[i].tobytes() != state["observation"][i].tobytes():
                raise StateUnsupportedError(
                    f"environment {i}: replaying its {len(episode)} actions gave another observation: it "
                    "draws from a generator besides np_random, or keeps something between episodes"
                )
        self._lengths[...] = state["lengths"]
        shape = self._lengths.max(), self.num_envs, *self.spec.action.shape
        actions = np.zeros(shape, self.spec.action.dtype)
        for i, episode in enumerate(episodes):  # of different lengths; all of them end at the last step
            actions[len(actions) - len(episode) :, i] = episode
        self._actions, self._started = list(actions), True

    def _replay(self, i: int, episode: Sequence[Any]) -> np.ndarray:
        env, start = self._envs[i], self._starts[i]
        observation, _ = env.reset(seed=self._seeds[i])
        if start:
            env.unwrapped.np_random.bit_generator.state = start["generator"]
            observation, _ = env.reset()
        for action in episode:
            observation, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                raise RuntimeError("the episode ended before the saved one did")
        return self._checked(observation)

    def close(self) -> None:
        """Close the environments; idempotent."""
        envs, self._envs = self._envs, []
        for env in envs:
            env.close()


def _generator_state(env: gymnasium.Env) -> dict[str, Any] | None:
    """The state of the environment's np_random; None where it has none."""
    generator = getattr(getattr(env, "unwrapped", env), "np_random", None)
    return getattr(getattr(generator, "bit_generator", None), "state", None)
