"""Evaluations: whole first episodes of every environment, the mean action, nobody else's generators."""

from dataclasses import replace

import numpy as np
import pytest
from support import tiny_env
from support.blocks import block
from support.specs import random_weights
from support.training import SAC, TINY, launcher

from fastcollect.control.collector import Collector, new_launcher
from fastcollect.control.config import CollectorConfig
from fastcollect.control.probe import env_spec
from fastcollect.envs.base import StepBuffers
from fastcollect.envs.registry import EnvConfig, make_env
from fastcollect.policies.mlp import MLPPolicy
from fastcollect.support.errors import ConfigError
from trainers.config.training import EvaluationConfig
from trainers.run import evaluation
from trainers.run.evaluation import Evaluator, evaluation_row, first_episodes
from trainers.run.training import acting_policy

# Whole first episodes, by blocks made by hand.


def ended(steps, envs, ends):
    """A block without content but its episodes; ends: {(step, env): (return, length, success steps)}."""
    rows = []
    for (step, env), (total, length, at) in sorted(ends.items()):
        rows.append((step * envs + env, total, length, bool(at), length - 1 in at, min(at, default=-1)))
    return block(np.zeros((steps + 1, envs, 1)), np.zeros((steps, envs, 1)), ends=rows)


def test_episodes_that_fill_the_block_are_all_taken():
    found = first_episodes(ended(5, 2, {(4, 0): (1.5, 5, []), (4, 1): (2.5, 5, [2, 4])}))
    assert found.episode_return.tolist() == [1.5, 2.5]
    assert found.length.tolist() == [5, 5]
    assert found.success_any.tolist() == [False, True]
    assert found.success_last.tolist() == [False, True]
    assert found.success_first.tolist() == [-1, 2]


def test_an_episode_that_began_before_the_block_is_passed_over():
    ends = {
        (0, 0): (10.0, 4, [0]),  # three of its steps came before
        (3, 0): (11.0, 3, []),
        (5, 0): (12.0, 2, [0]),
        (2, 1): (20.0, 3, [2]),  # exactly from the first step on
        (5, 1): (21.0, 3, []),
        (1, 2): (30.0, 3, []),  # one step too long
        (4, 2): (31.0, 3, [1]),
    }
    found = first_episodes(ended(6, 3, ends))
    assert found.episode_return.tolist() == [11.0, 20.0, 31.0]
    assert found.length.tolist() == [3, 3, 3]
    assert found.success_any.tolist() == [False, True, True]
    assert found.success_last.tolist() == [False, True, False]
    assert found.success_first.tolist() == [-1, 2, 1]


def test_an_environment_without_a_whole_episode_is_an_error():
    with pytest.raises(RuntimeError, match=r"\[1\]"):
        first_episodes(ended(4, 2, {(3, 0): (1.0, 4, []), (3, 1): (1.0, 5, [])}))


def test_a_row_says_what_was_found():
    row = evaluation_row(first_episodes(ended(4, 2, {(3, 0): (1.0, 4, [1]), (3, 1): (4.00049, 4, [2, 3])})))
    assert row == {
        "success_any": 1.0,
        "success_last": 0.5,
        "success_first_step": 1.5,
        "return_mean": pytest.approx(2.500245),
        "return_std": pytest.approx(1.500245),
        "episode_length": 4.0,
        "success_any_by_goal": [True, True],
        "success_last_by_goal": [False, True],
        "return_by_goal": [1.0, 4.0],
    }
    none = first_episodes(ended(1, 1, {(0, 0): (1.0, 1, [])}))
    assert evaluation_row(none)["success_first_step"] is None


# With a real worker.


@pytest.fixture
def blocks(monkeypatch):
    """The blocks that evaluations are drawn from."""
    seen = []
    monkeypatch.setattr(
        evaluation, "first_episodes", lambda block: seen.append(block) or first_episodes(block)
    )
    return seen


def make(env, horizon, shared=None, seed=7, state=None, **changes):
    config = EvaluationConfig(**{"episodes": 5, **changes})
    policy = acting_policy(SAC.network, deterministic=True)
    shared = shared or launcher()
    spec = replace(env_spec(shared, env), max_episode_steps=horizon)
    return Evaluator(env, policy, config, seed, spec, shared, state or {})


def tiny(seed=7, state=None, horizon=8):
    return make(EnvConfig(id=TINY, kwargs={"horizon": horizon}), horizon, seed=seed, state=state)


def weights(seed, spec=None):
    return random_weights(MLPPolicy(spec or tiny_env.spec(8), hidden=SAC.hidden).parameters, seed)


def evaluate(evaluator, parameters):
    evaluator.start(parameters)
    assert evaluator.busy
    found = evaluator.receive(60)
    assert not evaluator.busy
    return found


def assert_mean_actions(block, spec, parameters):
    """Every action is what these weights find best, without noise."""
    policy = MLPPolicy(spec, hidden=SAC.hidden, deterministic=True)
    policy.load(parameters)
    expected = np.zeros(block.action.shape[1:], block.action.dtype)
    for seen, action in zip(block.observation[:-1], block.action, strict=True):
        policy.act(seen, None, expected, {})
        np.testing.assert_array_equal(action, expected)


def fields(found):
    return [value.tolist() for value in vars(found).values()]


def test_each_evaluation_takes_its_own_weights_and_whole_episodes(blocks):
    evaluator = tiny()
    try:
        for seed in range(3):
            found = evaluate(evaluator, weights(seed))
            assert_mean_actions(blocks[-1], tiny_env.spec(8), weights(seed))
            seen = blocks[-1].observation
            code, episode, step = (seen[:-1, :, i].astype(int) for i in range(3))
            for env in range(5):
                first = np.flatnonzero(step[:, env] == 0)[0]
                part = slice(first, first + found.length[env])
                number = episode[first, env]
                assert (episode[part, env] == number).all()
                assert found.length[env] == tiny_env.episode_length(code[0, env], number, 8)
                steps = np.arange(found.length[env])
                reward = tiny_env.reward(code[0, env], number, steps, blocks[-1].action[part, env])
                assert found.episode_return[env] == pytest.approx(reward.sum(), rel=1e-6)
                success = tiny_env.success(code[0, env], number, steps)
                assert found.success_any[env] == success.any()
                assert found.success_last[env] == success[-1]
        assert len({int(c) for c in blocks[0].observation[0, :, 0]}) == 5
        assert (np.diff([b.observation[0, :, 1] for b in blocks], axis=0) > 0).all()  # new episodes
    finally:
        evaluator.close()


def test_evaluations_depend_on_seed_and_weights_alone_and_go_on_from_a_state():
    def run(evaluator, seeds):
        try:
            found = []
            for seed in seeds:
                found.append(fields(evaluate(evaluator, weights(seed))))
            return found, evaluator.get_state()
        finally:
            evaluator.close()

    expected, state = run(tiny(), (0, 1, 2))
    first, between = run(tiny(), (0,))
    assert not run(tiny(), ())[1]
    later, end = run(tiny(state=between), (1, 2))
    assert first + later == expected
    assert end.keys() == state.keys()
    assert all(np.array_equal(end[key], state[key]) for key in end)
    untouched = run(tiny(state=between), ())[1]  # asked before its first evaluation
    assert untouched.keys() == between.keys()
    assert all(np.array_equal(untouched[key], between[key]) for key in between)
    assert run(tiny(seed=8), (0,))[0] != first


def test_one_evaluation_at_a_time():
    evaluator = tiny()
    try:
        evaluator.start(weights(0))
        with pytest.raises(RuntimeError, match="under way"):
            evaluator.start(weights(1))
        assert evaluator.receive(60) is not None
    finally:
        evaluator.close()


def test_the_episodes_of_training_are_not_those_of_evaluations(blocks):
    evaluator = tiny(seed=0)
    try:
        evaluate(evaluator, weights(0))
        config = evaluator._collector.config
    finally:
        evaluator.close()
    assert config.seed != 0
    assert config.num_env_workers == 1


def test_a_policy_is_tested_on_each_of_the_fifty_goals(blocks):
    kwargs = {"horizon": 12, "physics": "fast"}
    env = EnvConfig(id="reach-v3", kwargs=kwargs)
    with_goals = make_env(EnvConfig(id="reach-v3", kwargs={"goal_indices": list(range(50))}), np.arange(50))
    spec, first = with_goals.spec, np.zeros((50, 39))
    with_goals.reset(first)
    with_goals.close()
    out = StepBuffers.allocate(spec, 50)
    assert out.observation.shape == first.shape
    shared = new_launcher(CollectorConfig(env=env))
    evaluator = make(env, 12, shared, episodes=3)
    try:
        for seed in range(2):
            parameters = weights(seed, spec)
            found = evaluate(evaluator, parameters)
            goals = blocks[-1].observation[0, :, -3:]
            np.testing.assert_array_equal(goals, first[:, -3:])
            assert len({tuple(goal) for goal in goals.tolist()}) == 50
            assert (blocks[-1].observation[:, :, -3:] == goals).all()
            assert found.length.tolist() == [12] * 50
            assert_mean_actions(blocks[-1], spec, parameters)
            np.testing.assert_allclose(found.episode_return, blocks[-1].reward.sum(0))
    finally:
        evaluator.close()
        shared.close()


def test_an_environment_without_a_horizon_is_refused():
    with pytest.raises(ConfigError, match=r"endless has no known horizon"):
        make(EnvConfig(id="endless", entry_point="support.tiny_env:EndlessEnv"), None)


def test_a_worker_starts_with_the_first_evaluation_and_ends_with_the_evaluator(monkeypatch):
    made = []
    init = Collector.__init__
    monkeypatch.setattr(Collector, "__init__", lambda self, *a, **k: made.append(self) or init(self, *a, **k))
    evaluator = tiny()
    assert not made
    evaluator.close()
    evaluator = tiny()
    evaluate(evaluator, weights(0))
    assert len(made) == 1
    evaluator.close()
    with pytest.raises(RuntimeError, match="closed"):
        made[0].pids()
