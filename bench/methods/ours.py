"""The engine and its parts."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.methods.base import Request, Subject, UnsupportedError, draw_actions
from fastcollect.envs.base import StepBuffers
from fastcollect.envs.registry import METAWORLD_TASKS, EnvConfig, make_env
from fastcollect.policies.choice import parse_policy

if TYPE_CHECKING:
    from fastcollect.control.collector import Collector

QUANTILES = {"median": 0.5, "p99": 0.99}


def env_config(request: Request) -> EnvConfig:
    """The engine's environment of a method; the "-fast" ones leave out the second ``mj_forward``."""
    if not request.method.endswith("-fast"):
        return EnvConfig(id=request.env)
    if request.env not in METAWORLD_TASKS:
        raise UnsupportedError(f"{request.method} exists for Meta-World's tasks only, not for {request.env}")
    return EnvConfig(id=request.env, kwargs={"physics": "fast"})


def _collector_config(request: Request) -> Any:
    from fastcollect.control.config import CollectorConfig

    return CollectorConfig(
        env=env_config(request),
        policy=parse_policy(request.policy, request.env),
        num_envs=request.n,
        num_env_workers=request.N,
        num_model_workers=request.M,
        tokens=request.tokens,
        model_device="gpu" if request.method == "engine-gpu" else "cpu",
    )


def engine(request: Request) -> Subject:
    """The whole path: env workers, rings, policy, model workers, and this process, which drains blocks."""
    from fastcollect.control.collector import Collector

    collector = Collector(_collector_config(request))
    facts = _facts_since_now(collector)
    return Subject(lambda: len(collector.take()), collector.close, request.n * request.N, facts)


def _facts_since_now(collector: Collector) -> Callable[[], dict[str, Any]]:
    begin = collector.stats()

    def facts() -> dict[str, Any]:
        stats = collector.stats() - begin
        latency = {name: stats.action_latency.quantile(q) for name, q in QUANTILES.items()}
        return {"shares": stats.shares(), "action_latency_seconds": latency}

    return facts


def engine_learner(request: Request) -> Subject:
    """The training loop: this process learns from the blocks, on its own default device or on the CPU."""
    on_gpu = request.method.endswith("-gpu")
    os.environ["JAX_PLATFORMS"] = "cuda" if on_gpu else "cpu"
    from bench.training_loop import training_loop
    from engine.algorithms.sac import SACConfig
    from trainers.config.training import CollectConfig, TrainConfig

    hidden = parse_policy(request.policy, request.env).kwargs.get("hidden")
    if hidden is None:
        raise UnsupportedError(f"{request.method} learns policies of hidden widths only, such as 256,256")
    config = TrainConfig(
        env=request.env,
        start_steps=0,
        algorithm=SACConfig(hidden=tuple(hidden)),
        collect=CollectConfig(n=request.n, N=request.N, M=request.M, tokens=request.tokens),
    )
    with contextlib.ExitStack() as stack:
        loop = stack.enter_context(training_loop(config, "gpu" if on_gpu else "cpu"))
        while not loop.learner.updates:
            loop.turn()
        loop.wait()
        facts, begin = _facts_since_now(loop.collector), loop.learner.updates
        end = stack.pop_all().close

    def all_facts() -> dict[str, Any]:
        return {**facts(), "updates": loop.learner.updates - begin}

    return Subject(loop.turn, end, request.n * request.N, all_facts)


def engine_serial(request: Request) -> Subject:
    """The collector's serial twin: the same blocks in one process."""
    from fastcollect.control.serial import SerialCollector

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
