"""Draws: uniform, functions of seed and update alone, the same wherever and however they are gathered."""

import jax
import numpy as np
import pytest
from scipy import stats
from support.transitions import OBSERVATIONS, Stream, assert_batch, random_adds, replay_of

from engine.data.storage import STORAGES


def assert_same_batches(got, expected):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        assert np.array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("wrapped", [False, True])
def test_draws_are_uniform_over_the_transitions_held(wrapped):
    stream = Stream(3, seed=4)
    replay = replay_of(stream, 60)
    # Environments of different ages: environment 0 has little, 2 has nothing or the most.
    replay.add(*stream.block([0], 5))
    replay.add(*stream.block([1], 17))
    if wrapped:
        replay.add(*stream.block([1], 19))
        replay.add(*stream.block([2], 20))
        replay.add(*stream.block([2], 7))
    rows = np.concatenate([replay.draw(11, update, 256, 3).row for update in range(200)])
    values, counts = np.unique(rows, return_counts=True)
    assert len(values) == len(replay) == (45 if wrapped else 22)
    assert stats.chisquare(counts).pvalue > 1e-3
    # Neighbours in a batch have nothing to do with each other either.
    first, second = np.searchsorted(values, rows.reshape(-1, 2).T)
    pairs = np.bincount(first * len(values) + second, minlength=len(values) ** 2)
    assert stats.chisquare(pairs).pvalue > 1e-3


def test_a_draw_is_a_function_of_seed_and_update():
    stream = Stream(3, seed=5)
    replay, twin = replay_of(stream, 50), replay_of(stream, 50)
    for block in [stream.block([0, 2], 9), stream.block([1, 0], 14)]:
        replay.add(*block)
        twin.add(*block)

    def rows(source, seed, update):
        return source.draw(seed, update, 64, 2).row.tolist()

    cases = [(1, 2), (2, 1), (1, 3), (1, 0), (0, 1), (2**32 - 1, 10**9), (2**31, 2**62)]
    expected = {case: rows(replay, *case) for case in cases}
    assert len({str(row) for row in expected.values()}) == len(cases)
    # In another order, from another replay, whatever NumPy's global generator says.
    for case in reversed(cases):
        np.random.seed(0)
        assert rows(twin, *case) == expected[case]
        assert rows(replay, *case) == expected[case]


def old_draw(written, steps, ended, seed, update, batch_size, n_step):
    """(environment, step, steps taken): the rule when next observations were stored beside observations."""
    generator = np.random.Generator(np.random.Philox(key=[seed, update]))
    held = np.minimum(written, steps)
    ends = np.cumsum(held)
    chosen = generator.integers(ends[-1], size=batch_size)
    env = np.searchsorted(ends, chosen, "right")
    age = chosen - (ends[env] - held[env])
    step = written[env] - held[env] + age
    taken, going = np.ones(batch_size, int), ~ended[env, step % steps]
    for k in range(1, n_step):
        going &= age + k < held[env]
        taken += going
        going &= ~ended[env, (step + k) % steps]
    return env, step, taken


@pytest.mark.parametrize("n_step", [1, 2, 5])
@pytest.mark.parametrize("capacity", [9, 31, 200])
def test_the_same_transitions_are_drawn_as_when_next_observations_were_stored(capacity, n_step):
    stream = Stream(3, seed=7)
    replay = replay_of(stream, capacity)
    random_adds(replay, stream, 7, calls=9)
    ended = np.zeros((3, replay.steps), bool)
    number = np.zeros((3, replay.steps), int)
    for env, held in enumerate(stream.held):
        for age, transition in enumerate(held):
            place = (stream.sent[env] - len(held) + age) % replay.steps
            ended[env, place], number[env, place] = transition.ended, transition.number
    for update in (0, 5, 2**40):
        old = old_draw(np.array(stream.sent), replay.steps, ended, 9, update, 300, n_step)
        env, step, taken = old
        batch = jax.tree.map(lambda leaf: leaf[0], replay.batches(9, update, 1, 300, n_step))
        assert np.array_equal(batch.rewards[:, 0], number[env, step % replay.steps] + np.float32(0.125))
        last = number[env, (step + taken - 1) % replay.steps] + np.float32(0.125)
        assert np.array_equal(batch.rewards[np.arange(300), taken - 1], last)
        assert np.array_equal(batch.steps, taken)
        assert_batch(batch, stream, 9, update, n_step)


@pytest.mark.parametrize("storage", STORAGES)
def test_batches_do_not_depend_on_how_updates_are_grouped(storage):
    stream = Stream(2, seed=6)
    replay = replay_of(stream, 40, storage)
    random_adds(replay, stream, 6, calls=5)
    whole = replay.batches(9, 100, 6, 8, 3)
    parts = [replay.batches(9, first, n, 8, 3) for first, n in ((100, 1), (101, 3), (104, 2))]
    assert_same_batches(jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts), whole)


def test_host_and_device_storage_give_identical_batches():
    replays, streams = {}, {}
    for storage in ("host", "device"):
        streams[storage] = Stream(3, seed=7)
        replays[storage] = replay_of(streams[storage], 20, storage)
    for call in range(4):
        for storage, replay in replays.items():
            random_adds(replay, streams[storage], call, calls=1)
        batches = [replay.batches(2, 5 * call, 5, 16, 3) for replay in replays.values()]
        shapes = {name: leaf.shape for name, leaf in vars(batches[0]).items() if leaf is not None}
        assert shapes["observation"] == shapes["next_observation"] == (5, 16, OBSERVATIONS)
        assert (shapes["rewards"], shapes["steps"], shapes["terminated"]) == ((5, 16, 3), (5, 16), (5, 16))
        assert_same_batches(*batches)
