"""Replay against plain lists of transitions, through whatever may happen to it; and by hand."""

import copy

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from support.transitions import (
    ACTIONS,
    OBSERVATIONS,
    Stream,
    actions,
    assert_batch,
    assert_held,
    assert_same_state,
    mean_actions,
    observations,
    random_adds,
    replay_of,
)

from engine.data.replay import Replay


class Life(RuleBasedStateMachine):
    """A replay that takes blocks, drops, is saved, restored in another size and given more environments."""

    storage, most_envs, most_steps, lengths, restored = "host", 4, 12, st.integers(1, 12), st.integers(1, 16)

    @initialize(data=st.data(), seed=st.integers(0, 2**32 - 1), ends=st.sampled_from([0, 0.2, 1]))
    def begin(self, data, seed, ends):
        num_envs = data.draw(st.integers(1, self.most_envs), label="environments")
        steps = data.draw(st.integers(1, self.most_steps), label="steps")
        spare = data.draw(st.integers(0, num_envs - 1), label="spare")
        self.mean_actions = data.draw(st.booleans(), label="mean actions")
        self.stream = Stream(num_envs, seed, ends)
        self.replay = replay_of(self.stream, num_envs * steps + spare, self.storage, self.mean_actions)
        self.seed = seed % 1000

    @rule(data=st.data(), continues=st.booleans())
    def add(self, data, continues):
        count = min(data.draw(self.lengths, label="count"), self.replay.steps)
        every = st.permutations(range(self.replay.num_envs))
        some = data.draw(every, label="order")[: data.draw(st.integers(1, self.replay.num_envs))]
        self.replay.add(*self.stream.block(some, count, continues))
        self.stream.forget(self.replay.steps)

    @rule(data=st.data())
    def restore(self, data):
        """Into a smaller, an equal or a larger one."""
        saved, steps = self.replay.get_state(), data.draw(self.restored, label="steps")
        capacity = self.replay.num_envs * steps
        self.replay = replay_of(self.stream, capacity, self.storage, self.mean_actions)
        self.replay.set_state(saved)
        self.stream.forget(steps)

    @precondition(lambda self: self.replay.num_envs < self.replay.capacity and self.replay.num_envs < 6)
    @rule(more=st.integers(0, 2))
    def widen(self, more):
        num_envs = min(self.replay.num_envs + more, self.replay.capacity)
        self.replay = self.replay.resized(num_envs)
        self.stream.more(num_envs)
        self.stream.forget(self.replay.steps)

    @rule(count=st.integers(0, 12))
    def shrink(self, count):
        self.replay.shrink(count)
        self.stream.drop(count)

    @precondition(lambda self: self.mean_actions)
    @rule(count=st.integers(0, 60))
    def oldest(self, count):
        everything = copy.deepcopy(self.stream.held)
        oldest = self.stream.drop(count)
        self.stream.held = everything
        seen, means = self.replay.oldest(count)
        assert np.array_equal(seen, observations([t.observation for t in oldest]))
        assert np.array_equal(means, mean_actions([t.number for t in oldest]))

    @invariant()
    def holds_the_newest_steps_of_each_environment_whole(self):
        if hasattr(self, "stream"):
            assert self.replay.added == sum(self.stream.sent)
            assert self.replay.num_envs == len(self.stream.now)
            assert_held(self.replay, self.stream)
            # No row has two places of final observations, and none is lost.
            taken = self.replay._final[self.replay._final >= 0].tolist()
            assert sorted(taken + self.replay._unused) == list(range(self.replay._places))

    @precondition(lambda self: len(self.replay))
    @rule(
        n_step=st.integers(1, 5), update=st.integers(0, 2**62), wait=st.integers(-1, 2), between=st.booleans()
    )
    def draw(self, n_step, update, wait, between):
        """The delay ends before, between or after the two updates."""
        size = 24 if self.storage == "device" else 3 * len(self.replay)
        window = n_step, update + wait, between
        batches = self.replay.batches(self.seed, update, 2, size, *window)
        for k in range(2):
            one = jax.tree.map(lambda leaf, k=k: leaf[k], batches)
            assert_batch(one, self.stream, self.seed, update + k, *window)


class DeviceLife(Life):
    """The same with few shapes, because each is compiled."""

    storage, most_envs, most_steps, lengths, restored = "device", 2, 3, st.just(2), st.integers(2, 4)


COMMON = {"deadline": None, "suppress_health_check": list(HealthCheck)}


def test_a_replay_on_the_host_is_the_lists_of_what_was_sent():
    run_state_machine_as_test(Life, settings=settings(max_examples=100, stateful_step_count=12, **COMMON))


@pytest.mark.slow
def test_a_replay_on_the_device_is_the_lists_of_what_was_sent():
    run_state_machine_as_test(DeviceLife, settings=settings(max_examples=8, stateful_step_count=8, **COMMON))


def test_n_step_rows_worked_by_hand():
    # Steps 0 1 2 (truncated), 3 4 (terminated), 5 6 (truncated), 7 (gap), 8 9 (newest). Where an episode ends
    # or the gap is, what follows is 100 more than the step.
    replay = Replay(10, 1, OBSERVATIONS, ACTIONS, "host")
    ids = np.arange(10)[:, None]

    def rows(part, last, ends):
        part = ids[part]
        return {
            "observation": observations([*part, [last]]),
            "action": actions(part),
            "reward": (part + 1).astype(np.float32),
            "terminated": part == 4,
            "final_row": np.array(ends, int),
            "final_observation": observations([int(part[row, 0]) + 100 for row in ends]),
        }

    replay.add(np.array([0]), rows(slice(0, 8), 107, [2, 4, 6]), True)
    replay.add(np.array([0]), rows(slice(8, 10), 10, []), False)
    batch = replay.batches(0, 0, 1, 200, 3)
    found = {
        int(batch.observation[0, i, 0]): (
            batch.rewards[0, i].tolist(),
            int(batch.steps[0, i]),
            int(batch.next_observation[0, i, 0]),
            bool(batch.terminated[0, i]),
        )
        for i in range(200)
    }
    assert found == {
        0: ([1, 2, 3], 3, 102, False),
        1: ([2, 3, 0], 2, 102, False),
        2: ([3, 0, 0], 1, 102, False),
        3: ([4, 5, 0], 2, 104, True),
        4: ([5, 0, 0], 1, 104, True),
        5: ([6, 7, 0], 2, 106, False),
        6: ([7, 0, 0], 1, 106, False),
        7: ([8, 0, 0], 1, 107, False),
        8: ([9, 10, 0], 2, 10, False),
        9: ([10, 0, 0], 1, 10, False),
    }


@pytest.mark.parametrize("storage", ["host", "device"])
def test_terminated_and_truncated_at_once_does_not_bootstrap(storage):
    replay = Replay(1, 1, OBSERVATIONS, ACTIONS, storage)
    rows = {
        "observation": observations([[0], [2]]),
        "action": actions([[0]]),
        "reward": np.ones((1, 1), np.float32),
        "terminated": np.ones((1, 1), bool),
        "final_row": np.array([0]),
        "final_observation": observations([1]),
    }
    replay.add(np.array([0]), rows, True)
    batch = replay.batches(0, 0, 1, 4, 2)
    assert np.asarray(batch.terminated).all()
    assert np.array_equal(batch.next_observation[0], observations([1] * 4))
    assert np.asarray(batch.steps).tolist() == [[1] * 4]


@pytest.mark.parametrize("seed", range(5))
def test_order_of_environments_in_a_block_does_not_matter(seed):
    rng = np.random.default_rng(seed)
    stream = Stream(4, seed)
    replay, shuffled = replay_of(stream, 21), replay_of(stream, 21)
    for _ in range(4):
        some = rng.permutation(4)[: rng.integers(1, 5)]
        count, envs = int(rng.integers(1, 6)), len(some)
        env_index, rows, continues = stream.block(some, count, bool(rng.random() < 0.7))
        replay.add(env_index, rows, continues)
        order = rng.permutation(envs)
        mixed = {name: rows[name][:, order] for name in ("observation", "action", "reward", "terminated")}
        step, env = np.divmod(rows["final_row"], envs)
        mixed["final_row"] = step * envs + np.argsort(order)[env]
        mixed["final_observation"] = rows["final_observation"]
        shuffled.add(env_index[order], mixed, continues)
    assert_same_state(shuffled.get_state(), replay.get_state())


def test_a_block_longer_than_the_ring_is_refused_and_leaves_no_trace():
    stream = Stream(2, seed=12)
    replay = replay_of(stream, 11)
    replay.add(*stream.block([0], 2))
    before = replay.get_state()
    with pytest.raises(ValueError, match="6 steps do not fit into 5"):
        replay.add(*Stream(2, seed=1).block([1, 0], 6))
    assert_same_state(replay.get_state(), before)
    replay.add(*stream.block([1], 5))
    assert len(replay) == 7


def test_drawing_from_an_empty_replay_is_refused():
    with pytest.raises(ValueError, match="nothing to draw"):
        replay_of(Stream(2, seed=0), 8).draw(0, 0, 4, 1)


@pytest.mark.parametrize("storage", ["host", "device"])
def test_nothing_is_shared_with_what_comes_in_or_goes_out(storage):
    stream = Stream(2, seed=11, ends=0.4)
    replay = replay_of(stream, 12, storage)
    for _ in range(3):
        env_index, rows, continues = stream.block([0, 1], 4)
        replay.add(env_index, rows, continues)
        for array in (env_index, *rows.values()):
            array[...] = 1
    stream.forget(6)
    assert_held(replay, stream)
    saved, batch = replay.get_state(), replay.batches(0, 0, 2, 8, 1)
    before = {name: np.array(value) for name, value in (saved | vars(batch)).items()}
    random_adds(replay, Stream(2, seed=3), 0, calls=3)
    for name, value in (saved | vars(batch)).items():
        assert np.array_equal(np.asarray(value), before[name]), name
    other = replay_of(stream, 12, storage)
    other.set_state(saved)
    for array in saved.values():
        array[...] = 1
    assert_held(other, stream)
