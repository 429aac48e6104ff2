"""The collector, whole and in parts."""

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from bench.methods.base import Method, Request, Subject, UnsupportedError, one_process
from bench.methods.stock import draw_actions
from fastcollect import BlockSource, Collector, CollectorConfig, EnvConfig, StepBuffers
from fastcollect.envs.registry import METAWORLD_TASKS, make_env
from fastcollect.policies.choice import parse_policy


def env_config(request: Request) -> EnvConfig:
    """Our environment of a method; the "-fast" ones leave out the second ``mj_forward``."""
    if not request.method.endswith("-fast"):
        return EnvConfig(id=request.env)
    if request.env not in METAWORLD_TASKS:
        raise UnsupportedError(f"{request.method} exists for Meta-World's tasks only, not for {request.env}")
    return EnvConfig(id=request.env, kwargs={"physics": "fast"})


def ours(request: Request) -> Subject:
    """The whole path, drained by this process: workers of every kind, or the collector's serial twin."""
    env, size, policy = env_config(request), request.parallelism, parse_policy(request.policy, request.env)
    device = "gpu" if request.method == "ours-gpu" else "cpu"
    config = CollectorConfig(env=env, policy=policy, model_device=device).with_parallelism(size)
    if request.method == "ours-serial":
        from fastcollect import SerialCollector

        serial = SerialCollector(config)
        return Subject(lambda: len(serial.take()), serial.close, size.total)
    collector = Collector(config)
    facts = _facts_since_now(collector)
    return Subject(lambda: len(collector.take()), collector.close, size.total, facts)


def _facts_since_now(collector: BlockSource) -> Callable[[], dict[str, Any]]:
    begin = collector.stats()

    def facts() -> dict[str, Any]:
        stats = collector.stats() - begin
        quantile = stats.action_latency.quantile
        latency = {"median": quantile(0.5), "p99": quantile(0.99)}
        return {"shares": stats.shares(), "action_latency_seconds": latency}

    return facts


def ours_learner(request: Request) -> Subject:
    """The training loop: this process learns from the blocks, on its own default device or on the CPU."""
    on_gpu = request.method.endswith("-gpu")
    os.environ["JAX_PLATFORMS"] = "cuda" if on_gpu else "cpu"
    from bench.product import collecting_config, training_loop

    hidden = parse_policy(request.policy, request.env).kwargs.get("hidden")
    if hidden is None:
        raise UnsupportedError(f"{request.method} learns policies of hidden widths only, such as 256,256")
    config = collecting_config(request.env, hidden, request.parallelism)
    loop = training_loop(config, "gpu" if on_gpu else "cpu")
    while not loop.updates():  # they are compiled before the clock starts
        loop.turn()
    loop.wait()
    facts, begin = _facts_since_now(loop.collector), loop.updates()

    def counted() -> dict[str, Any]:
        return {**facts(), "updates": loop.updates() - begin}

    return Subject(loop.turn, loop.close, request.parallelism.total, counted)


def env_only(request: Request) -> Subject:
    """Our batched environment alone, in one process, with random actions."""
    num_envs = request.parallelism.n
    env = make_env(env_config(request), np.arange(num_envs, dtype=np.int64))
    buffers = StepBuffers.allocate(env.spec, num_envs)
    env.reset(buffers.observation)
    actions = draw_actions(env.spec.action, num_envs)

    def step() -> int:
        env.step(next(actions), buffers)
        return num_envs

    return Subject(step, env.close, num_envs)


_WHOLE = Method("ours", ours, "whole path: environments, policy, rings, blocks copied out", policy=True)
_LOOP = "the training loop: as ours, and this process learns from the blocks, an update for 16 steps"
_LEARNER = Method("ours-learner", ours_learner, _LOOP, policy=True)
_ALONE = "our batched environment alone in one process, random actions, no policy"
_ENV = Method("env-only", env_only, _ALONE, sizes=one_process)
METHODS = (
    _WHOLE,
    replace(_WHOLE, name="ours-fast", note="as ours, with physics='fast' (no second mj_forward)"),
    replace(_WHOLE, name="ours-gpu", note="as ours, with the model workers on the GPU"),
    replace(_WHOLE, name="ours-serial", note="the same blocks in one process", sizes=one_process),
    _LEARNER,
    replace(_LEARNER, name="ours-learner-gpu", note="as ours-learner, learner and model workers on the GPU"),
    _ENV,
    replace(_ENV, name="env-only-fast", note="as env-only, with physics='fast'"),
)
