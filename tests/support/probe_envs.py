"""Tiny decision processes whose values are known by hand, to find what a learner does wrong.

All have four one-hot states and one action in [-1, 1], so that one compiled learner serves them all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from support.specs import box_spec

from engine.algorithms import base
from engine.data.replay import Replay
from engine.networks import mlp

STATES, ACTIONS = 4, 1


@dataclass(frozen=True)
class Probe:
    """A process: where episodes start, what a step pays, and where it leads.

    starts: the states that an episode may start in, each as likely.
    reward: (state, action) -> reward, of arrays.
    following: the state after each one.
    ends: for each state, how a step from it ends the episode: None, "terminated" or "truncated".
    """

    starts: tuple[int, ...]
    reward: Callable[[np.ndarray, np.ndarray], np.ndarray]
    following: tuple[int, ...]
    ends: tuple[str | None, ...]

    def collect(self, steps: int, num_envs: int, seed: int) -> dict[str, np.ndarray]:
        """Transitions under uniform actions, as ``engine.data.replay.Replay.add`` takes them."""
        rng = np.random.default_rng(seed)
        following, ends, one_hot = np.array(self.following), np.array(self.ends), np.eye(STATES, dtype="f4")
        state = rng.choice(self.starts, num_envs)
        states, rows, final_row, final = [state], [], [], []
        for step in range(steps):
            action = rng.uniform(-1, 1, num_envs).astype(np.float32)
            after = following[state]
            reward = np.broadcast_to(self.reward(state, action), num_envs).astype(np.float32)
            over = ends[state] != None  # noqa: E711  (of an array, one by one)
            rows.append(
                {"action": action[:, None], "reward": reward, "terminated": ends[state] == "terminated"}
            )
            final_row += (step * num_envs + np.flatnonzero(over)).tolist()
            final += after[over].tolist()
            state = np.where(over, rng.choice(self.starts, num_envs), after)
            states.append(state)
        return {
            **{name: np.stack([row[name] for row in rows]) for name in rows[0]},
            "observation": one_hot[np.array(states)],
            "final_row": np.array(final_row, int),
            "final_observation": one_hot[np.array(final, int)],
        }


def ends_at_once(reward: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Probe:
    """One step from any state, and over."""
    return Probe((0, 1, 2, 3), reward, (0, 1, 2, 3), ("terminated",) * 4)


def two_steps(reward: float) -> Probe:
    """State 0 pays nothing and leads to state 1, which pays the reward and ends."""
    return Probe((0,), lambda state, action: reward * (state == 1), (1, 1, 2, 3), (None, *["terminated"] * 3))


def ring(reward: float, end: str) -> Probe:
    """States 0, 1, 2, 3, 0, ... that pay the same; an episode is ended on the way from state 3 to state 0."""
    return Probe(
        (0, 2), lambda state, action: np.full(state.shape, reward), (1, 2, 3, 0), (None,) * 3 + (end,)
    )


def cut_short(reward: float) -> Probe:
    """State 0 leads to state 1, where the episode is truncated; started in state 1, it pays and goes on.

    Pays the reward in state 1 only, and in state 0 nothing. What state 0 is worth is the value of state 1,
    where the episode was cut, and not that of the state in which the next one starts.
    """
    return Probe(
        (0, 1, 2),
        lambda state, action: reward * (state == 1),
        (1, 1, 2, 3),
        ("truncated", *["terminated"] * 3),
    )


UPDATES_A_CALL = 50


def learned(probe, config, *, calls=6, masks=None, parameters=None, seed=0):
    """(state, acting parameters) after so many calls of ``learn`` on a fixed store of transitions.

    masks: none at all by default. parameters: networks to begin with in place of fresh ones.
    """
    replay = Replay(1024, 4, STATES, ACTIONS, "host")
    replay.add(np.arange(4), probe.collect(256, 4, seed), True)
    algorithm = config.make(box_spec([-1.0], [1.0], (STATES,)), 1e-4)
    state = algorithm.init(seed)
    state = base.masked(state.replace(parameters={**state.parameters, **(parameters or {})}), masks or {})
    for call in range(calls):
        first = call * UPDATES_A_CALL
        batches = replay.batches(seed, first, UPDATES_A_CALL, config.batch_size, config.n_step)
        state, acting, _ = base.learn(algorithm, state, batches)
    assert state.updates == calls * UPDATES_A_CALL
    return state, acting


def greedy(acting):
    """The mean action in every state, which is tanh of the actor's first output."""
    return np.tanh(np.asarray(mlp(acting, np.eye(STATES, dtype=np.float32)))[:, 0])
