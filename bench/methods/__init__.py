"""The methods that ``bench.fps`` compares, each as something that can be stepped.

Only the child process of one measurement builds them (see ``bench.isolated``), so that nothing leaks from
one method to another; a peer whose pins clash with ours has a virtual environment of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from bench.methods.base import Request, Subject, UnsupportedError

__all__ = ["METHODS", "Method", "Request", "Subject", "UnsupportedError"]


@dataclass(frozen=True)
class Method:
    """build: "module:function" from a Request to a Subject. note: what a row of it measures.

    peer: the folder in .venv-peers whose interpreter runs it; None: ours.
    role: "ours", or what ours is compared with: a "peer" or a "limit". policy: whether it runs the row's.
    """

    build: str
    note: str
    peer: str | None = None
    role: Literal["ours", "peer", "limit"] = "ours"
    policy: bool = False


METHODS: Mapping[str, Method] = {
    "engine": Method(
        "bench.methods.ours:engine", "whole path: environments, policy, rings, blocks copied out", policy=True
    ),
    "engine-fast": Method(
        "bench.methods.ours:engine", "as engine, with physics='fast' (no second mj_forward)", policy=True
    ),
    "engine-gpu": Method(
        "bench.methods.ours:engine", "as engine, with the model workers on the GPU", policy=True
    ),
    "engine-learner": Method(
        "bench.methods.ours:engine_learner",
        "the training loop: as engine, and this process learns from the blocks, an update for 16 steps",
        policy=True,
    ),
    "engine-learner-gpu": Method(
        "bench.methods.ours:engine_learner",
        "as engine-learner, with the learner and any model workers on the GPU",
        policy=True,
    ),
    "engine-serial": Method(
        "bench.methods.ours:engine_serial", "SerialCollector: the same blocks in one process", policy=True
    ),
    "env-only": Method(
        "bench.methods.ours:env_only",
        "the batched environment alone in one process, random actions, no policy",
    ),
    "env-only-fast": Method("bench.methods.ours:env_only", "as env-only, with physics='fast'"),
    "naive": Method(
        "bench.methods.naive:naive",
        "N processes of n stock environments, a queue to one model process, pipes back, rollouts in a queue",
        role="peer",
        policy=True,
    ),
    "gymnasium-single": Method(
        "bench.methods.gymnasium_vector:single",
        "one stock environment and the policy in one process",
        role="peer",
        policy=True,
    ),
    "gymnasium-sync": Method(
        "bench.methods.gymnasium_vector:vector",
        "SyncVectorEnv of stock environments and the policy; resetting steps count",
        role="peer",
        policy=True,
    ),
    "gymnasium-async": Method(
        "bench.methods.gymnasium_vector:vector",
        "AsyncVectorEnv, a process for each stock environment, and the policy; resetting steps count",
        role="peer",
        policy=True,
    ),
    "sb3-dummy": Method(
        "bench.methods.sb3:sb3",
        "Stable-Baselines3's DummyVecEnv of stock environments and the policy",
        peer="learners",
        role="peer",
        policy=True,
    ),
    "sb3-subproc": Method(
        "bench.methods.sb3:sb3",
        "Stable-Baselines3's SubprocVecEnv, a process for each stock environment, and the policy",
        peer="learners",
        role="peer",
        policy=True,
    ),
    "sample-factory": Method(
        "bench.methods.sample_factory:sample_factory",
        "its sampler with its own policy of the same widths, which has a critic too: N rollout workers of n "
        "stock environments, one inference worker, rollouts copied out; no learner",
        peer="sample-factory",
        role="peer",
        policy=True,
    ),
    "pufferlib": Method(
        "bench.methods.pufferlib:pufferlib_vector",
        "PufferLib 3's vector environments (package pufferlib-core), N processes of n stock environments, "
        "and the policy; resetting steps count",
        peer="pufferlib",
        role="peer",
        policy=True,
    ),
    "envpool": Method(
        "bench.methods.envpool:envpool",
        "one thread per processor, random actions, no policy; resetting steps count",
        role="peer",
    ),
    "physics-limit": Method(
        "bench.methods.physics:physics_limit",
        "bare simulation loops in N processes at once, inputs drawn beforehand, no policy",
        role="limit",
    ),
}
