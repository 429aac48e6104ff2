"""Evaluation: the deterministic policy on every goal, in a process with environments of its own."""

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from fastcollect import (
    Block,
    Collector,
    CollectorConfig,
    ConfigError,
    EnvConfig,
    EnvSpec,
    Episodes,
    PolicyConfig,
)
from fastcollect.control.launcher import Launcher
from fastcollect.envs.registry import METAWORLD_TASKS
from trainers.config.training import EvaluationConfig

NUM_GOALS = 50


class Evaluator:
    """Runs evaluations one after the other beside whatever the caller does.

    It has a reproducible collector of one env worker whose one block is a whole episode of every environment:
    it takes the weights published before the block begins, and its generators are nobody else's. The
    collector starts with the first evaluation.
    """

    def __init__(
        self,
        env: EnvConfig,
        policy: PolicyConfig,
        config: EvaluationConfig,
        seed: int,
        spec: EnvSpec,
        launcher: Launcher,
        state: Mapping[str, np.ndarray],
    ) -> None:
        """policy: deterministic. spec: the environment's.

        state: what ``get_state`` returned, to go on from there; empty for a new run. Raises ConfigError where
        an evaluation has no end.
        """
        horizon = spec.max_episode_steps
        if horizon is None:
            raise ConfigError([f"{env.id} has no known horizon, so that an evaluation would have no end"])
        goals = env.id in METAWORLD_TASKS
        if goals:
            env = replace(env, kwargs={**env.kwargs, "goal_indices": list(range(NUM_GOALS))})
        self._config = CollectorConfig(
            env=env,
            policy=policy,
            num_envs=NUM_GOALS if goals else config.episodes,
            num_env_workers=1,
            # Episodes that all take the horizon begin with the block; others somewhere in its first half.
            block_length=horizon if goals else 2 * horizon,
            # Not the training's: episodes that were trained on would be tested on.
            seed=(seed + 1_000_003) % 2**32,
            schedule="rounds",
            reproducible=True,
        )
        self._spec, self._launcher, self._state = spec, launcher, state
        self._collector: Collector | None = None
        self.busy = False

    def start(self, parameters: Mapping[str, np.ndarray]) -> None:
        """Begin an evaluation of these weights; the one before must have been received."""
        if self.busy:
            raise RuntimeError("an evaluation is under way")
        self.busy = True
        first = self._collector is None and not self._state
        if self._collector is None:
            state = self._state or None
            self._collector = Collector(self._config, self._launcher, state, parameters, self._spec)
        if not first:
            self._collector.publish(parameters)
            # Asking for the block is what begins it; none can be there yet.
            with contextlib.suppress(TimeoutError):
                self._collector.take(0)

    def receive(self, timeout: float | None) -> Episodes | None:
        """One episode of each environment (on Meta-World: goal), or None after ``timeout`` seconds."""
        assert self._collector is not None, "no evaluation was started"
        try:
            block = self._collector.take(timeout)
        except TimeoutError:
            return None
        self.busy = False
        return first_episodes(block)

    def get_state(self) -> dict[str, np.ndarray]:
        """What later evaluations depend on; none may be under way."""
        return dict(self._state) if self._collector is None else self._collector.get_state()

    def close(self) -> None:
        """End the process."""
        if self._collector is not None:
            self._collector.close()


def first_episodes(block: Block) -> Episodes:
    """The first episode of each environment that lies in the block from its first step to its last.

    Raises RuntimeError naming the environments that have none.
    """
    episodes, envs = block.episodes, block.reward.shape[1]
    step, env = np.divmod(episodes.row, envs)
    whole = np.flatnonzero(step + 1 >= episodes.length)
    finished, first = np.unique(env[whole], return_index=True)
    if missing := sorted(set(range(envs)) - set(finished.tolist())):
        raise RuntimeError(f"environments {missing} finished no episode")
    return Episodes(**{name: values[whole[first]] for name, values in vars(episodes).items()})


def evaluation_row(found: Episodes) -> dict[str, Any]:
    """Scalars for the metrics, and lists by episode (on Meta-World: by goal)."""
    first = found.success_first[found.success_first >= 0]
    return {
        "success_any": float(found.success_any.mean()),
        "success_last": float(found.success_last.mean()),
        "success_first_step": float(first.mean()) if len(first) else None,
        "return_mean": float(found.episode_return.mean()),
        "return_std": float(found.episode_return.std()),
        "episode_length": float(found.length.mean()),
        "success_any_by_goal": found.success_any.tolist(),
        "success_last_by_goal": found.success_last.tolist(),
        "return_by_goal": [round(float(x), 3) for x in found.episode_return],
    }
