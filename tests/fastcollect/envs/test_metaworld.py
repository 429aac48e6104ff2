"""The batched Meta-World environments against stock's own classes."""

from __future__ import annotations

import copy
import functools
import pickle

import metaworld
import mujoco
import numpy as np
import pytest
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metaworld.policies import ENV_POLICY_MAP

from fastcollect.envs.base import BatchedEnv, EnvStepError, StateUnsupportedError, StepBuffers
from fastcollect.envs.metaworld import NUM_GOALS, make
from fastcollect.envs.metaworld.goals import sampled_rand_vecs

BATCHED_TASKS = ("reach-v3", "push-v3", "pick-place-v3")
STOCK_TASK = "drawer-open-v3"  # moves a body of its model at reset
HORIZON = 500

pytestmark = pytest.mark.filterwarnings("ignore:Constant:UserWarning")


@pytest.fixture(scope="module", autouse=True)
def _models_read_once():
    """Stock reads its model's meshes again for every instance; here each has a copy of what MuJoCo read."""
    read = functools.cache(mujoco.MjModel.from_xml_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mujoco.MjModel, "from_xml_path", staticmethod(lambda path: copy.copy(read(path))))
        yield


@functools.cache
def mt1(task: str, seed: int = 0) -> metaworld.MT1:
    return metaworld.MT1(task, seed=seed)


def start(task: str, seeds: list[int], **kwargs: object) -> tuple[BatchedEnv, StepBuffers]:
    """A batched environment after its first reset, and buffers that hold the first observations."""
    env = make(np.array(seeds, np.int64), task=task, **kwargs)
    out = StepBuffers.allocate(env.spec, env.num_envs)
    env.reset(out.observation)
    return env, out


def random_actions(rng: np.random.Generator, num_envs: int) -> np.ndarray:
    """Beyond the bounds at times, because stock clips only three of the four components."""
    return rng.uniform(-1.3, 1.3, (num_envs, 4)).astype(np.float32)


class StockEnv:
    """One instance of stock's class that draws its goals as the batched environment promises to."""

    def __init__(self, task: str, seed: int) -> None:
        self._generator = np.random.default_rng(seed)
        self._tasks = mt1(task).train_tasks
        self._env = ALL_V3_ENVIRONMENTS[task]()

    def reset(self) -> np.ndarray:
        self._env.set_task(self._tasks[self._generator.integers(NUM_GOALS)])
        return self._env.reset()[0]

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, bool]:
        observation, reward, terminated, truncated, info = self._env.step(action)
        return observation, reward, terminated, truncated, bool(info["success"])


def assert_same_step(stocks: list[StockEnv], action: np.ndarray, out: StepBuffers) -> np.ndarray:
    """Step stock with the same actions and compare everything that ``out`` holds; returns its successes."""
    successes = []
    for i, stock in enumerate(stocks):
        observation, reward, terminated, truncated, success = stock.step(action[i])
        assert out.reward[i] == pytest.approx(reward, rel=0, abs=1e-12)
        assert (out.terminated[i], out.truncated[i], out.success[i]) == (terminated, truncated, success)
        if truncated:
            np.testing.assert_array_equal(out.final_observation[i], observation)
            observation = stock.reset()
        np.testing.assert_array_equal(out.observation[i], observation)
        successes.append(success)
    return np.array(successes)


@pytest.mark.slow
@pytest.mark.parametrize("task", [*BATCHED_TASKS, STOCK_TASK])
def test_two_episodes_equal_stock(task: str) -> None:
    """An expert's episode (contacts, grasps, success), then a random one, then the start of a third."""
    seeds = [3, 11] if task in BATCHED_TASKS else [3]
    env, out = start(task, seeds)
    stocks = [StockEnv(task, seed) for seed in seeds]
    np.testing.assert_array_equal(out.observation, [stock.reset() for stock in stocks])
    expert, rng = ENV_POLICY_MAP[task](), np.random.default_rng(0)
    expert_succeeded = np.zeros(len(seeds), bool)
    for step in range(2 * HORIZON + 20):
        action = random_actions(rng, len(seeds))
        if step < HORIZON:
            action = np.array([expert.get_action(o) for o in out.observation], np.float32) + 0.1 * action
        out.observation.fill(np.nan)  # a ring's slot holds anything; all of it must be written
        env.step(action, out)
        success = assert_same_step(stocks, action, out)
        assert out.truncated.all() == ((step + 1) % HORIZON == 0)
        expert_succeeded |= success & (step < HORIZON)
    assert expert_succeeded.all()  # else the contact-rich part went untested


def test_observation_is_clipped_where_stock_clips_it() -> None:
    """No action moves the hand out of the observed box, so widen the box to which actions are held."""
    env, out = start("reach-v3", [3])
    stock = StockEnv("reach-v3", 3)
    stock.reset()
    env._mocap_high = stock._env.mocap_high = np.array([0.7, 1.0, 0.5])
    action = np.array([[1, 0, 0, 0]], np.float32)
    for _ in range(70):
        env.step(action, out)
        assert_same_step([stock], action, out)
    assert out.observation[0, 0] == env.spec.observation_high[0]


@pytest.mark.parametrize("task", BATCHED_TASKS)
def test_first_observations_of_all_goals_equal_mt1(task: str) -> None:
    _, out = start(task, list(range(NUM_GOALS)), goal_indices=range(NUM_GOALS))
    stock = ALL_V3_ENVIRONMENTS[task]()
    for goal in range(0, NUM_GOALS, 7):
        stock.set_task(mt1(task).train_tasks[goal])
        np.testing.assert_array_equal(out.observation[goal], stock.reset()[0])
    assert len(np.unique(out.observation[:, -3:], axis=0)) == NUM_GOALS


@pytest.mark.parametrize(
    ("task", "seed"), [("reach-v3", 0), ("push-v3", 0), ("pick-place-v3", 0), ("push-v3", 5)]
)
def test_rand_vecs_equal_mt1_and_leave_global_random_state(task: str, seed: int) -> None:
    benchmark = mt1(task, seed)
    before = np.random.get_state()[1].copy()
    drawn = sampled_rand_vecs(ALL_V3_ENVIRONMENTS[task](), seed)
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    expected = [pickle.loads(train_task.data)["rand_vec"] for train_task in benchmark.train_tasks]
    np.testing.assert_array_equal(drawn, expected)


@pytest.mark.parametrize("task", BATCHED_TASKS)
def test_fast_physics_stays_close(task: str) -> None:
    (exact, exact_out), (fast, fast_out) = start(task, [1, 2, 3]), start(task, [1, 2, 3], physics="fast")
    rng = np.random.default_rng(0)
    for step in range(10):
        action = random_actions(rng, 3)
        exact.step(action, exact_out)
        fast.step(action, fast_out)
        if step == 0:  # the warm start enters with the second step only, so stale poses would show here
            np.testing.assert_array_equal(fast_out.observation, exact_out.observation)
        np.testing.assert_allclose(fast_out.observation, exact_out.observation, rtol=0, atol=1e-5)
        np.testing.assert_allclose(fast_out.reward, exact_out.reward, rtol=0, atol=1e-3)
    assert not np.array_equal(fast.get_state()["simulation"], exact.get_state()["simulation"])


@pytest.mark.parametrize("task", BATCHED_TASKS)
def test_environment_depends_on_its_seed_and_actions_alone(task: str) -> None:
    seeds = list(range(20, 24))
    batch, batch_out = start(task, seeds)
    alone, alone_out = start(task, seeds[2:3])
    rng = np.random.default_rng(0)
    for _ in range(HORIZON + 10):  # across a reset, so that the drawn goals are compared too
        action = random_actions(rng, len(seeds))
        batch.step(action, batch_out)
        alone.step(action[2:3], alone_out)
        np.testing.assert_array_equal(alone_out.observation[0], batch_out.observation[2])
        assert alone_out.reward[0] == batch_out.reward[2]
    assert len(np.unique(batch_out.observation[:, -3:], axis=0)) > 1


def test_seeds_and_resets_draw_different_goals() -> None:
    env, out = start("reach-v3", list(range(16)))
    first = out.observation[:, -3:].copy()
    env.reset(out.observation)
    assert len(np.unique(first, axis=0)) > 8
    assert (first != out.observation[:, -3:]).any(axis=1).sum() > 8


@pytest.mark.parametrize(("goal_indices", "expected"), [((4, 4, 49), (4, 4, 49)), ("seed", (7, 1, 2))])
def test_pinned_goals_return_at_every_reset(goal_indices: object, expected: tuple[int, ...]) -> None:
    env, out = start("push-v3", [7, 51, 102], goal_indices=goal_indices)
    _, every_goal = start("push-v3", list(range(NUM_GOALS)), goal_indices=range(NUM_GOALS))
    for _ in range(3):
        np.testing.assert_array_equal(out.observation, every_goal.observation[list(expected)])
        env.reset(out.observation)


@pytest.mark.parametrize("task", ["pick-place-v3", STOCK_TASK])
def test_hidden_goal_is_zero_and_nothing_else_changes(task: str) -> None:
    (shown, shown_out), (hidden, hidden_out) = start(task, [1, 2]), start(task, [1, 2], goal_visible=False)
    rng = np.random.default_rng(0)
    for _ in range(5):
        assert shown_out.observation[:, -3:].all(axis=1).any()
        np.testing.assert_array_equal(hidden_out.observation[:, -3:], 0)
        np.testing.assert_array_equal(hidden_out.observation[:, :-3], shown_out.observation[:, :-3])
        np.testing.assert_array_equal(hidden_out.reward, shown_out.reward)
        action = random_actions(rng, 2)
        shown.step(action, shown_out)
        hidden.step(action, hidden_out)


@pytest.mark.parametrize("goal_visible", [True, False])
@pytest.mark.parametrize("task", [*BATCHED_TASKS, STOCK_TASK])
def test_spec_contains_every_observation(task: str, goal_visible: bool) -> None:
    env, out = start(task, list(range(8)), goal_visible=goal_visible)
    spec = env.spec
    assert out.observation.shape[1:] == spec.observation_shape
    assert np.isfinite(spec.observation_low[[0, 1, 2, 3, 36, 37, 38]]).all()
    corners = np.array(
        [[x, y, z, e] for x in (-1, 1) for y in (-1, 1) for z, e in ((-1, 1), (1, -1))], np.float32
    )
    for _ in range(60):  # far enough for the hand to reach the edge of its box
        assert (out.observation >= spec.observation_low).all()
        assert (out.observation <= spec.observation_high).all()
        env.step(corners, out)


@pytest.mark.parametrize(
    ("task", "physics"), [("reach-v3", "fast"), *((task, "exact") for task in (*BATCHED_TASKS, STOCK_TASK))]
)
def test_restored_state_continues_bit_for_bit(task: str, physics: str, tmp_path: object) -> None:
    kept, kept_out = start(task, [1, 2], physics=physics)
    rng = np.random.default_rng(0)
    for _ in range(HORIZON - 5):
        kept.step(random_actions(rng, 2), kept_out)
    np.savez(tmp_path / "state.npz", **kept.get_state())
    restored, restored_out = start(
        task, [98, 99], physics=physics
    )  # other seeds: the generators must come back
    with np.load(tmp_path / "state.npz") as state:
        restored.set_state(state)
    for _ in range(15):
        action = random_actions(rng, 2)
        kept.step(action, kept_out)
        restored.step(action, restored_out)
        for name in ("observation", "reward", "terminated", "truncated", "success"):
            np.testing.assert_array_equal(getattr(restored_out, name), getattr(kept_out, name), err_msg=name)
    np.testing.assert_array_equal(restored_out.final_observation, kept_out.final_observation)
    assert kept_out.final_observation.any()


def test_saved_state_is_a_copy() -> None:
    env, out = start("reach-v3", [1])
    state = env.get_state()
    before = {name: array.copy() for name, array in state.items()}
    env.step(np.ones((1, 4), np.float32), out)
    for name, array in state.items():
        np.testing.assert_array_equal(array, before[name])


def test_stock_replay_that_ends_elsewhere_is_refused() -> None:
    env, out = start(STOCK_TASK, [1])
    env.step(np.ones((1, 4), np.float32), out)
    state = env.get_state()
    state["observation"][0, 0] += 1e-9
    with pytest.raises(StateUnsupportedError, match="environment 0"):
        env.set_state(state)


def test_state_of_another_batch_size_is_refused() -> None:
    env, _ = start("reach-v3", [1, 2])
    other, _ = start("reach-v3", [1])
    with pytest.raises(ValueError, match="shape"):
        other.set_state(env.get_state())


def test_failure_of_one_stock_environment_names_it() -> None:
    env, out = start(STOCK_TASK, [1, 2])
    env._envs[1].unwrapped.curr_path_length = HORIZON  # stock refuses to step past its horizon
    with pytest.raises(EnvStepError, match="row 1") as caught:
        env.step(np.zeros((2, 4), np.float32), out)
    assert caught.value.env_index == 1
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize("task", ["reach-v3", STOCK_TASK])
def test_protocol_and_use_before_reset(task: str) -> None:
    env = make(np.array([1]), task=task)
    assert isinstance(env, BatchedEnv)
    with pytest.raises(RuntimeError, match="reset"):
        env.get_state()
    with pytest.raises(RuntimeError, match="reset"):
        env.step(np.zeros((1, 4), np.float32), StepBuffers.allocate(env.spec, 1))
    env.close()
    env.close()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"task": "reach-v4"}, "'reach-v3'"),
        ({"task": "???"}, "unknown Meta-World task"),
        ({"task": "reach-v3", "physics": "quick"}, "'exact', 'fast'"),
        ({"task": STOCK_TASK, "physics": "fast"}, "'exact' only"),
        ({"task": "reach-v3", "goal_indices": [1, 2]}, "shape"),
        ({"task": "reach-v3", "goal_indices": [50]}, r"0\.\.49"),
        ({"task": "reach-v3", "goal_indices": "seeds"}, "'seed'"),
    ],
)
def test_bad_arguments_are_explained(kwargs: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(np.array([0]), **kwargs)


@pytest.mark.parametrize("task", ["reach-v3", STOCK_TASK])
def test_a_shorter_horizon_truncates_there(task: str) -> None:
    env, out = start(task, [3, 4], horizon=7)
    assert env.spec.max_episode_steps == 7
    rng = np.random.default_rng(0)
    for step in range(1, 16):
        env.step(random_actions(rng, 2), out)
        assert (out.truncated == (step % 7 == 0)).all()
        assert not out.terminated.any()
