"""An environment whose every field encodes (seed, episode, step), and a policy that echoes it.

A row that crosses a reset, a torn block, a stale action or a lost step all show as a wrong number.
"""

import time

import numpy as np

from fastcollect import POLICY_VERSION, PolicyConfig
from fastcollect.envs.base import ActionSpec, EnvSpec
from fastcollect.memory.segment import FieldSpec

SPEC = EnvSpec(
    observation_shape=(3,),
    observation_dtype=np.dtype(np.int64),
    observation_low=np.zeros(3),
    observation_high=np.full(3, 2.0**63),
    action=ActionSpec(
        shape=(3,), dtype=np.dtype(np.float32), low=np.full(3, -np.inf), high=np.full(3, np.inf)
    ),
    has_success=True,
)


def episode_length(seed, episode):
    """1 to 6 steps, a function of the environment and the episode."""
    return 1 + (np.asarray(seed) // 7 + np.asarray(episode) * 5) % 6


def truncates(seed, episode):
    """Whether the episode's end is a truncation; else it is a termination."""
    return (np.asarray(seed) + np.asarray(episode)) % 2 == 0


def reward(seed, episode, step):
    return np.asarray(seed) % 1009 + np.asarray(episode) * 0.5 + np.asarray(step) * 2.0**-10


def success(seed, episode, step):
    return (np.asarray(seed) + np.asarray(episode) + np.asarray(step)) % 3 == 0


def echo(observation):
    """The action that belongs to an observation, exact in float32."""
    return (np.asarray(observation) % 2**20).astype(np.float32)


class CodedEnv:
    """observation = (seed, episode, step); refuses an action that is not this observation's echo."""

    spec = SPEC

    def __init__(self, seeds, fail_at=None, exit_at=None):
        self.num_envs = len(seeds)
        self._state = np.stack([seeds, np.full_like(seeds, -1), np.zeros_like(seeds)], axis=1)
        self._fail_at = fail_at
        self._steps = 0

    def reset(self, observation):
        self._state[:, 1] += 1
        self._state[:, 2] = 0
        observation[...] = self._state

    def step(self, action, out):
        seed, episode, step = self._state.T
        np.testing.assert_array_equal(action, echo(self._state))
        if self._fail_at is not None and self._steps == self._fail_at:
            from fastcollect.envs.base import EnvStepError

            try:
                raise ZeroDivisionError("the simulator exploded")
            except ZeroDivisionError as error:
                raise EnvStepError(1, "environment 1 failed") from error
        self._steps += 1
        out.reward[:] = reward(seed, episode, step)
        out.success[:] = success(seed, episode, step)
        self._state[:, 2] += 1
        done = self._state[:, 2] == episode_length(seed, episode)
        out.truncated[:] = done & truncates(seed, episode)
        out.terminated[:] = done & ~truncates(seed, episode)
        out.final_observation[done] = self._state[done]
        self._state[done, 1] += 1
        self._state[done, 2] = 0
        out.observation[...] = self._state

    def get_state(self):
        return {"state": self._state.copy()}

    def set_state(self, state):
        self._state[...] = state["state"]

    def close(self):
        pass


class EchoPolicy:
    """Acts with the observation's echo plus what its one weight says, which stays zero."""

    def __init__(self, spec):
        self.parameters = {"offset": FieldSpec((1,), np.dtype(np.float32))}
        self.noise = ("uniform", 2)
        self.extras = {
            "seen": FieldSpec((3,), np.dtype(np.int64)),
            "drawn": FieldSpec((2,), np.dtype(np.float32)),
            POLICY_VERSION: FieldSpec((), np.dtype(np.int64)),
        }
        self._offset = None

    def initial_parameters(self, seed):
        return {"offset": np.zeros(1, np.float32)}

    def load(self, parameters):
        self._offset = parameters["offset"].copy()

    def act(self, observation, noise, action, extras):
        action[...] = echo(observation) + self._offset
        extras["seen"][...] = observation
        extras["drawn"][...] = noise


class SleepyPolicy(EchoPolicy):
    """Takes three milliseconds for every batch."""

    def act(self, observation, noise, action, extras):
        time.sleep(0.003)
        super().act(observation, noise, action, extras)


def echo_policy():
    path = "support.coded_env:EchoPolicy"
    return PolicyConfig(name="echo", inline=path, batched=path)
