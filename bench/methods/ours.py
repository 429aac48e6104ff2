"""The engine and its parts."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.methods.base import Request, Subject, UnsupportedError, draw_actions
from fastcollect.command import parse_policy
from fastcollect.envs.base import StepBuffers
from fastcollect.envs.registry import METAWORLD_TASKS, EnvConfig, make_env

QUANTILES = {"median": 0.5, "p99": 0.99}


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
        model_device="gpu" if request.method == "engine-gpu" else "cpu",
    )


def engine(request: Request) -> Subject:
    """The whole path: env workers, rings, policy, model workers, and this process, which drains blocks."""
    from fastcollect.collector import Collector

    collector = Collector(_collector_config(request))
    begin = collector.stats()

    def facts() -> dict[str, Any]:
        stats = collector.stats() - begin
        latency = {name: stats.action_latency.quantile(q) for name, q in QUANTILES.items()}
        return {"shares": stats.shares(), "action_latency_seconds": latency}

    return Subject(lambda: len(collector.take()), collector.close, request.n * request.N, facts)


def engine_serial(request: Request) -> Subject:
    """The collector's serial twin: the same blocks in one process."""
    from fastcollect.serial import SerialCollector

    collector = SerialCollector(_collector_config(request))
    return Subject(lambda: len(collector.take()), collector.close, request.n)


def env_only(request: Request) -> Subject:
    """The engine's batched environment alone, in one process, with random actions."""
    env = make_env(env_config(request), np.arange(request.n, dtype=np.int64))
    buffers = StepBuffers.allocate(env.spec, request.n)
    env.reset(buffers.observation)
    actions = draw_actions(env.spec.action, request.n)

    def step() -> int:
        env.step(next(actions), buffers)
        return request.n

    return Subject(step, env.close, request.n)
