"""One peer's SAC learner in a process of its own, run slice by slice; see ``bench.learner``.

Run by the interpreter of .venv-peers, so nothing of this project is imported here. Each line on the standard
input is a number of seconds to train for; each answer, on the descriptor given first, is one line of JSON.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

PACKAGES = {
    "sbx": ("sbx-rl", "jax", "flax", "optax", "numpy"),
    "sb3": ("stable-baselines3", "torch", "numpy"),
}


class Shapes(gymnasium.Env):
    """Spaces and nothing else: what a learner needs to know of an environment."""

    def __init__(self, observations: int, actions: int) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (observations,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1, 1, (actions,), np.float32)


def build(method: str, settings: dict[str, Any]) -> Any:
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
    fill(model.replay_buffer, np.random.default_rng(0))
    return model


def fill(buffer: Any, rng: np.random.Generator) -> None:
    """Random transitions in every row."""
    for array in (buffer.observations, buffer.next_observations):
        array[...] = rng.standard_normal(array.shape, np.float32)
    buffer.actions[...] = rng.uniform(-1, 1, buffer.actions.shape)
    buffer.rewards[...] = rng.uniform(0, 1, buffer.rewards.shape)
    buffer.full = True


def updates_per_second(train: Callable[[], int], seconds: float) -> float:
    """Over at least so many seconds, whole calls only."""
    updates, start = 0, time.perf_counter()
    while True:
        updates += train()
        elapsed = time.perf_counter() - start
        if elapsed >= seconds:
            return updates / elapsed


def main(answers: int, method: str, settings: dict[str, Any]) -> None:
    """Answer every slice asked for."""
    stream = os.fdopen(answers, "w", buffering=1)
    model = build(method, settings)

    def train() -> int:
        model.train(gradient_steps=settings["updates"], batch_size=settings["batch"])
        return settings["updates"]

    train()
    versions = {name: importlib.metadata.version(name) for name in PACKAGES[method]}
    print(json.dumps({"ready": True, "versions": versions}), file=stream)
    for line in sys.stdin:
        print(json.dumps({"rate": updates_per_second(train, float(line))}), file=stream)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]))
