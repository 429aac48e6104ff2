"""Every other Meta-World task: a loop over instances of stock's class, behind the batched protocol."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from metaworld.env_dict import ALL_V3_ENVIRONMENTS

from fastcollect.envs.base import EnvSpec, EnvStepError, State, StateUnsupportedError, StepBuffers
from fastcollect.envs.metaworld.goals import GoalChooser, mt1_tasks
from fastcollect.envs.metaworld.sawyer import ACTION_SIZE, sawyer_spec


class StockMetaWorld:
    """n instances of a task's class, stepped one after the other.

    Tasks that move bodies of their model need a model for each environment, so this costs tens of
    megabytes an environment and runs at stock's speed.

    State is saved as the actions of the running episodes and restored by repeating them: a Meta-World
    environment keeps task-specific attributes beside MuJoCo's state, and the repetition restores both.
    """

    def __init__(
        self,
        task: str,
        chooser: GoalChooser,
        num_envs: int,
        *,
        goal_visible: bool,
        mt1_seed: int,
        horizon: int,
    ) -> None:
        self.num_envs = num_envs
        self._tasks = mt1_tasks(task, mt1_seed, goal_visible)
        self._chooser = chooser
        self._envs = [ALL_V3_ENVIRONMENTS[task]() for _ in range(num_envs)]
        for env in self._envs:
            env.max_path_length = horizon
        self.spec: EnvSpec = sawyer_spec(self._envs[0], goal_visible)
        self._goal = np.full(num_envs, -1, np.int64)
        self._elapsed = np.zeros(num_envs, np.int64)
        self._actions = np.zeros((num_envs, horizon, ACTION_SIZE), np.float32)
        self._observation = np.zeros((num_envs, *self.spec.observation_shape))

    def reset(self, observation: np.ndarray) -> None:
        """Start a new episode everywhere; observation: (n, 39) float64, written."""
        for i in range(self.num_envs):
            self._observation[i] = self._begin(i, self._chooser.choose(i))
        observation[...] = self._observation

    def _begin(self, i: int, goal: int) -> np.ndarray:
        env = self._envs[i]
        env.set_task(self._tasks[goal])
        observation, _ = env.reset()
        self._goal[i], self._elapsed[i] = goal, 0
        return observation

    def step(self, action: np.ndarray, out: StepBuffers) -> None:
        """action: (n, 4) float32. See ``BatchedEnv.step``."""
        self._require_episode()
        for i in range(self.num_envs):
            try:
                self._step_one(i, action[i], out)
            except Exception as error:
                raise EnvStepError(i, f"row {i} failed: {type(error).__name__}: {error}") from error
        out.observation[...] = self._observation

    def _step_one(self, i: int, action: np.ndarray, out: StepBuffers) -> None:
        observation, reward, terminated, truncated, info = self._envs[i].step(action)
        self._actions[i, self._elapsed[i]] = action
        self._elapsed[i] += 1
        out.reward[i], out.terminated[i], out.truncated[i] = reward, terminated, truncated
        out.success[i] = bool(info["success"])
        if terminated or truncated:
            out.final_observation[i] = observation
            observation = self._begin(i, self._chooser.choose(i))
        self._observation[i] = observation

    def _require_episode(self) -> None:
        if (self._goal < 0).any():
            raise RuntimeError("no episode has begun: call reset or set_state first")

    def get_state(self) -> State:
        """See ``BatchedEnv.get_state``; actions: (n, horizon, 4) float32, of which ``elapsed`` rows count."""
        self._require_episode()
        return {
            "goal": self._goal.copy(),
            "elapsed": self._elapsed.copy(),
            "actions": self._actions.copy(),
            "observation": self._observation.copy(),
            "generators": self._chooser.get_state(),
        }

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Repeat the saved episodes (up to 0.1 s an environment). See ``BatchedEnv.set_state``.

        Raises StateUnsupportedError where the repetition ends at another observation than the saved one.
        """
        expected = self._actions.shape
        if state["actions"].shape != expected:
            raise ValueError(f"saved actions have shape {state['actions'].shape}, expected {expected}")
        for i in range(self.num_envs):
            observation = self._begin(i, int(state["goal"][i]))
            elapsed = int(state["elapsed"][i])
            for action in state["actions"][i, :elapsed]:
                observation = self._envs[i].step(action)[0]
            if not np.array_equal(observation, state["observation"][i]):
                raise StateUnsupportedError(
                    f"environment {i}: repeating {elapsed} actions did not reach the saved observation; "
                    "this task depends on more than its goal and its actions"
                )
            self._elapsed[i] = elapsed
        self._actions[...] = state["actions"]
        self._observation[...] = state["observation"]
        self._chooser.set_state(state["generators"])

    def close(self) -> None:
        """Close the instances; idempotent."""
        for env in self._envs:
            env.close()
        self._envs = []
