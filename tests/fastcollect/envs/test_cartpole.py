"""The batched CartPole against gymnasium's, and what only a batch can get wrong."""

import io

import gymnasium
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcollect.envs import cartpole
from fastcollect.envs.base import BatchedEnv, EnvStepError, StepBuffers


def start(seeds, **kwargs):
    env = cartpole.make(np.asarray(seeds, np.int64), **kwargs)
    out = StepBuffers.allocate(env.spec, env.num_envs)
    env.reset(out.observation)
    return env, out


def balance(observation, rng, n):
    """Mostly keeps the pole up, so that episodes of every length up to the horizon occur."""
    push = (observation[:, 2] + 0.3 * observation[:, 3] + 0.05 * observation[:, 0] > 0).astype(np.int64)
    noise = np.linspace(0.0, 1.0, n)
    return np.where(rng.random(n) < noise, rng.integers(0, 2, n), push)


@pytest.mark.parametrize("sutton", [False, True])
def test_equals_stock_bit_for_bit(sutton):
    n, steps = 6, 1500
    env, out = start(range(n), sutton_barto_reward=sutton)
    assert isinstance(env, BatchedEnv)
    stock = [gymnasium.make("CartPole-v1", sutton_barto_reward=sutton) for _ in range(n)]
    rng = np.random.default_rng(0)

    def follow(i):
        """Put stock i where row i of the batch has just started."""
        stock[i].reset()
        stock[i].unwrapped.state = env.get_state()["state"][:, i].copy()

    for i in range(n):
        follow(i)
    terminations = truncations = 0
    for _ in range(steps):
        action = balance(out.observation, rng, n)
        env.step(action, out)
        for i in range(n):
            observation, reward, terminated, truncated, _ = stock[i].step(action[i])
            done = terminated or truncated
            got = out.final_observation[i] if done else out.observation[i]
            assert got.tobytes() == observation.tobytes()
            assert (out.reward[i], out.terminated[i], out.truncated[i]) == (reward, terminated, truncated)
            terminations += terminated
            truncations += truncated
            if done:
                follow(i)
                first = stock[i].unwrapped.state.astype(np.float32)
                assert out.observation[i].tobytes() == first.tobytes()
                assert np.abs(first).max() <= 0.05
    assert terminations > 20
    assert truncations > 2


def test_equals_the_stock_vector_environment():
    """A wide batch runs other SIMD lanes of sin and cos than a narrow one."""
    n = 1000
    env, out = start(range(n))
    stock = gymnasium.make_vec("CartPole-v1", num_envs=n, vectorization_mode="vector_entry_point").unwrapped
    stock.reset(seed=0)
    rng = np.random.default_rng(1)
    for _ in range(60):
        stock.state = env.get_state()["state"]
        action = rng.integers(0, 2, n)
        expected, _, terminated, _, _ = stock.step(action)
        stock.prev_done[:] = False
        env.step(action, out)
        last = np.where(out.terminated[:, None], out.final_observation, out.observation)
        assert last.tobytes() == expected.tobytes()
        np.testing.assert_array_equal(out.terminated, terminated)


def test_spec_is_stock():
    env, _ = start([0])
    stock = gymnasium.make("CartPole-v1")
    np.testing.assert_array_equal(env.spec.observation_high, stock.observation_space.high)
    np.testing.assert_array_equal(env.spec.observation_low, stock.observation_space.low)
    assert env.spec.observation_dtype == stock.observation_space.dtype
    assert env.spec.action.num_actions == stock.action_space.n
    assert env.spec.max_episode_steps == stock.spec.max_episode_steps == 500


def test_both_flags_where_the_pole_falls_at_the_horizon():
    env, out = start([0], max_episode_steps=500)
    length = 0
    while not out.terminated[0]:
        env.step(np.ones(1, np.int64), out)
        length += 1
    env, out = start([0], max_episode_steps=length)
    for _ in range(length):
        assert not out.terminated[0]
        assert not out.truncated[0]
        env.step(np.ones(1, np.int64), out)
    assert out.terminated[0]
    assert out.truncated[0]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=40, unique=True), st.data())
def test_a_row_does_not_depend_on_its_batch(seeds, data):
    row = data.draw(st.integers(0, len(seeds) - 1))
    batch, many = start(seeds, max_episode_steps=13)
    alone, one = start([seeds[row]], max_episode_steps=13)
    rng = np.random.default_rng(0)
    for _ in range(40):
        assert many.observation[row].tobytes() == one.observation[0].tobytes()
        action = rng.integers(0, 2, len(seeds))
        batch.step(action, many)
        alone.step(action[row : row + 1], one)
        assert many.final_observation[row].tobytes() == one.final_observation[0].tobytes()


def test_first_states_are_uniform_and_distinct():
    key = cartpole.make(np.arange(4000))._key
    states = np.stack([cartpole.first_states(key, np.full(4000, e, np.uint64)) for e in range(5)])
    assert len(np.unique(states)) == states.size
    assert states.min() >= -0.05
    assert states.max() < 0.05
    counts, _ = np.histogram(states, bins=20, range=(-0.05, 0.05))
    expected = states.size / 20
    assert ((counts - expected) ** 2 / expected).sum() < 45  # chi-square, 19 degrees of freedom, p < 1e-3
    correlation = np.corrcoef(states.transpose(0, 2, 1).reshape(-1, 4).T)
    assert np.abs(correlation - np.eye(4)).max() < 0.03


def test_rows_that_go_on_keep_their_final_observation_slot():
    env, out = start(range(50))
    out.final_observation.fill(7.0)
    rng = np.random.default_rng(0)
    ended = np.zeros(50, np.bool_)
    for _ in range(15):
        env.step(rng.integers(0, 2, 50), out)
        ended |= out.terminated
        assert (out.final_observation[~ended] == 7.0).all()
    assert 0 < ended.sum() < 50


def test_state_continues_bitwise():
    rng = np.random.default_rng(0)
    actions = rng.integers(0, 2, (120, 30))
    env, out = start(range(30), max_episode_steps=25)
    for action in actions[:60]:
        env.step(action, out)
    file = io.BytesIO()
    np.savez(file, **env.get_state())
    file.seek(0)
    other, other_out = start(range(100, 130), max_episode_steps=25)
    other.set_state(dict(np.load(file, allow_pickle=False)))
    for action in actions[60:]:
        env.step(action, out)
        other.step(action, other_out)
        assert out.observation.tobytes() == other_out.observation.tobytes()
        np.testing.assert_array_equal(out.truncated, other_out.truncated)


def test_state_is_checked():
    env, _ = start(range(3))
    other, _ = start(range(4))
    with pytest.raises(ValueError, match=r"'state'.*\(3,\)|'state'.*\(4, 3\)"):
        env.set_state(other.get_state())
    with pytest.raises(ValueError, match="missing"):
        env.set_state({})


def test_a_second_reset_starts_other_episodes():
    env, out = start(range(8))
    first = out.observation.copy()
    env.reset(out.observation)
    assert (out.observation != first).all()


def test_misuse():
    env, out = start(range(3))
    before = env.get_state()
    with pytest.raises(EnvStepError, match="action 2 of row 1") as error:
        env.step(np.array([0, 2, 1]), out)
    assert error.value.env_index == 1
    assert env.get_state()["state"].tobytes() == before["state"].tobytes()
    with pytest.raises(ValueError, match="shape"):
        env.step(np.zeros((3, 1), np.int64), out)
    with pytest.raises(RuntimeError, match="reset"):
        cartpole.make(np.arange(2)).step(np.zeros(2, np.int64), out)
    for seeds in ([], [-1], [[1]]):
        with pytest.raises(ValueError, match="seeds"):
            cartpole.make(np.array(seeds, np.int64))
    with pytest.raises(ValueError, match="max_episode_steps"):
        cartpole.make(np.arange(2), max_episode_steps=0)


def test_int32_actions():
    one, a = start(range(4))
    two, b = start(range(4))
    one.step(np.array([0, 1, 1, 0], np.int32), a)
    two.step(np.array([0, 1, 1, 0], np.int64), b)
    assert a.observation.tobytes() == b.observation.tobytes()
