"""What environments send to a replay, kept beside it as plain lists of transitions.

Every observation and every transition has a number that no other one has, and all fields of a row say it, so
that a row made of two shows.
"""

import itertools
from typing import NamedTuple

import numpy as np

from engine.data.replay import Replay

OBSERVATIONS, ACTIONS = 3, 2


class Transition(NamedTuple):
    """number: what the action and the reward say. ended: no later step continues this one."""

    number: int
    observation: int
    following: int
    terminated: bool
    ended: bool


def observations(numbers):
    """(..., OBSERVATIONS) that say their numbers, exact in float32."""
    return np.asarray(numbers, np.float32)[..., None] + np.float32([0, 0.25, 0.5])


def actions(numbers):
    """(..., ACTIONS)."""
    return -np.asarray(numbers, np.float32)[..., None] - np.float32([0.25, 0.5])


def mean_actions(numbers):
    """(..., ACTIONS)."""
    return np.asarray(numbers, np.float32)[..., None] + np.float32([0.375, 0.625])


def rewards(numbers):
    """(...)."""
    return np.asarray(numbers, np.float32) + np.float32(0.125)


class Stream:
    """Environments of which ``held`` has the transitions that a replay should hold, from the oldest on."""

    def __init__(self, num_envs, seed, ends=0.2):
        self.rng, self.ends = np.random.default_rng(seed), ends
        self.numbers = itertools.count(1)
        self.now = [next(self.numbers) for _ in range(num_envs)]
        self.held = [[] for _ in range(num_envs)]
        self.sent = [0] * num_envs

    def more(self, num_envs):
        """Environments that come late."""
        for _ in range(num_envs - len(self.now)):
            self.now.append(next(self.numbers))
            self.held.append([])
            self.sent.append(0)

    def forget(self, steps):
        """Keep the newest steps of each environment only."""
        self.held = [held[-steps:] for held in self.held]

    def drop(self, count):
        """Leave out the oldest transitions, one by one: of the first environment that has the most."""
        gone = [[] for _ in self.held]
        for _ in range(min(count, sum(map(len, self.held)))):
            most = max(range(len(self.held)), key=lambda env: len(self.held[env]))
            gone[most].append(self.held[most].pop(0))
        return [transition for each in gone for transition in each]

    def block(self, env_index, count, continues=True):
        """The next steps of these environments, as Replay.add takes them."""
        envs = len(env_index)
        terminated, truncated = self.rng.random((2, count, envs)) < self.ends
        sent, number = np.zeros((count + 1, envs), int), np.zeros((count, envs), int)
        finals = {}
        for i, env in enumerate(env_index):
            if not continues:
                if self.held[env]:
                    self.held[env][-1] = self.held[env][-1]._replace(ended=True)
                self.now[env] = next(self.numbers)
            for t in range(count):
                over = bool(terminated[t, i] or truncated[t, i])
                here, following = self.now[env], next(self.numbers)
                sent[t, i], number[t, i] = here, next(self.numbers)
                self.held[env].append(Transition(number[t, i], here, following, bool(terminated[t, i]), over))
                if over:
                    finals[t * envs + i] = following
                self.now[env] = next(self.numbers) if over else following
            sent[count, i] = self.now[env]
            self.sent[env] += count
        rows = {
            "observation": observations(sent),
            "action": actions(number),
            "mean_action": mean_actions(number),
            "reward": rewards(number),
            "terminated": terminated,
            "final_row": np.array(sorted(finals), int),
            "final_observation": observations([finals[row] for row in sorted(finals)]),
        }
        return np.asarray(env_index), rows, continues


def replay_of(stream, capacity, storage="host", mean_actions=False):
    return Replay(capacity, len(stream.now), OBSERVATIONS, ACTIONS, storage, mean_actions)


def random_add(replay, stream, rng, longest=None):
    """A block of a random length of random environments, sometimes after a gap."""
    some = rng.permutation(replay.num_envs)[: rng.integers(1, replay.num_envs + 1)]
    count = int(rng.integers(1, min(longest or replay.steps, replay.steps) + 1))
    replay.add(*stream.block(some, count, bool(rng.random() < 0.7)))
    stream.forget(replay.steps)


def random_adds(replay, stream, seed, calls, longest=None):
    rng = np.random.default_rng(seed)
    for _ in range(calls):
        random_add(replay, stream, rng, longest)


def drawn(stream, seed, update, batch_size):
    """(environment, age) of the transitions of an update: the rule, which nothing may change."""
    generator = np.random.Generator(np.random.Philox(key=[seed, update]))
    held = [len(each) for each in stream.held]
    ends = np.cumsum(held)
    chosen = generator.integers(ends[-1], size=batch_size)
    envs = [next(e for e, end in enumerate(ends) if c < end) for c in chosen]
    return [(e, int(c - ends[e] + held[e])) for e, c in zip(envs, chosen, strict=True)]


def walk(held, age, n_step):
    """The transitions whose rewards are summed from one on: to an end, to the newest, or n_step of them."""
    taken = []
    for transition in held[age : age + n_step]:
        taken.append(transition)
        if transition.ended:
            break
    return taken


def assert_batch(batch, stream, seed, update, n_step, delay=0, between=False):
    """(batch, ...) arrays are the transitions that the rule draws, followed along the lists."""
    size, most = len(batch.steps), n_step if update >= delay else 1
    walks = [walk(stream.held[e], age, most) for e, age in drawn(stream, seed, update, size)]
    firsts, lasts = [w[0] for w in walks], [w[-1] for w in walks]
    expected = {
        "observation": observations([t.observation for t in firsts]),
        "action": actions([t.number for t in firsts]),
        "rewards": np.zeros((size, n_step), np.float32),
        "steps": np.array([len(w) for w in walks], np.int32),
        "next_observation": observations([t.following for t in lasts]),
        "terminated": np.array([t.terminated for t in lasts]),
    }
    for row, taken in zip(expected["rewards"], walks, strict=True):
        row[: len(taken)] = rewards([t.number for t in taken])
    assert (batch.between is not None) == between
    if between:
        begun = [[t.observation for t in [*w, *[w[-1]] * n_step][1:n_step]] for w in walks]
        expected["between"] = observations(np.array(begun).reshape(size, n_step - 1))
    for name, value in expected.items():
        got = np.asarray(getattr(batch, name))
        assert (got.dtype, got.shape) == (value.dtype, value.shape), name
        assert np.array_equal(got, value), name


def assert_held(replay, stream):
    """What a replay saves is what the lists have, in their order and whole."""
    state = replay.get_state()
    held = [transition for each in stream.held for transition in each]
    numbers, starts, following = (np.array([t[i] for t in held], int) for i in range(3))
    ended = np.array([t.ended for t in held], bool)
    empty = [not each for each in stream.held]
    assert state["held"].tolist() == [len(each) for each in stream.held]
    assert len(replay) == len(held)
    assert np.array_equal(state["observation"], observations(starts))
    assert np.array_equal(state["action"], actions(numbers))
    if "mean_action" in state:
        assert np.array_equal(state["mean_action"], mean_actions(numbers))
    assert np.array_equal(state["reward"], rewards(numbers))
    assert state["terminated"].tolist() == [t.terminated for t in held]
    assert state["ended"].tolist() == ended.tolist()
    assert np.array_equal(state["final_observation"], observations(following[ended]))
    newest = np.where(np.array(empty)[:, None], state["newest"], observations(stream.now))
    assert np.array_equal(state["newest"], newest)


def assert_same_state(got, expected):
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name].dtype == value.dtype
        assert np.array_equal(got[name], value), name
