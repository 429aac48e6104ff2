"""One SAC learner in a process of its own, run slice by slice; see ``bench.learner``.

``learner_slices.py FD METHOD SETTINGS``: each line on the standard input is two numbers of seconds, to train
for without being measured and then measured; each answer, on the descriptor FD, is one line of JSON. Peers
run under an interpreter of .venv-peers, so that this file imports nothing of the project before it knows
that ours is meant.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

PACKAGES = {
    "ours": ("jax", "flax", "optax", "numpy"),
    "sbx": ("sbx-rl", "jax", "flax", "optax", "numpy"),
    "sb3": ("stable-baselines3", "torch", "numpy"),
}
"""What decides the speed of each method, the part before a dash."""


@dataclass(frozen=True)
class Training:
    """A learner at work. train: makes some updates, or has them made, and says how many.

    wait: returns when every update made so far is computed.
    """

    train: Callable[[], int]
    wait: Callable[[], None]


class Shapes(gymnasium.Env):
    """Spaces and nothing else: what a peer needs to know of an environment."""

    def __init__(self, observations: int, actions: int) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (observations,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1, 1, (actions,), np.float32)


@contextlib.contextmanager
def peer(method: str, settings: dict[str, Any]) -> Iterator[Training]:
    """The peer's own SAC, its replay buffer full of random transitions."""
    if method == "sbx":
        from sbx import SAC
    else:
        from stable_baselines3 import SAC
    from stable_baselines3.common.logger import configure

    model = SAC(
        "MlpPolicy",
        Shapes(settings["observations"], settings["actions"]),
        learning_rate=settings["learning_rate"],
        buffer_size=settings["rows"],
        batch_size=settings["batch"],
        tau=settings["target_rate"],
        gamma=settings["discount"],
        ent_coef="auto",
        policy_kwargs={"net_arch": list(settings["hidden"])},
        seed=0,
        device="cpu",
        **({"policy_delay": 1} if method == "sbx" else {"target_update_interval": 1}),
    )
    model.set_logger(configure(None, []))
    buffer, rng = model.replay_buffer, np.random.default_rng(0)
    for array in (buffer.observations, buffer.next_observations):
        array[...] = rng.standard_normal(array.shape, np.float32)
    buffer.actions[...] = rng.uniform(-1, 1, buffer.actions.shape)
    buffer.rewards[...] = rng.uniform(0, 1, buffer.rewards.shape)
    buffer.full = True

    def train() -> int:
        model.train(gradient_steps=settings["peer_updates"], batch_size=settings["batch"])
        return settings["peer_updates"]

    def wait() -> None:
        if method == "sbx":  # the other one computes as it goes
            import jax

            jax.block_until_ready((model.policy.qf_state, model.policy.actor_state, model.ent_coef_state))

    yield Training(train, wait)


def _config(settings: dict[str, Any], storage: str | None) -> Any:
    from engine.algorithms.sac import SACConfig
    from trainers.config.training import ReplayConfig, TrainConfig

    config = SACConfig(
        hidden=tuple(settings["hidden"]),
        batch_size=settings["batch"],
        discount=settings["discount"],
        target_rate=settings["target_rate"],
        **{f"{name}_learning_rate": settings["learning_rate"] for name in ("actor", "critic", "temperature")},
    )
    replay = ReplayConfig(capacity=settings["rows"], storage=storage)
    return TrainConfig(
        env=settings["env"],
        updates_per_step=settings["updates_per_step"],
        start_steps=0,
        algorithm=config,
        replay=replay,
    )


@contextlib.contextmanager
def ours(storage: str, settings: dict[str, Any]) -> Iterator[Training]:
    """The product's learner with a replay full of random transitions, kept on the host or on the device."""
    import jax

    from engine.algorithms.sac import DENSE
    from fastcollect.envs.base import ActionSpec, EnvSpec
    from trainers.run.learner import Learner

    observations, actions = settings["observations"], settings["actions"]
    box = ActionSpec(
        shape=(actions,), dtype=np.dtype(np.float32), low=-np.ones(actions), high=np.ones(actions)
    )
    spec = EnvSpec(
        observation_shape=(observations,),
        observation_dtype=np.dtype(np.float32),
        observation_low=np.float32(-np.inf),
        observation_high=np.float32(np.inf),
        action=box,
    )
    config = _config(settings, storage)
    learner = Learner(config, spec, DENSE)
    envs, rng = config.collect.n * config.collect.N, np.random.default_rng(0)
    steps = settings["rows"] // envs
    rows = {
        "observation": rng.standard_normal((steps, envs, observations), np.float32),
        "action": rng.uniform(-1, 1, (steps, envs, actions)).astype(np.float32),
        "next_observation": rng.standard_normal((steps, envs, observations), np.float32),
        "reward": rng.uniform(0, 1, (steps, envs)).astype(np.float32),
        "terminated": np.zeros((steps, envs), bool),
        "truncated": np.zeros((steps, envs), bool),
    }
    learner.replay.add(np.arange(envs), rows, False)

    def train() -> int:
        before = learner.acting
        learner.update(config.updates_per_dispatch)
        jax.block_until_ready(before)  # as the training loop does
        return config.updates_per_dispatch

    yield Training(train, lambda: _wait(learner))


def _wait(learner: Any) -> None:
    import jax

    jax.block_until_ready((learner.state, learner.acting))


@contextlib.contextmanager
def collecting(settings: dict[str, Any]) -> Iterator[Training]:
    """The product's loop: workers collect, and the ratio of updates to their steps is kept."""
    from bench.training_loop import training_loop

    with training_loop(_config(settings, None)) as loop:

        def train() -> int:
            before = loop.learner.updates
            loop.turn()
            return loop.learner.updates - before

        yield Training(train, loop.wait)


@contextlib.contextmanager
def build(method: str, settings: dict[str, Any]) -> Iterator[Training]:
    """The learner of that name."""
    package, _, kind = method.partition("-")
    if package != "ours":
        made = peer(method, settings)
    else:
        made = collecting(settings) if kind == "collecting" else ours(kind, settings)
    with made as training:
        yield training


def updates_per_second(training: Training, settle: float, seconds: float) -> float:
    """Over at least so many seconds and one update, after ``settle`` seconds that are not counted.

    Every update counted, and none else, was computed between the two readings of the clock.
    """
    start = time.perf_counter()
    while time.perf_counter() - start < settle:
        training.train()
    training.wait()
    updates, start = 0, time.perf_counter()
    while not updates or time.perf_counter() - start < seconds:
        updates += training.train()
    training.wait()
    return updates / (time.perf_counter() - start)


def main(answers: int, method: str, settings: dict[str, Any]) -> None:
    """Answer every slice asked for."""
    os.set_inheritable(answers, False)
    stream = os.fdopen(answers, "w", buffering=1)
    with build(method, settings) as training:
        while not training.train():
            pass
        training.wait()
        packages = PACKAGES[method.partition("-")[0]]
        versions = {name: importlib.metadata.version(name) for name in packages}
        print(json.dumps({"versions": versions}), file=stream)
        for line in sys.stdin:
            settle, seconds = map(float, line.split())
            print(json.dumps({"rate": updates_per_second(training, settle, seconds)}), file=stream)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]))
