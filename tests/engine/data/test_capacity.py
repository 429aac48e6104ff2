"""The rule by which a replay gives up its oldest transitions, and what it gives up, by hand."""

import numpy as np
import pytest
from support.transitions import Stream, assert_held, assert_same_state, observations, replay_of

from engine.data.capacity import distance, excess


def test_the_distance_is_half_the_mean_squared_difference():
    now, then = np.float32([[0.5, -1], [0, 1]]), np.float32([[0.5, 1], [-0.5, 0.5]])
    assert distance(now, then) == (4 + 0.25 + 0.25) / 4 / 2
    assert distance(now, now) == 0
    # Differences that are lost in float32 count.
    assert distance(np.full((2, 1), 1e-30, np.float32), np.zeros((2, 1), np.float32)) > 0


@pytest.mark.parametrize(
    ("size", "found", "dropped"),
    [
        (1000, 0.2, 0),  # not above the distance
        (1000, 0.2001, 100),
        (999, 0.3, 99),
        (501, 0.3, 50),  # the last time, to below the minimum
        (500, 9.0, 0),  # not above the minimum
        (1000, float("nan"), 0),
    ],
)
def test_a_tenth_goes_above_both_the_distance_and_the_minimum(size, found, dropped):
    assert excess(size, found, minimum=500, max_distance=0.2) == dropped


def held_after(counts, dropped, capacity=60):
    """What each environment holds of these counts after a drop."""
    stream = Stream(len(counts), 0)
    replay = replay_of(stream, capacity)
    for env, count in enumerate(counts):
        if count:
            replay.add(*stream.block([env], count))
    replay.shrink(dropped)
    return replay.get_state()["held"].tolist()


@pytest.mark.parametrize(
    ("counts", "dropped", "left"),
    [
        ([10, 10, 10], 0, [10, 10, 10]),
        ([10, 10, 10], 6, [8, 8, 8]),
        ([10, 10, 10], 8, [7, 7, 8]),  # the remainder is of the first ones
        ([10, 4, 9], 1, [9, 4, 9]),
        ([10, 4, 9], 4, [7, 4, 8]),  # a latecomer has nothing that old
        ([10, 4, 9], 13, [3, 3, 4]),
        ([0, 5], 2, [0, 3]),
        ([3, 5], 8, [0, 0]),
        ([3, 5], 9, [0, 0]),
    ],
)
def test_what_goes_is_of_the_environments_that_hold_the_most(counts, dropped, left):
    assert held_after(counts, dropped) == left


@pytest.mark.parametrize("storage", ["host", pytest.param("device", marks=pytest.mark.slow)])
def test_room_for_as_many_stays_and_final_observations_do_not_leak(storage):
    """Every step ends an episode, drops come again and again, and a round of the ring gives all back."""
    stream = Stream(2, seed=1, ends=1.0)
    replay = replay_of(stream, 24, storage, mean_actions=True)
    for _ in range(20):
        replay.add(*stream.block([0, 1], 4))
        stream.forget(12)
        replay.shrink(5)
        stream.drop(5)
        assert_held(replay, stream)
        # A place for each row of the ring at most, dropped rows included, until they are overwritten.
        assert replay._places - len(replay._unused) <= 2 * replay.slots
    for _ in range(4):
        replay.add(*stream.block([0, 1], 4))
        stream.forget(12)
    assert len(replay) == 24
    assert replay._places - len(replay._unused) == len(replay)
    assert_held(replay, stream)


@pytest.mark.parametrize("storage", ["host", pytest.param("device", marks=pytest.mark.slow)])
def test_a_shrunk_replay_is_restored_with_exactly_what_it_held(storage):
    stream = Stream(3, seed=2, ends=0.3)
    replay = replay_of(stream, 30, storage, mean_actions=True)
    replay.add(*stream.block([0, 1, 2], 9))
    replay.shrink(7)
    stream.drop(7)
    other = replay_of(stream, 30, storage, mean_actions=True)
    other.set_state(replay.get_state())
    for _ in range(3):
        assert_held(other, stream)
        assert_same_state(other.get_state(), replay.get_state())
        for a, b in zip(other.oldest(8), replay.oldest(8), strict=True):
            assert np.array_equal(a, b)
        for each in (replay, other):
            each.shrink(2)
        stream.drop(2)
        block = stream.block([2, 0], 4)
        stream.forget(10)
        for each in (replay, other):
            each.add(*block)


def test_the_oldest_begin_with_the_first_environment():
    stream = Stream(2, seed=3, ends=0)
    replay = replay_of(stream, 20, mean_actions=True)
    replay.add(*stream.block([0, 1], 5))
    first, second = ([t.observation for t in held] for held in stream.held)
    seen, means = replay.oldest(3)
    assert np.array_equal(seen, observations([*first[:2], second[0]]))
    assert means.shape == (3, 2)
    assert len(replay.oldest(100)[0]) == len(replay) == 10


def test_a_state_without_mean_actions_is_refused_where_they_are_kept():
    stream = Stream(2, seed=4)
    replay = replay_of(stream, 20)
    replay.add(*stream.block([0, 1], 5))
    with pytest.raises(ValueError, match="mean_action is missing"):
        replay_of(stream, 20, mean_actions=True).set_state(replay.get_state())
