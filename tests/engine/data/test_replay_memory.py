"""What a replay takes of memory: observations once, and places of final observations again and again."""

import numpy as np
import pytest
from support.transitions import Stream, assert_held, replay_of

from engine.data import storage as storages
from engine.data.replay import Replay
from engine.data.storage import STORAGES

STORED_TWICE = 2 * 39 * 4 + 4 * 4 + 4 + 1 + 1
"""Bytes of a transition of 39 observations and 4 actions with its next observation, reward and two flags."""


def nbytes(replay):
    """Of every array of a replay, and of its storage."""
    arrays = [v for v in vars(replay).values() if isinstance(v, np.ndarray)]
    return sum(array.nbytes for array in (*arrays, *replay._storage._arrays.values()))


def episode(count, num_envs, length):
    """A block of ``count`` steps of 39 observations and 4 actions whose episodes have one length."""
    last = np.arange(length - 1, count, length)
    rows = (last[:, None] * num_envs + np.arange(num_envs)).ravel()
    return {
        "observation": np.ones((count + 1, num_envs, 39), np.float32),
        "action": np.ones((count, num_envs, 4), np.float32),
        "reward": np.ones((count, num_envs), np.float32),
        "terminated": np.zeros((count, num_envs), bool),
        "final_row": rows,
        "final_observation": np.ones((len(rows), 39), np.float32),
    }


@pytest.mark.parametrize("storage", STORAGES)
def test_a_transition_takes_three_fifths_of_what_it_takes_to_store_next_observations(storage):
    replay = Replay(64_000, 16, 39, 4, storage)
    for _ in range(9):
        replay.add(np.arange(16), episode(500, 16, 500), True)
    assert len(replay) == 64_000
    assert nbytes(replay) / len(replay) <= 0.6 * STORED_TWICE
    assert nbytes(replay) >= len(replay) * (39 * 4 + 4 * 4)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("continues", [True, False])
@pytest.mark.parametrize("ends", [0.0, 0.3, 1.0])
def test_places_of_final_observations_are_used_again(storage, continues, ends):
    stream = Stream(3, seed=1, ends=ends)
    replay = replay_of(stream, 60, storage)
    largest = nbytes(replay)
    for block in range(150):
        replay.add(*stream.block([block % 3, (block + 1) % 3], 4, continues))
        stream.forget(20)
        if block == 30:
            largest = nbytes(replay)
    assert nbytes(replay) == largest
    # Of 60 transitions each may have one, so that the table never had to grow beyond its first size.
    assert storages._FIRST_FINALS >= 60
    assert_held(replay, stream)


@pytest.mark.slow
@pytest.mark.parametrize("storage", STORAGES)
def test_the_table_of_final_observations_grows_when_it_has_to(storage):
    stream = Stream(2, seed=2, ends=1.0)
    replay = replay_of(stream, 400, storage)
    before = nbytes(replay)
    for _ in range(20):
        replay.add(*stream.block([1, 0], 30))
        stream.forget(200)
        assert_held(replay, stream)
    row = 3 * 4
    assert nbytes(replay) - before == (512 - storages._FIRST_FINALS) * row


def test_any_number_of_ends_is_written_by_few_programs():
    stream = Stream(1, seed=3, ends=0.5)
    replay = replay_of(stream, 63, "device")
    replay.add(*stream.block([0], 60))
    compiled = storages._write._cache_size()
    for _ in range(40):
        replay.add(*stream.block([0], 60))
        stream.forget(63)
    # Between 15 and 45 of 60 end: of the powers of two these are 16, 32 and 64, one of which was there.
    assert storages._write._cache_size() - compiled <= 2
    assert_held(replay, stream)
