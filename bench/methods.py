"""The methods that ``bench.fps`` compares, each as something that can be stepped.

Only the child process of one measurement calls them (see ``bench.isolated``), so every import of a
simulator or a peer is inside its function and nothing leaks from one method to another.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastcollect.command import parse_policy
from fastcollect.cpu import cpu_count
from fastcollect.envs.base import ActionSpec, StepBuffers
from fastcollect.envs.registry import METAWORLD_TASKS, EnvConfig, make_env

_ACTION_BYTES = 1 << 20  # of actions drawn beforehand: enough to differ, few enough to stay in the cache
_RESEED_STEPS = 500


@dataclass(frozen=True, kw_only=True)
class Request:
    """One measurement in one process.

    method: a key of ``METHODS``. env: the environment's id. n, N, M: as in the row.
    policy: see ``fastcollect.command.parse_policy``. seconds: on the clock, after ``warm_up``.
    index: which of several processes of the same method this is.
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


@dataclass(frozen=True)
class Subject:
    """What is measured. step: advances and says by how many environment steps. close: frees it.

    facts: what is worth telling once the clock has stopped.
    """

    step: Callable[[], int]
    close: Callable[[], None]
    facts: Callable[[], dict[str, Any]]


class UnsupportedError(ValueError):
    """This method does not exist for this environment or on this machine; the text says what does."""


def env_config(request: Request) -> EnvConfig:
    """The engine's environment of a method; the "-fast" ones leave out the second ``mj_forward``."""
    if not request.method.endswith("-fast"):
        return EnvConfig(id=request.env)
    if request.env not in METAWORLD_TASKS:
        raise UnsupportedError(f"{request.method} exists for Meta-World's tasks only, not for {request.env}")
    return EnvConfig(id=request.env, kwargs={"physics": "fast"})


def _collector_config(request: Request) -> Any:
    from fastcollect.config import CollectorConfig

    return CollectorConfig(
        env=env_config(request),
        policy=parse_policy(request.policy, request.env),
        num_envs=request.n,
        num_env_workers=request.N,
        num_model_workers=request.M,
    )


def engine(request: Request) -> Subject:
    """The whole path: env workers, rings, policy, model workers, and this process, which drains blocks."""
    from fastcollect.collector import Collector

    collector = Collector(_collector_config(request))
    begin = collector.stats()

    def facts() -> dict[str, Any]:
        workers = collector.pids()["env_worker"]
        return {"worker_rss_mib": _rss(workers[0]), "shares": (collector.stats() - begin).shares()}

    return Subject(lambda: len(collector.take()), collector.close, facts)


def engine_serial(request: Request) -> Subject:
    """The collector's serial twin: the same blocks in one process."""
    from fastcollect.serial import SerialCollector

    collector = SerialCollector(_collector_config(request))
    return Subject(lambda: len(collector.take()), collector.close, _own_facts)


def env_only(request: Request) -> Subject:
    """The engine's batched environment alone, in one process, with random actions."""
    env = make_env(env_config(request), np.arange(request.n, dtype=np.int64))
    buffers = StepBuffers.allocate(env.spec, request.n)
    env.reset(buffers.observation)
    actions = draw_actions(env.spec.action, request.n)

    def step() -> int:
        env.step(next(actions), buffers)
        return request.n

    return Subject(step, env.close, _own_facts)


def gymnasium_vector(request: Request) -> Subject:
    """Gymnasium's SyncVectorEnv or AsyncVectorEnv of stock environments."""
    from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv

    kind = AsyncVectorEnv if request.method == "gymnasium-async" else SyncVectorEnv
    env = kind([lambda: make_stock(request.env)] * request.n)
    env.reset(seed=0)
    return Subject(_gymnasium_step(env, request.n), env.close, _own_facts)


def _gymnasium_step(env: Any, num_envs: int) -> Callable[[], int]:
    from fastcollect.envs.gym_vector import action_spec

    actions = draw_actions(action_spec(env.single_action_space), num_envs)

    def step() -> int:
        env.step(next(actions))
        return num_envs

    return step


def make_stock(env_id: str) -> Any:
    """The environment as its own library makes it."""
    import gymnasium

    if env_id in METAWORLD_TASKS:
        import metaworld  # noqa: F401 (registers Meta-World/MT1)

        return gymnasium.make("Meta-World/MT1", env_name=env_id)
    stock_id = stock_name(env_id)
    if stock_id not in gymnasium.registry:
        raise UnsupportedError(f"gymnasium has no environment {stock_id!r}")
    return gymnasium.make(stock_id)


def stock_name(env_id: str) -> str:
    """The id without the engine's choice of adapter."""
    prefix, _, rest = env_id.partition(":")
    return rest if prefix in ("gym", "vector", "envpool") and rest else env_id


def envpool_name(env_id: str) -> str:
    """EnvPool's name: "reach-v3" is "MetaWorld/Reach-v3"; the others are called as in gymnasium."""
    if env_id not in METAWORLD_TASKS:
        return stock_name(env_id)
    task, _, version = env_id.rpartition("-")
    return "MetaWorld/" + "".join(word.capitalize() for word in task.split("-")) + f"-{version}"


def envpool(request: Request) -> Subject:
    """EnvPool with one thread for each processor."""
    try:
        import envpool
    except ImportError as error:
        raise UnsupportedError(f"EnvPool cannot be imported ({error}): pip install envpool") from error
    from fastcollect.envs.gym_vector import action_spec

    name = envpool_name(request.env)
    if name not in envpool.list_all_envs():
        raise UnsupportedError(f"EnvPool has no environment {name!r}")
    pool = envpool.make(name, env_type="gymnasium", num_envs=request.n, num_threads=cpu_count(), seed=0)
    pool.reset()
    # In the type that EnvPool stores, so that it has nothing to convert.
    dtype = np.dtype(pool.spec.action_array_spec["action"].dtype)
    actions = draw_actions(action_spec(pool.action_space), request.n, dtype)

    def step() -> int:
        pool.step(next(actions))
        return request.n

    return Subject(step, pool.close, _own_facts)


def physics_limit(request: Request) -> Subject:
    """What a process could reach if everything but the simulation were free."""
    import gymnasium
    from gymnasium.envs.mujoco import MujocoEnv

    spec = gymnasium.registry.get(stock_name(request.env))
    if spec is not None and spec.vector_entry_point is not None:
        vector = gymnasium.make_vec(
            spec.id, num_envs=request.n, vectorization_mode=gymnasium.VectorizeMode.VECTOR_ENTRY_POINT
        )
        vector.reset(seed=request.index)
        return Subject(_gymnasium_step(vector, request.n), vector.close, _own_facts)
    stock = make_stock(request.env)
    stock.reset(seed=request.index)
    if not isinstance(stock.unwrapped, MujocoEnv):
        raise UnsupportedError(
            f"physics-limit exists for Meta-World, gymnasium's MuJoCo environments and those with a "
            f"vector_entry_point (CartPole-v1), not for {request.env}"
        )
    loop = BareLoop(stock.unwrapped, request.n, request.index)
    return Subject(loop.step, stock.close, _own_facts)


class BareLoop:
    """``mj_step`` (and ``mj_forward``, where stock calls it) over one MjData for each environment.

    stock: a MujocoEnv after its reset. On the clock: copying the inputs drawn beforehand, the simulation,
    and restoring the first state every 500 steps.
    """

    def __init__(self, stock: Any, num_envs: int, seed: int) -> None:
        import mujoco

        self._model = model = stock.model
        self._frame_skip = stock.frame_skip
        self._state = np.empty(mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_INTEGRATION))
        mujoco.mj_getState(model, stock.data, self._state, mujoco.mjtState.mjSTATE_INTEGRATION)
        datas = [mujoco.MjData(model) for _ in range(num_envs)]
        rng = np.random.default_rng(seed)
        # Meta-World moves the hand through a mocap body and refreshes poses after the substeps.
        self._forward = mujoco.mj_forward if model.nmocap else None
        if model.nmocap:
            mocap, control = _metaworld_inputs(stock, rng, num_envs)
            self._inputs = [list(zip(*pair, strict=True)) for pair in zip(mocap, control, strict=True)]
            self._lanes = [(data, data.mocap_pos[0], data.ctrl) for data in datas]
        else:
            low, high = model.actuator_ctrlrange.T
            self._inputs = list(rng.uniform(low, high, (_RESEED_STEPS, num_envs, model.nu)))
            self._lanes = [(data, data.ctrl) for data in datas]
        self._steps = 0

    def step(self) -> int:
        """Step every environment once."""
        import mujoco

        row = self._steps % _RESEED_STEPS
        if row == 0:
            for data, *_ in self._lanes:
                mujoco.mj_setState(self._model, data, self._state, mujoco.mjtState.mjSTATE_INTEGRATION)
        self._steps += 1
        model, frame_skip, step, forward = self._model, self._frame_skip, mujoco.mj_step, self._forward
        if forward is None:
            for (data, ctrl), control in zip(self._lanes, self._inputs[row], strict=True):
                ctrl[...] = control
                step(model, data, frame_skip)
        else:
            for (data, pos, ctrl), (mocap, control) in zip(self._lanes, self._inputs[row], strict=True):
                pos[...] = mocap
                ctrl[...] = control
                step(model, data, frame_skip)
                forward(model, data)
        return len(self._lanes)


def _metaworld_inputs(stock: Any, rng: np.random.Generator, num_envs: int) -> tuple[np.ndarray, np.ndarray]:
    """The random walk of the hand that uniform actions make, and the fingers' controls."""
    action = rng.uniform(-1, 1, (_RESEED_STEPS, num_envs, 4))
    mocap = np.empty((_RESEED_STEPS, num_envs, 3))
    position = np.tile(stock.data.mocap_pos[0], (num_envs, 1))
    for row in range(_RESEED_STEPS):
        moved = position + action[row, :, :3] * stock.action_scale
        mocap[row] = position = np.clip(moved, stock.mocap_low, stock.mocap_high)
    return mocap, np.stack([action[..., 3], -action[..., 3]], axis=-1)


def draw_actions(action: ActionSpec, num_envs: int, dtype: np.dtype | None = None) -> Iterator[np.ndarray]:
    """Batches of uniform actions, drawn before the clock starts, again and again."""
    rng = np.random.default_rng(0)
    dtype = dtype or action.dtype
    shape = (num_envs, *action.shape)
    count = max(16, min(_RESEED_STEPS, _ACTION_BYTES // int(np.prod(shape) * dtype.itemsize)))
    if action.discrete:
        batches = rng.integers(action.num_actions, size=(count, *shape))
    else:
        low = np.where(np.isfinite(action.low), action.low, -1.0)
        high = np.where(np.isfinite(action.high), action.high, 1.0)
        batches = rng.uniform(low, high, (count, *shape))
    return itertools.cycle(list(batches.astype(dtype)))


def _rss(pid: int) -> float:
    import psutil

    return round(psutil.Process(pid).memory_info().rss / 2**20, 1)


def _own_facts() -> dict[str, Any]:
    return {"worker_rss_mib": _rss(os.getpid())}


METHODS: Mapping[str, Callable[[Request], Subject]] = {
    "engine": engine,
    "engine-fast": engine,
    "engine-serial": engine_serial,
    "env-only": env_only,
    "env-only-fast": env_only,
    "gymnasium-sync": gymnasium_vector,
    "gymnasium-async": gymnasium_vector,
    "envpool": envpool,
    "physics-limit": physics_limit,
}

NOTES: Mapping[str, str] = {
    "engine": "whole path: environments, policy, rings, blocks copied out",
    "engine-fast": "as engine, with physics='fast' (no second mj_forward)",
    "engine-serial": "SerialCollector: the same blocks in one process",
    "env-only": "the batched environment alone in one process, random actions, no policy",
    "env-only-fast": "as env-only, with physics='fast'",
    "gymnasium-sync": "SyncVectorEnv of stock environments, random actions, no policy; resetting steps count",
    "gymnasium-async": "AsyncVectorEnv, a process for each stock environment, random actions, no policy",
    "envpool": "one thread per processor, random actions, no policy; resetting steps count",
    "physics-limit": "bare simulation loops in N processes at once, inputs drawn beforehand, no policy",
}
"""What a row measures; printed under the table and written beside its numbers."""
