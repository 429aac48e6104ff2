"""Replay against the raw stream of transitions; every field of a row tells which one it is."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from engine.data.replay import STORAGES, Replay

OBSERVATIONS, ACTIONS = 3, 2


def identity(env, step):
    """A number exact in float32."""
    return 4000.0 * env + step


def coded(ids):
    """Wide fields (..., width) that say which transition they belong to."""
    ids = np.asarray(ids, np.float32)[..., None]
    return {
        "observation": ids + np.float32([0, 0.25, 0.5]),
        "action": -ids - np.float32([0.25, 0.5]),
        "next_observation": ids + np.float32([0.125, 0.375, 0.625]),
    }


class Stream:
    """What environments send: each one's steps in order, kept as plain lists."""

    def __init__(self, num_envs, seed, ends=0.2):
        self.rng = np.random.default_rng(seed)
        self.ends = ends
        self.steps = [[] for _ in range(num_envs)]  # (reward, terminated, truncated, gap after)

    def block(self, env_index, count, continues=True):
        """The next steps of these environments, as Replay.add takes them."""
        first = np.array([len(self.steps[e]) for e in env_index])
        terminated, truncated = self.rng.random((2, count, len(env_index))) < self.ends
        reward = self.rng.normal(size=(count, len(env_index))).astype(np.float32)
        for i, env in enumerate(env_index):
            if not continues and self.steps[env]:
                self.steps[env][-1] = (*self.steps[env][-1][:3], True)
            self.steps[env] += [
                (float(reward[t, i]), bool(terminated[t, i]), bool(truncated[t, i]), False)
                for t in range(count)
            ]
        ids = identity(np.asarray(env_index), first + np.arange(count)[:, None])
        flags = {"terminated": terminated, "truncated": truncated}
        return np.asarray(env_index), {**coded(ids), "reward": reward, **flags}, continues

    def target(self, env, step, discount, n_step):
        """(last step, reward, bootstrap) by walking along the list."""
        steps, total = self.steps[env], 0.0
        for k in range(n_step):
            reward, terminated, truncated, gap = steps[step + k]
            total += discount**k * reward
            if terminated or truncated or gap or step + k + 1 == len(steps):
                break
        return step + k, total, 0.0 if terminated else discount ** (k + 1)


def replay_of(stream, capacity, storage="host"):
    return Replay(capacity, len(stream.steps), OBSERVATIONS, ACTIONS, storage)


def transitions(observation):
    """(environment, step) of coded observations (..., o)."""
    ids = np.asarray(observation)[..., 0].astype(np.int64)
    return ids // 4000, ids % 4000


def random_adds(replay, stream, seed, calls, longest=None):
    """Blocks of random lengths, of random environments, some after a gap."""
    rng = np.random.default_rng(seed)
    longest = min(longest or replay.steps, replay.steps)
    for _ in range(calls):
        some = rng.permutation(replay.num_envs)[: rng.integers(1, replay.num_envs + 1)]
        replay.add(*stream.block(some, int(rng.integers(1, longest + 1)), bool(rng.random() < 0.7)))


def assert_same_batches(got, expected):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        assert np.array_equal(np.asarray(a), np.asarray(b))


def assert_same_state(got, expected):
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name].dtype == value.dtype
        assert np.array_equal(got[name], value), name


SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 12), st.integers(0, 3))


@settings(deadline=None)
@given(SHAPES, st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_the_newest_steps_of_each_environment_are_held_once_and_whole(shape, seed, calls):
    num_envs, steps, spare = shape
    stream = Stream(num_envs, seed)
    replay = replay_of(stream, num_envs * steps + min(spare, num_envs - 1))
    random_adds(replay, stream, seed, calls)

    sent = [len(s) for s in stream.steps]
    expected = [(e, t) for e, n in enumerate(sent) for t in range(max(0, n - steps), n)]
    assert replay.added == sum(sent)
    assert len(replay) == len(expected)

    held = replay.get_state()
    env, step = transitions(held["observation"])
    assert sorted(zip(env.tolist(), step.tolist(), strict=True)) == expected
    for name, value in coded(identity(env, step)).items():
        assert np.array_equal(held[name], value), name
    sent = [stream.steps[e][t] for e, t in zip(env, step, strict=True)]
    assert held["reward"].tolist() == [row[0] for row in sent]
    assert held["terminated"].tolist() == [row[1] for row in sent]
    assert held["ended"].tolist() == [any(row[1:]) for row in sent]


@settings(deadline=None)
@given(SHAPES, st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 6))
def test_n_step_rows_equal_a_walk_along_the_raw_stream(shape, seed, calls, n_step):
    num_envs, steps, _ = shape
    discount = 0.9
    stream = Stream(num_envs, seed)
    replay = replay_of(stream, num_envs * steps)
    random_adds(replay, stream, seed, calls)

    batch = replay.batches(seed % 1000, 3, 1, 4 * len(replay), discount, n_step)
    env, step = transitions(batch.observation[0])
    ages = np.array([len(s) for s in stream.steps])[env] - step
    assert (ages >= 1).all()
    assert (ages <= steps).all()
    walks = [stream.target(e, t, discount, n_step) for e, t in zip(env, step, strict=True)]
    last, reward, bootstrap = map(np.array, zip(*walks, strict=True))
    here, there = coded(identity(env, step)), coded(identity(env, last))
    assert np.array_equal(batch.observation[0], here["observation"])
    assert np.array_equal(batch.action[0], here["action"])
    assert np.array_equal(batch.next_observation[0], there["next_observation"])
    np.testing.assert_allclose(batch.reward[0], reward, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(batch.bootstrap[0], bootstrap, rtol=1e-6)


def test_an_n_step_sum_worked_by_hand():
    # Steps 0 1 2 (truncated), 3 4 (terminated), 5 6 (truncated), 7 (gap), 8 9 (newest); rewards 1 to 10.
    replay = Replay(10, 1, OBSERVATIONS, ACTIONS, "host")
    ids = np.arange(10)[:, None]
    rows = {
        **coded(ids),
        "reward": (ids + 1).astype(np.float32),
        "terminated": ids == 4,
        "truncated": (ids == 2) | (ids == 6),
    }
    replay.add(np.array([0]), {k: v[:8] for k, v in rows.items()}, True)
    replay.add(np.array([0]), {k: v[8:] for k, v in rows.items()}, False)
    batch = replay.batches(0, 0, 1, 200, 0.5, 3)
    found = {
        int(o): (float(r), int(n), float(b))
        for o, r, n, b in zip(
            batch.observation[0, :, 0],
            batch.reward[0],
            batch.next_observation[0, :, 0],
            batch.bootstrap[0],
            strict=True,
        )
    }
    assert found == {
        0: (1 + 2 / 2 + 3 / 4, 2, 1 / 8),
        1: (2 + 3 / 2, 2, 1 / 4),
        2: (3, 2, 1 / 2),
        3: (4 + 5 / 2, 4, 0),
        4: (5, 4, 0),
        5: (6 + 7 / 2, 6, 1 / 4),
        6: (7, 6, 1 / 2),
        7: (8, 7, 1 / 2),
        8: (9 + 10 / 2, 9, 1 / 4),
        9: (10, 9, 1 / 2),
    }


def test_terminated_and_truncated_at_once_does_not_bootstrap():
    replay = Replay(1, 1, OBSERVATIONS, ACTIONS, "host")
    flag = np.ones((1, 1), bool)
    rows = {**coded([[0]]), "reward": np.ones((1, 1), np.float32), "terminated": flag, "truncated": flag}
    replay.add(np.array([0]), rows, True)
    assert replay.batches(0, 0, 1, 4, 0.9, 2).bootstrap.tolist() == [[0] * 4]


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
    rows = np.concatenate([replay.draw(11, update, 256, 0.99, 3).row for update in range(200)])
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
        return source.draw(seed, update, 64, 0.99, 2).row.tolist()

    cases = [(1, 2), (2, 1), (1, 3), (1, 0), (0, 1), (2**32 - 1, 10**9)]
    expected = {case: rows(replay, *case) for case in cases}
    assert len({str(row) for row in expected.values()}) == len(cases)
    # In another order, from another replay, whatever NumPy's global generator says.
    for case in reversed(cases):
        np.random.seed(0)
        assert rows(twin, *case) == expected[case]
        assert rows(replay, *case) == expected[case]


@pytest.mark.parametrize("storage", STORAGES)
def test_batches_do_not_depend_on_how_updates_are_grouped(storage):
    stream = Stream(2, seed=6)
    replay = replay_of(stream, 40, storage)
    random_adds(replay, stream, 6, calls=5)
    whole = replay.batches(9, 100, 6, 8, 0.95, 3)
    parts = [replay.batches(9, first, n, 8, 0.95, 3) for first, n in ((100, 1), (101, 3), (104, 2))]
    assert_same_batches(jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts), whole)


def test_host_and_device_storage_give_identical_batches_and_states():
    replays, streams = {}, {}
    for storage in ("host", "device"):
        streams[storage] = Stream(3, seed=7)
        replays[storage] = replay_of(streams[storage], 20, storage)
    for call in range(4):
        for storage, replay in replays.items():
            random_adds(replay, streams[storage], call, calls=1)
        batches = [replay.batches(2, 5 * call, 5, 16, 0.99, 3) for replay in replays.values()]
        assert batches[0].observation.shape == (5, 16, OBSERVATIONS)
        assert batches[0].reward.shape == batches[0].bootstrap.shape == (5, 16)
        assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(batches[0]))
        assert_same_batches(*batches)
    assert_same_state(*(replay.get_state() for replay in replays.values()))


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("longest", [3, None], ids=["part-filled", "wrapped"])
@pytest.mark.parametrize("continues", [True, False])
def test_a_restored_replay_goes_on_as_if_nothing_had_happened(storage, longest, continues):
    stream = Stream(3, seed=8)
    whole = replay_of(stream, 31, storage)
    random_adds(whole, stream, 8, calls=3 if longest else 7, longest=longest)
    assert (len(whole) == 30) == (longest is None)

    saved = whole.get_state()
    assert all(len(value) == len(whole) for name, value in saved.items() if name != "written")
    restored = replay_of(stream, 31, storage)
    # What was there before does not show through.
    restored.add(*Stream(3, seed=9).block([2, 0, 1], 10))
    restored.set_state(saved)
    assert (restored.added, len(restored)) == (whole.added, len(whole))
    for count in (4, 9):
        assert_same_state(restored.get_state(), whole.get_state())
        assert_same_batches(restored.batches(1, 7, 2, 64, 0.9, 4), whole.batches(1, 7, 2, 64, 0.9, 4))
        block = stream.block([2, 1], count, continues)
        whole.add(*block)
        restored.add(*block)
    assert_same_state(restored.get_state(), whole.get_state())


@pytest.mark.parametrize("storage", STORAGES)
def test_an_empty_replay_is_restored_too(storage):
    stream = Stream(2, seed=10)
    saved = replay_of(stream, 8, storage).get_state()
    replay = replay_of(stream, 8, storage)
    replay.add(*stream.block([0, 1], 3))
    replay.set_state(saved)
    assert (replay.added, len(replay)) == (0, 0)


@pytest.mark.parametrize("storage", STORAGES)
def test_nothing_is_shared_with_what_comes_in_or_goes_out(storage):
    stream = Stream(2, seed=11)
    replay = replay_of(stream, 12, storage)
    for _ in range(3):
        env_index, rows, continues = stream.block([0, 1], 4)
        replay.add(env_index, rows, continues)
        for array in (env_index, *rows.values()):
            array[...] = 1
    saved, batch = replay.get_state(), replay.batches(0, 0, 2, 8, 0.9, 1)
    before = [np.array(leaf) for leaf in jax.tree.leaves((saved, batch))]
    replay.add(*stream.block([1, 0], 6))
    for leaf, kept in zip(jax.tree.leaves((saved, batch)), before, strict=True):
        assert np.array_equal(np.asarray(leaf), kept)
    env, step = transitions(saved["observation"])
    assert np.array_equal(saved["action"], coded(identity(env, step))["action"])

    other = replay_of(stream, 12, storage)
    other.set_state(saved)
    for array in saved.values():
        array[...] = 1
    env, step = transitions(other.get_state()["observation"])
    assert sorted(identity(env, step)) == [identity(e, t) for e in (0, 1) for t in range(6, 12)]


def test_a_block_longer_than_the_ring_is_refused_and_leaves_no_trace():
    stream = Stream(2, seed=12)
    replay = replay_of(stream, 11)
    replay.add(*stream.block([0], 2))
    before = replay.get_state()
    with pytest.raises(ValueError, match="6 steps do not fit into 5"):
        replay.add(*stream.block([1, 0], 6))
    assert_same_state(replay.get_state(), before)
    replay.add(*stream.block([1], 5))
    assert len(replay) == 7


def test_drawing_from_an_empty_replay_is_refused():
    with pytest.raises(ValueError, match="nothing to draw"):
        replay_of(Stream(2, seed=0), 8).draw(0, 0, 4, 0.99, 1)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(
    "shape",
    [(12, 3, 3, 2), (8, 2, 3, 2), (12, 2, 1, 2), (12, 2, 4, 2), (12, 2, 3, 1)],
    ids=["environments", "capacity", "narrow observation", "wide observation", "action"],
)
def test_a_state_of_another_shape_is_refused_and_leaves_no_trace(storage, shape):
    capacity, num_envs, observations, actions = shape
    other = Replay(capacity, num_envs, observations, actions, storage)
    count = capacity // num_envs
    wide = {"observation": observations, "action": actions, "next_observation": observations}
    flags = np.zeros((2, count, num_envs), bool)
    rows = {name: np.ones((count, num_envs, width), np.float32) for name, width in wide.items()}
    rows |= {"reward": np.ones((count, num_envs)), "terminated": flags[0], "truncated": flags[1]}
    for _ in range(2):
        other.add(np.arange(num_envs), rows, True)

    stream = Stream(2, seed=13)
    replay = replay_of(stream, 12, storage)
    replay.add(*stream.block([0, 1], 5))
    before = replay.get_state()
    with pytest.raises(ValueError, match="fit"):
        replay.set_state(other.get_state())
    assert_same_state(replay.get_state(), before)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_order_of_environments_in_a_block_does_not_matter(seed):
    rng = np.random.default_rng(seed)
    stream = Stream(4, seed)
    replay, shuffled = replay_of(stream, 21), replay_of(stream, 21)
    for _ in range(4):
        some = rng.permutation(4)[: rng.integers(1, 5)]
        env_index, rows, continues = stream.block(some, int(rng.integers(1, 6)), bool(rng.random() < 0.7))
        replay.add(env_index, rows, continues)
        order = rng.permutation(len(some))
        shuffled.add(env_index[order], {name: value[:, order] for name, value in rows.items()}, continues)
    assert_same_state(shuffled.get_state(), replay.get_state())
