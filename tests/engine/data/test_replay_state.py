"""A replay saved and restored: it goes on as if nothing had happened, and what does not fit is refused."""

import jax
import numpy as np
import pytest
from support.transitions import (
    ACTIONS,
    OBSERVATIONS,
    Stream,
    assert_batch,
    assert_held,
    assert_same_state,
    random_adds,
    replay_of,
)

from engine.data.replay import Replay
from engine.data.storage import STORAGES


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("longest", [3, None], ids=["part-filled", "wrapped"])
@pytest.mark.parametrize("continues", [True, False])
def test_a_restored_replay_goes_on_as_if_nothing_had_happened(storage, longest, continues):
    stream = Stream(3, seed=8)
    whole = replay_of(stream, 31, storage)
    random_adds(whole, stream, 8, calls=3 if longest else 7, longest=longest)
    assert (len(whole) == 30) == (longest is None)
    saved = whole.get_state()
    restored = replay_of(stream, 31, storage)
    restored.set_state(saved)
    assert (restored.added, len(restored)) == (whole.added, len(whole))
    for count in (4, 9):
        assert_same_state(restored.get_state(), whole.get_state())
        for name, value in vars(whole.batches(1, 7, 2, 64, 4)).items():
            assert np.array_equal(getattr(restored.batches(1, 7, 2, 64, 4), name), value), name
        block = stream.block([2, 1], count, continues)
        stream.forget(10)
        whole.add(*block)
        restored.add(*block)
        assert_held(restored, stream)
    assert_same_state(restored.get_state(), whole.get_state())


def test_what_is_saved_has_the_size_of_what_is_held():
    stream = Stream(3, seed=8)
    replay = replay_of(stream, 3000)
    random_adds(replay, stream, 8, calls=3, longest=5)
    saved = replay.get_state()
    per_env, finals = ("written", "held", "newest"), int(saved["ended"].sum())
    sizes = {name: len(value) for name, value in saved.items() if name not in per_env}
    assert sizes.pop("final_observation") == finals > 0
    assert set(sizes.values()) == {len(replay)}
    assert all(len(saved[name]) == 3 for name in per_env)


@pytest.mark.parametrize("storage", STORAGES)
def test_an_empty_replay_is_restored_too(storage):
    stream = Stream(2, seed=10)
    replay = replay_of(stream, 8, storage)
    replay.set_state(replay_of(stream, 8, storage).get_state())
    assert (replay.added, len(replay)) == (0, 0)
    replay.add(*stream.block([0, 1], 3))
    assert_held(replay, stream)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("capacity", [6, 31, 90])
def test_another_capacity_holds_the_newest_that_there_is_room_for(storage, capacity):
    stream = Stream(3, seed=9)
    old = replay_of(stream, 30, storage)
    random_adds(old, stream, 9, calls=9)
    assert old.added > 2 * len(old)
    replay = replay_of(stream, capacity, storage)
    replay.set_state(old.get_state())
    stream.forget(capacity // 3)
    for _ in range(4):
        assert_held(replay, stream)
        batch = replay.batches(1, 2, 1, 50, 3)
        assert_batch(jax.tree.map(lambda leaf: leaf[0], batch), stream, 1, 2, 3)
        replay.add(*stream.block([0, 2, 1], min(replay.steps, 8)))
        stream.forget(capacity // 3)
    assert replay.added == sum(stream.sent)


@pytest.mark.parametrize("storage", STORAGES)
def test_more_environments_share_the_capacity(storage):
    stream = Stream(2, seed=14)
    replay = replay_of(stream, 24, storage)
    random_adds(replay, stream, 14, calls=6)
    before = replay.get_state()
    wider = replay.resized(5)
    assert_same_state(replay.get_state(), before)
    assert (wider.capacity, wider.num_envs, wider.steps) == (24, 5, 4)
    stream.more(5)
    stream.forget(4)
    assert_held(wider, stream)
    wider.add(*stream.block([4, 0], 3))
    stream.forget(4)
    assert_held(wider, stream)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(
    "shape",
    [(12, 3, 3, 2), (12, 2, 1, 2), (12, 2, 4, 2), (12, 2, 3, 1)],
    ids=["environments", "narrow observation", "wide observation", "action"],
)
def test_a_state_of_another_shape_is_refused_and_leaves_no_trace(storage, shape):
    capacity, num_envs, width, actions = shape
    other = Replay(capacity, num_envs, width, actions, storage)
    count = capacity // num_envs
    rows = {
        "observation": np.ones((count + 1, num_envs, width), np.float32),
        "action": np.ones((count, num_envs, actions), np.float32),
        "reward": np.ones((count, num_envs), np.float32),
        "terminated": np.zeros((count, num_envs), bool),
        "final_row": np.array([0]),
        "final_observation": np.ones((1, width), np.float32),
    }
    for _ in range(2):
        other.add(np.arange(num_envs), rows, True)
    stream = Stream(2, seed=13)
    replay = replay_of(stream, 12, storage)
    before = replay.get_state()
    with pytest.raises(ValueError, match="fit"):
        replay.set_state(other.get_state())
    assert_same_state(replay.get_state(), before)


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("reward", lambda value: value[:-1], "do not fit|does not fit"),
        (
            "final_observation",
            lambda value: value[:-1],
            r"final_observation of shape \(\d+, 3\) does not fit",
        ),
        ("newest", lambda value: value[:, :2], r"newest of shape \(2, 2\) does not fit \(2, 3\)"),
        ("ended", lambda value: ~value, r"final_observation of shape"),
        ("held", lambda value: value + 1, "saved transitions do not fit"),
        ("held", lambda value: value - [1, -1], None),
        ("written", lambda value: value * 0, "saved transitions do not fit environments of"),
        ("written", lambda value: value[None], "does not fit an empty one of 2"),
    ],
)
def test_arrays_that_do_not_fit_each_other_are_refused(name, change, problem):
    stream = Stream(2, seed=15)
    replay = replay_of(stream, 12)
    replay.add(*stream.block([0, 1], 5))
    saved = replay.get_state()
    assert 0 < saved["ended"].sum() != len(saved["ended"]) / 2
    fresh = replay_of(stream, 12)
    with pytest.raises(ValueError, match=problem or "saved transitions do not fit"):
        fresh.set_state(saved | {name: change(saved[name])})
    assert len(fresh) == fresh.added == 0


def test_only_an_empty_replay_takes_a_state():
    stream = Stream(2, seed=16)
    replay = replay_of(stream, 12)
    replay.add(*stream.block([0], 1))
    with pytest.raises(ValueError, match="does not fit an empty one of 2"):
        replay.set_state(replay.get_state())
    assert_held(replay, stream)


def test_sizes_are_those_that_were_asked_for():
    replay = Replay(31, 3, OBSERVATIONS, ACTIONS, "host")
    assert (replay.capacity, replay.num_envs, replay.steps, len(replay), replay.added) == (31, 3, 10, 0, 0)
