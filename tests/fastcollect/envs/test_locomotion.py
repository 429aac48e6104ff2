"""The batched HalfCheetah, Hopper, Walker2d and Ant against Gymnasium's."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import gymnasium
import mujoco
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcollect import Collector, CollectorConfig, EnvConfig, random_policy
from fastcollect.envs.base import BatchedEnv, StepBuffers
from fastcollect.envs.locomotion import Locomotion
from fastcollect.envs.registry import make_env
from fastcollect.workers.groups import env_seeds

HORIZON = 1000
CHEETAH, HOPPER, WALKER, ANT = ROBOTS = ("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Ant-v5")
each_robot = pytest.mark.parametrize("robot", ROBOTS)
# Gymnasium's checker remarks on what huge actions cost.
pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning")


def start(robot: str, seeds: list[int]) -> tuple[Locomotion, StepBuffers]:
    env = make_env(EnvConfig(id=robot), np.array(seeds, np.int64))
    out = StepBuffers.allocate(env.spec, env.num_envs)
    env.reset(out.observation)
    return env, out


def start_stock(robot: str, seeds: list[int], out: StepBuffers) -> list[gymnasium.Env]:
    """Gymnasium's environments after their first resets, whose observations are those in ``out``."""
    stocks = [gymnasium.make(robot) for _ in seeds]
    for i, (stock, seed) in enumerate(zip(stocks, seeds, strict=True)):
        assert stock.reset(seed=seed)[0].tobytes() == out.observation[i].tobytes()
    return stocks


def random_actions(rng: np.random.Generator, env: Locomotion) -> np.ndarray:
    """Beyond the bounds at times: Gymnasium charges for the action as given, MuJoCo clamps it."""
    return rng.uniform(-1.3, 1.3, (env.num_envs, *env.spec.action.shape)).astype(np.float32)


def assert_same_step(
    env: Locomotion, out: StepBuffers, stocks: list[gymnasium.Env], action: np.ndarray
) -> np.ndarray:
    """Step both, and reset the stock ones that ended. Returns (n, 2) bool: terminated and truncated."""
    for array in (out.observation, out.final_observation, out.reward):
        array.fill(np.nan)  # a ring's slot holds anything; all of it must be written
    out.terminated.fill(True)
    env.step(action, out)
    for i, stock in enumerate(stocks):
        observation, reward, *ends, _ = stock.step(action[i])
        assert out.reward[i].tobytes() == np.float64(reward).tobytes()
        assert [out.terminated[i], out.truncated[i]] == ends
        if any(ends):
            assert out.final_observation[i].tobytes() == observation.tobytes()
            observation, _ = stock.reset()
        else:
            assert np.isnan(out.final_observation[i]).all()
        assert out.observation[i].tobytes() == observation.tobytes()
    return np.stack([out.terminated, out.truncated], axis=1)


def put_elapsed(env: Locomotion, elapsed: list[int], stocks: Sequence[gymnasium.Env] = ()) -> None:
    """As if the episodes had lasted so long."""
    env.set_state({**env.get_state(), "elapsed": np.array(elapsed, np.int64)})
    for stock, steps in zip(stocks, elapsed, strict=False):
        stock._elapsed_steps = steps


def test_two_whole_episodes_equal_gymnasium() -> None:
    seeds = [0, 12345678901]
    env, out = start(CHEETAH, seeds)
    stocks = start_stock(CHEETAH, seeds, out)
    rng = np.random.default_rng(0)
    for step in range(2 * HORIZON + 20):
        ends = assert_same_step(env, out, stocks, random_actions(rng, env))
        assert not ends[:, 0].any()
        assert ends[:, 1].all() == ends[:, 1].any() == ((step + 1) % HORIZON == 0)


@pytest.mark.parametrize(("robot", "steps"), [(CHEETAH, 60), (HOPPER, 200), (WALKER, 200), (ANT, 250)])
def test_many_episodes_of_any_actions_equal_gymnasium(robot: str, steps: int) -> None:
    """Random actions, none, small ones, the bounds, and numbers far outside of them; ends at any time."""
    seeds = list(range(5))
    env, out = start(robot, seeds)
    stocks = start_stock(robot, seeds, out)
    rng = np.random.default_rng(0)
    ends = []
    for _ in range(steps):
        action = random_actions(rng, env)
        action[1] = 0
        action[2] *= 0.02
        action[3] = np.sign(action[3])
        action[4] *= rng.choice(np.float32([1, 1e6, 1e18]))
        ends.append(assert_same_step(env, out, stocks, action)[:, 0])
    assert env.get_state()["elapsed"].tolist() == [stock._elapsed_steps for stock in stocks]
    some = np.sum(ends, axis=0)
    if robot == CHEETAH:
        assert not some.any()
    else:
        assert some.sum() > 4
        assert any(0 < each.sum() < len(seeds) for each in ends)


@each_robot
def test_truncation_alone_and_with_a_termination_equal_gymnasium(robot: str) -> None:
    rng = np.random.default_rng(1)
    seeds = [3, 4]
    env, out = start(robot, seeds)
    actions = [random_actions(rng, env) for _ in range(300)]
    lived = 0
    while not out.terminated[0] and lived < len(actions):
        env.step(actions[lived], out)
        lived += 1
    env, out = start(robot, seeds)
    stocks = start_stock(robot, seeds, out)
    put_elapsed(env, [HORIZON - lived, HORIZON - 2], stocks)
    for step in range(lived):
        (terminated, truncated), second = assert_same_step(env, out, stocks, actions[step])
        assert truncated == (step + 1 == lived)
        assert step != 1 or second[1]
    assert terminated == (robot != CHEETAH)


@each_robot
def test_many_episode_starts_equal_gymnasium(robot: str) -> None:
    """Some starts touch the ground, where the solver's warm start from the reset decides the last bits."""
    seeds = list(range(200))
    env, out = start(robot, seeds)
    stock = gymnasium.make(robot)
    action = random_actions(np.random.default_rng(0), env)
    env.step(action, out)
    for seed in seeds:
        stock.reset(seed=seed)
        np.testing.assert_array_equal(out.observation[seed], stock.step(action[seed])[0])


@each_robot
def test_second_reset_continues_the_generator(robot: str) -> None:
    env, out = start(robot, [7])
    env.step(random_actions(np.random.default_rng(0), env), out)
    env.reset(out.observation)
    stock = gymnasium.make(robot)
    stock.reset(seed=7)
    np.testing.assert_array_equal(out.observation[0], stock.reset()[0])


Pair = tuple[Locomotion, StepBuffers, gymnasium.Env]


@functools.cache
def pair(robot: str) -> Pair:
    """One robot and its stock twin, whose generators stay at the same place if both are reset together."""
    env, out = start(robot, [5])
    return env, out, start_stock(robot, [5], out)[0]


def in_state(robot: str, change: dict[int, float]) -> Pair:
    """The pair at the start of an episode, then moved: entries of (qpos, qvel) by index."""
    env, out, stock = pair(robot)
    env.reset(out.observation)
    stock.reset()
    data, state = stock.unwrapped.data, env.get_state()
    for index, value in change.items():
        state["simulation"][0, index] = value
        part, offset = (data.qpos, 0) if index < data.qpos.size else (data.qvel, data.qpos.size)
        part[index - offset] = value
    env.set_state(state)
    return env, out, stock


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(ROBOTS),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.0, 0.1, 1.0, 10.0]),
    st.sampled_from([0.0, 1.0, 20.0, 100.0]),
)
def test_steps_from_states_that_no_episode_reaches_equal_gymnasium(
    robot: str, seed: int, spread: float, speed: float
) -> None:
    """Bent, turned over, in the ground, in the air, fast: velocities and forces beyond where they are cut."""
    rng, model = np.random.default_rng(seed), pair(robot)[2].unwrapped.model
    values = np.hstack((spread * rng.standard_normal(model.nq), speed * rng.standard_normal(model.nv)))
    env, out, stock = in_state(robot, dict(enumerate(values)))
    for _ in range(2):
        assert_same_step(env, out, [stock], random_actions(rng, env))


_JUDGED = {CHEETAH: (), HOPPER: range(1, 12), WALKER: (1, 2), ANT: range(29)}
"""Which entries of (qpos, qvel) decide whether a robot is healthy."""
_BOUNDS = np.outer([-1, 1], [0.2, 0.7, 0.8, 1.0, 2.0, 100.0]).ravel()
_EDGES = [*_BOUNDS, *np.nextafter(_BOUNDS, -np.inf), *np.nextafter(_BOUNDS, np.inf), -np.inf, np.inf, np.nan]
"""Every bound of health, with either sign, and the numbers next to it."""


@each_robot
def test_the_bounds_of_health_are_gymnasiums(robot: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A physics that changes nothing shows both judges states as near to a bound as numbers get."""
    monkeypatch.setattr(mujoco, "mj_step", lambda *args, **kwargs: None)
    model = pair(robot)[2].unwrapped.model
    ends: dict[bool, set[int]] = {False: set(), True: set()}
    for index, value in itertools.product(range(model.nq + model.nv), _EDGES):
        env, out, stock = in_state(robot, {index: value})
        action = np.zeros((1, model.nu), np.float32)
        with np.errstate(invalid="ignore"):
            ends[bool(assert_same_step(env, out, [stock], action)[0, 0])].add(index)
    assert ends[False] & ends[True] == set(_JUDGED[robot])


@each_robot
def test_environment_depends_on_its_seed_and_actions_alone(robot: str) -> None:
    steps = HORIZON + 10 if robot == CHEETAH else 150
    seeds = list(range(8))
    (batch, batch_out), (alone, alone_out) = start(robot, seeds), start(robot, seeds[5:6])
    rng = np.random.default_rng(0)
    ends = np.zeros(len(seeds), np.int64)
    for _ in range(steps):
        action = random_actions(rng, batch)
        batch.step(action, batch_out)
        alone.step(action[5:6], alone_out)
        ends += batch_out.terminated | batch_out.truncated
        for name in ("observation", "reward", "terminated", "truncated", "final_observation"):
            assert getattr(alone_out, name)[0].tobytes() == getattr(batch_out, name)[5].tobytes(), name
    assert len(np.unique(batch_out.observation, axis=0)) == len(seeds)
    assert ends[5] > 0


@each_robot
def test_restored_state_continues_bit_for_bit(robot: str, tmp_path: object) -> None:
    kept, kept_out = start(robot, [1, 2])
    put_elapsed(kept, [HORIZON - 15, HORIZON - 16])
    rng = np.random.default_rng(0)
    for _ in range(10):
        kept.step(random_actions(rng, kept), kept_out)
    np.savez(tmp_path / "state.npz", **kept.get_state())
    restored, restored_out = start(robot, [98, 99])  # other seeds: the generators must come back
    with np.load(tmp_path / "state.npz") as state:
        restored.set_state(state)
    for _ in range(40):
        action = random_actions(rng, kept)
        kept.step(action, kept_out)
        restored.step(action, restored_out)
        for name in ("observation", "reward", "terminated", "truncated"):
            np.testing.assert_array_equal(getattr(restored_out, name), getattr(kept_out, name), err_msg=name)
    np.testing.assert_array_equal(restored_out.final_observation, kept_out.final_observation)
    assert kept_out.final_observation.any(axis=1).all()


@each_robot
def test_spec_agrees_with_gymnasium(robot: str) -> None:
    env, stock = start(robot, [1])[0], gymnasium.make(robot)
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


@each_robot
def test_misuse_is_refused(robot: str) -> None:
    env, out = start(robot, [1, 2])
    width = env.spec.action.shape[0]
    before = env.get_state()
    for shape in [(2, width + 1), (1, width), (width,), (3, width)]:
        with pytest.raises(ValueError, match="shape"):
            env.step(np.zeros(shape, np.float32), out)
    for name, array in env.get_state().items():
        np.testing.assert_array_equal(array, before[name])
    fresh = make_env(EnvConfig(id=robot), np.array([1]))
    with pytest.raises(RuntimeError, match="reset"):
        fresh.step(np.zeros((1, width), np.float32), StepBuffers.allocate(fresh.spec, 1))
    with pytest.raises(ValueError, match="shape"):
        fresh.set_state(env.get_state())
    env.close()
    env.close()


@pytest.mark.parametrize("robot", [HOPPER, WALKER, ANT])
def test_a_collector_hands_out_gymnasiums_transitions(robot: str) -> None:
    stocks = [gymnasium.make(robot) for _ in range(3)]
    seeds = env_seeds(0, 0, len(stocks), 0).tolist()
    seen = [stock.reset(seed=seed)[0] for stock, seed in zip(stocks, seeds, strict=True)]
    config = CollectorConfig(
        env=EnvConfig(id=robot),
        policy=random_policy(),
        num_envs=len(stocks),
        num_env_workers=1,
        block_length=50,
        check=True,
    )
    ends = 0
    with Collector(config) as collector:
        for _ in range(3):
            block = collector.take(timeout=60)
            for step, i in np.ndindex(block.reward.shape):
                np.testing.assert_array_equal(block.observation[step, i], seen[i])
                seen[i], reward, terminated, truncated, _ = stocks[i].step(block.action[step, i])
                np.testing.assert_array_equal(block.next_observation[step, i], seen[i])
                assert block.reward[step, i] == reward
                assert (block.terminated[step, i], block.truncated[step, i]) == (terminated, truncated)
                if terminated or truncated:
                    ends += 1
                    seen[i], _ = stocks[i].reset()
    assert ends
