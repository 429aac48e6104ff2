"""The batched HalfCheetah against Gymnasium's."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

from fastcollect.envs.base import BatchedEnv, StepBuffers
from fastcollect.envs.halfcheetah import HalfCheetah, make

HORIZON = 1000


def start(seeds: list[int]) -> tuple[HalfCheetah, StepBuffers]:
    env = make(np.array(seeds, np.int64))
    out = StepBuffers.allocate(env.spec, env.num_envs)
    env.reset(out.observation)
    return env, out


def random_actions(rng: np.random.Generator, num_envs: int) -> np.ndarray:
    """Beyond the bounds at times: Gymnasium charges for the action as given, MuJoCo clamps it."""
    return rng.uniform(-1.3, 1.3, (num_envs, 6)).astype(np.float32)


def test_two_episodes_equal_gymnasium() -> None:
    seeds = [0, 12345678901]
    env, out = start(seeds)
    stocks = [gymnasium.make("HalfCheetah-v5") for _ in seeds]
    first = [stock.reset(seed=seed)[0] for stock, seed in zip(stocks, seeds, strict=True)]
    np.testing.assert_array_equal(out.observation, first)
    rng = np.random.default_rng(0)
    for step in range(2 * HORIZON + 20):
        action = random_actions(rng, len(seeds))
        out.observation.fill(np.nan)  # a ring's slot holds anything; all of it must be written
        env.step(action, out)
        for i, stock in enumerate(stocks):
            observation, reward, terminated, truncated, _ = stock.step(action[i])
            assert out.reward[i] == reward
            assert (out.terminated[i], out.truncated[i]) == (terminated, truncated)
            if truncated:
                np.testing.assert_array_equal(out.final_observation[i], observation)
                observation, _ = stock.reset()
            np.testing.assert_array_equal(out.observation[i], observation)
        assert out.truncated.all() == ((step + 1) % HORIZON == 0)


def test_many_episode_starts_equal_gymnasium() -> None:
    """Some starts touch the ground, where the solver's warm start from the reset decides the last bits."""
    seeds = list(range(200))
    env, out = start(seeds)
    stock = gymnasium.make("HalfCheetah-v5")
    action = random_actions(np.random.default_rng(0), len(seeds))
    env.step(action, out)
    for seed in seeds:
        stock.reset(seed=seed)
        np.testing.assert_array_equal(out.observation[seed], stock.step(action[seed])[0])


def test_second_reset_continues_the_generator() -> None:
    env, out = start([7])
    env.reset(out.observation)
    stock = gymnasium.make("HalfCheetah-v5")
    stock.reset(seed=7)
    np.testing.assert_array_equal(out.observation[0], stock.reset()[0])


def test_environment_depends_on_its_seed_and_actions_alone() -> None:
    seeds = list(range(8))
    (batch, batch_out), (alone, alone_out) = start(seeds), start(seeds[5:6])
    rng = np.random.default_rng(0)
    for _ in range(HORIZON + 10):
        action = random_actions(rng, len(seeds))
        batch.step(action, batch_out)
        alone.step(action[5:6], alone_out)
        np.testing.assert_array_equal(alone_out.observation[0], batch_out.observation[5])
        assert alone_out.reward[0] == batch_out.reward[5]
    assert len(np.unique(batch_out.observation, axis=0)) == len(seeds)


def test_restored_state_continues_bit_for_bit(tmp_path: object) -> None:
    kept, kept_out = start([1, 2])
    rng = np.random.default_rng(0)
    for _ in range(HORIZON - 5):
        kept.step(random_actions(rng, 2), kept_out)
    np.savez(tmp_path / "state.npz", **kept.get_state())
    restored, restored_out = start([98, 99])  # other seeds: the generators must come back
    with np.load(tmp_path / "state.npz") as state:
        restored.set_state(state)
    for _ in range(15):
        action = random_actions(rng, 2)
        kept.step(action, kept_out)
        restored.step(action, restored_out)
        for name in ("observation", "reward", "terminated", "truncated"):
            np.testing.assert_array_equal(getattr(restored_out, name), getattr(kept_out, name), err_msg=name)
    np.testing.assert_array_equal(restored_out.final_observation, kept_out.final_observation)
    assert kept_out.final_observation.any()


def test_spec_agrees_with_gymnasium() -> None:
    env, stock = make(np.array([1])), gymnasium.make("HalfCheetah-v5")
    spec = env.spec
    assert isinstance(env, BatchedEnv)
    assert spec.observation_shape == stock.observation_space.shape
    assert spec.observation_dtype == stock.observation_space.dtype
    assert spec.action.shape == stock.action_space.shape
    assert spec.action.dtype == stock.action_space.dtype
    np.testing.assert_array_equal(spec.action.low, stock.action_space.low)
    np.testing.assert_array_equal(spec.action.high, stock.action_space.high)
    assert spec.max_episode_steps == stock.spec.max_episode_steps
    assert not spec.has_success


def test_use_before_reset_and_foreign_state_are_refused() -> None:
    env, _ = start([1, 2])
    fresh = make(np.array([1]))
    with pytest.raises(RuntimeError, match="reset"):
        fresh.step(np.zeros((1, 6), np.float32), StepBuffers.allocate(fresh.spec, 1))
    with pytest.raises(ValueError, match="shape"):
        fresh.set_state(env.get_state())
    env.close()
    env.close()
