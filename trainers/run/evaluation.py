"""Evaluation: the deterministic policy on every goal, in a process with environments of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastcollect.control.collector import Collector
from fastcollect.control.config import CollectorConfig
from fastcollect.control.launcher import Launcher
from fastcollect.envs.registry import METAWORLD_TASKS, EnvConfig
from fastcollect.memory.block import Block
from fastcollect.policies import PolicyConfig
from fastcollect.support.errors import ConfigError
from trainers.config.training import EvaluationConfig

NUM_GOALS = 50


@dataclass(frozen=True)
class Evaluation:
    """One episode of each environment: episode_return, length, success_any, success_last, success_first.

    All (episodes,); success_first is the 0-based step of the first success, -1 for none.
    """

    episode_return: np.ndarray
    length: np.ndarray
    success_any: np.ndarray
    success_last: np.ndarray
    success_first: np.ndarray

    def row(self) -> dict[str, Any]:
        """Scalars for the metrics, and lists by episode (on Meta-World: by goal)."""
        first = self.success_first[self.success_first >= 0]
        return {
            "success_any": float(self.success_any.mean()),
            "success_last": float(self.success_last.mean()),
            "success_first_step": float(first.mean()) if len(first) else None,
            "return_mean": float(self.episode_return.mean()),
            "return_std": float(self.episode_return.std()),
            "episode_length": float(self.length.mean()),
            "success_any_by_goal": self.success_any.tolist(),
            "success_last_by_goal": self.success_last.tolist(),
            "return_by_goal": [round(float(x), 3) for x in self.episode_return],
        }


class Evaluator:
    """Runs evaluations one after the other beside whatever the caller does.

    A reproducible collector of one env worker whose one block is a whole episode of every environment: it
    takes the weights published before the block begins, and its generators are nobody else's. It starts with
    the first evaluation.
    """

    def __init__(
        self,
        env: EnvConfig,
        policy: PolicyConfig,
        config: EvaluationConfig,
        seed: int,
        horizon: int | None,
        launcher: Launcher,
    ) -> None:
        """policy: deterministic. horizon: of an episode, if it is known.

        Raises ConfigError where an evaluation has no end.
        """
        episodes, kwargs = config.episodes, dict(env.kwargs)
        if env.id in METAWORLD_TASKS:
            episodes = NUM_GOALS
            kwargs["goal_indices"] = list(range(NUM_GOALS))
        elif horizon is None:
            raise ConfigError([f"{env.id} has no known horizon, so that an evaluation would have no end"])
        self._config = CollectorConfig(
            env=EnvConfig(id=env.id, kwargs=kwargs, entry_point=env.entry_point),
            policy=policy,
            num_envs=episodes,
            num_env_workers=1,
            # Episodes that all take the horizon begin with the block; others somewhere in its first half.
            block_length=horizon if env.id in METAWORLD_TASKS else 2 * horizon,
            # Not the training's: episodes that were trained on would be tested on.
            seed=(seed + 1_000_003) % 2**32,
            schedule="rounds",
            reproducible=True,
        )
        self._launcher = launcher
        self._collector: Collector | None = None
        self._state: Mapping[str, np.ndarray] = {}
        self.busy = False

    def start(self, parameters: Mapping[str, np.ndarray]) -> None:
        """Begin an evaluation of these weights; the one before must have been received."""
        if self.busy:
            raise RuntimeError("an evaluation is under way")
        self.busy = True
        if self._collector is None and not self._state:
            self._collector = Collector(self._config, self._launcher, parameters=parameters)
            return
        if self._collector is None:
            self._collector = Collector(self._config, self._launcher, state=self._state)
        self._collector.publish(parameters)
        # Asking for the block is what begins it; none can be there yet.
        self._receive_block(0)

    def receive(self, timeout: float | None) -> Evaluation | None:
        """The evaluation under way, or None if it takes longer than ``timeout`` seconds."""
        block = self._receive_block(timeout)
        if block is None:
            return None
        self.busy = False
        return first_episodes(block)

    def get_state(self) -> dict[str, np.ndarray]:
        """What later evaluations depend on; none may be under way."""
        return dict(self._state) if self._collector is None else self._collector.get_state()

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from ``get_state``'s result, before the first evaluation."""
        self._state = state

    def close(self) -> None:
        """End the process."""
        if self._collector is not None:
            self._collector.close()

    def _receive_block(self, timeout: float | None) -> Block | None:
        try:
            return self._collector.take(timeout)
        except TimeoutError:
            return None


def first_episodes(block: Block) -> Evaluation:
    """Of each environment the first episode that lies in the block from its first step to its last."""
    episodes, envs = block.episodes, block.reward.shape[1]
    chosen = np.full(envs, -1)
    for i, (row, length) in enumerate(zip(episodes.row, episodes.length, strict=True)):
        step, env = divmod(int(row), envs)
        if chosen[env] < 0 and step + 1 >= length:
            chosen[env] = i
    if (chosen < 0).any():
        raise RuntimeError(f"environments {np.flatnonzero(chosen < 0).tolist()} finished no episode")
    fields = ("episode_return", "length", "success_any", "success_last", "success_first")
    return Evaluation(*(getattr(episodes, field)[chosen] for field in fields))
