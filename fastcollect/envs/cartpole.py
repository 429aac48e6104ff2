"""CartPole-v1 as one batch of NumPy arrays.

The dynamics are those of ``gymnasium.make("CartPole-v1")``, operation for operation in the same order
in float64, so a state that is stepped here and there gives the same bits. What differs is where first
states come from: stock draws them from one generator for each environment (slow for thousands of
them), this batch from a counter-based hash of (seed, episode, coordinate), which is one vectorised
expression for however many rows reset at once, and keeps every row independent of the batch.
"""

import math
from collections.abc import Mapping

import numpy as np

from fastcollect.envs.base import (
    ActionSpec,
    EnvSpec,
    State,
    StepBuffers,
    check_action,
    checked_seeds,
    restore_arrays,
)
from fastcollect.support.noise import mix64

GRAVITY = 9.8
POLE_MASS = 0.1
TOTAL_MASS = POLE_MASS + 1.0
HALF_LENGTH = 0.5
POLE_MASS_LENGTH = POLE_MASS * HALF_LENGTH
FORCE = 10.0
TAU = 0.02
X_LIMIT = 2.4
THETA_LIMIT = 12 * 2 * math.pi / 360
RESET_BOUND = 0.05

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_COORDINATES = np.arange(1, 5, dtype=np.uint64)[:, None]


def first_states(key: np.ndarray, episode: np.ndarray) -> np.ndarray:
    """First states of episodes: (4, k) float64, uniform in [-0.05, 0.05).

    key, episode: (k,) uint64; column j depends on key[j] and episode[j] alone.
    """
    counter = (episode * np.uint64(4) + _COORDINATES) * _GOLDEN
    counter += key
    bits = mix64(counter) >> np.uint64(11)
    states = bits.astype(np.float64)
    states *= 2.0**-53 * (2 * RESET_BOUND)
    states -= RESET_BOUND
    return states


class CartPole:
    """A ``BatchedEnv`` of ``len(seeds)`` cart-poles.

    seeds: (n,) int64, not negative. max_episode_steps: steps after which an episode is truncated.
    sutton_barto_reward: 0 for every step and -1 for the terminating one, in place of 1 for every step.

    A row that falls over at the horizon reports both ``terminated`` and ``truncated``, as gymnasium's
    TimeLimit does. An action other than 0 or 1 raises EnvStepError before any row has moved. Wrong
    arguments raise ValueError.
    """

    def __init__(
        self, seeds: np.ndarray, *, max_episode_steps: int = 500, sutton_barto_reward: bool = False
    ) -> None:
        seeds = checked_seeds(seeds)
        if max_episode_steps < 1:
            raise ValueError(f"max_episode_steps must be at least 1, got {max_episode_steps}")
        self.num_envs = n = seeds.size
        high = np.array([X_LIMIT * 2, np.inf, THETA_LIMIT * 2, np.inf], np.float32)
        self.spec = EnvSpec(
            observation_shape=(4,),
            observation_dtype=np.dtype(np.float32),
            observation_low=-high,
            observation_high=high,
            action=ActionSpec(shape=(), dtype=np.dtype(np.int64), num_actions=2),
            max_episode_steps=max_episode_steps,
        )
        self._horizon, self._sutton_barto = max_episode_steps, sutton_barto_reward
        self._key = mix64(seeds.astype(np.uint64) + _GOLDEN)
        self._episode = np.zeros(n, np.uint64)  # episodes started so far
        self._steps = np.zeros(n, np.int64)
        self._state = np.zeros((4, n))
        self._scratch = np.zeros((6, n))
        self._flags = np.zeros(n, np.bool_)
        self._arrays = {
            "state": self._state,
            "steps": self._steps,
            "episode": self._episode,
            "key": self._key,
        }

    def reset(self, observation: np.ndarray) -> None:
        """Start a new episode in every row; write (n, 4) float32."""
        self._begin(np.arange(self.num_envs), observation)

    def step(self, action: np.ndarray, out: StepBuffers) -> None:
        """Step every row; ``action`` is (n,) of an integer type, each 0 (left) or 1 (right)."""
        if not self._episode[0]:
            raise RuntimeError("reset() must be called before step()")
        check_action(action, self.num_envs, self.spec.action)
        self._advance(action)
        out.observation[...] = self._state.T

        bound, other = self._scratch[0], self._flags
        np.abs(self._state[0], out=bound)
        np.greater(bound, X_LIMIT, out=out.terminated)
        np.abs(self._state[2], out=bound)
        np.greater(bound, THETA_LIMIT, out=other)
        np.logical_or(out.terminated, other, out=out.terminated)
        self._steps += 1
        np.greater_equal(self._steps, self._horizon, out=out.truncated)
        if self._sutton_barto:
            out.reward.fill(0.0)
            out.reward[out.terminated] = -1.0
        else:
            out.reward.fill(1.0)

        np.logical_or(out.terminated, out.truncated, out=other)
        rows = np.flatnonzero(other)
        if rows.size:
            out.final_observation[rows] = out.observation[rows]
            self._begin(rows, out.observation)

    def _advance(self, action: np.ndarray) -> None:
        """The equations of stock CartPole; their order of operations decides the last bits."""
        x, x_dot, theta, theta_dot = self._state
        temp, cos, sin, theta_acc, x_acc, part = self._scratch
        np.cos(theta, out=cos)
        np.sin(theta, out=sin)
        # temp = (force + pole_mass_length * theta_dot**2 * sin) / total_mass
        np.multiply(action, 2 * FORCE, out=temp)
        temp -= FORCE
        np.multiply(theta_dot, theta_dot, out=part)
        part *= POLE_MASS_LENGTH
        part *= sin
        temp += part
        temp /= TOTAL_MASS
        # theta_acc = (g * sin - cos * temp) / (half_length * (4/3 - pole_mass * cos**2 / total_mass))
        np.multiply(cos, temp, out=part)
        np.multiply(sin, GRAVITY, out=theta_acc)
        theta_acc -= part
        np.multiply(cos, cos, out=part)
        part *= POLE_MASS
        part /= TOTAL_MASS
        np.subtract(4.0 / 3.0, part, out=part)
        part *= HALF_LENGTH
        theta_acc /= part
        # x_acc = temp - pole_mass_length * theta_acc * cos / total_mass
        np.multiply(theta_acc, POLE_MASS_LENGTH, out=x_acc)
        x_acc *= cos
        x_acc /= TOTAL_MASS
        np.subtract(temp, x_acc, out=x_acc)
        # Explicit Euler: positions move with the old velocities.
        for value, rate in ((x, x_dot), (x_dot, x_acc), (theta, theta_dot), (theta_dot, theta_acc)):
            np.multiply(rate, TAU, out=part)
            value += part

    def _begin(self, rows: np.ndarray, observation: np.ndarray) -> None:
        first = first_states(self._key[rows], self._episode[rows])
        self._state[:, rows] = first
        self._episode[rows] += np.uint64(1)
        self._steps[rows] = 0
        observation[rows] = first.T

    def get_state(self) -> State:
        """state (4, n) float64, steps (n,) int64, episode and key (n,) uint64; all copies."""
        return {name: array.copy() for name, array in self._arrays.items()}

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Continue bit for bit. Raises ValueError where an array is missing, or of another shape or type."""
        restore_arrays(self._arrays, state)

    def close(self) -> None:
        """Nothing to release."""


make = CartPole
