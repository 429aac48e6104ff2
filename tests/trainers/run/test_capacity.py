"""A replay that gives up what the policy has left behind: the learner's checks, and whole runs."""

import dataclasses
import signal

import numpy as np
import pytest
from support import tiny_env
from support.learners import filled, learner, some_block
from support.training import (
    assert_same,
    assert_same_run,
    interrupted,
    keep_learners,
    launcher,
    order,
    tiny_config,
    train,
)

from fastcollect import POLICY_VERSION
from fastcollect.support.errors import ConfigError
from trainers.config.training import problems_of
from trainers.run import training
from trainers.run.learner import MEAN_ACTION, as_numpy
from trainers.store.rows import read_rows

DYNAMIC = {"replay__minimum": 30, "replay__check_every": 40}
LIMIT = 0.31
CENTRE, HALF = (tiny_env.LOW + tiny_env.HIGH) / 2, (tiny_env.HIGH - tiny_env.LOW) / 2


def with_means(block, versions):
    """A block whose policy has mean actions in the box, and rows of these versions, (steps, envs)."""
    mean = np.random.default_rng(block.first_step).uniform(tiny_env.LOW, tiny_env.HIGH, block.action.shape)
    extras = {MEAN_ACTION: mean.astype(np.float32), POLICY_VERSION: np.asarray(versions)}
    return dataclasses.replace(block, extras=extras)


def policy(acting, observation):
    """Mean actions of acting weights, in float64."""
    weights = {name: np.asarray(value, np.float64) for name, value in acting.items()}
    hidden = np.maximum(observation.astype(np.float64) @ weights["kernel_0"] + weights["bias_0"], 0)
    return np.tanh((hidden @ weights["kernel_1"] + weights["bias_1"])[:, : tiny_env.ACTIONS])


def taken(lists, count):
    """What is left and what goes, one by one: of the first environment that has the most."""
    left, gone = [list(each) for each in lists], [[] for _ in lists]
    for _ in range(min(count, sum(map(len, lists)))):
        most = max(range(len(left)), key=lambda env: len(left[env]))
        gone[most].append(left[most].pop(0))
    return left, [step for each in gone for step in each]


def test_checks_and_drops_follow_lists_of_steps():
    """Blocks of 16 steps, checked on crossing 40, 80, ...; versions up to 2 acted at random."""
    made = learner(**DYNAMIC, replay__max_distance=LIMIT)
    made.random_version = 2
    assert made.capacity() == {"replay_size": 0, "policy_distance": None, "replay_drops": 0}
    lists, last, checks, drops = [[] for _ in range(4)], None, 0, 0
    for k in range(20):
        versions = k // 2 + np.arange(4)[:, None] // 2 * np.ones((1, 4), int)
        given = with_means(some_block(k, first_step=4 * k), versions)
        acting = as_numpy(made.acting)
        made.learn_from(given)
        unit, mean = ((each - CENTRE) / HALF for each in (given.action, given.extras[MEAN_ACTION]))
        stored = np.where(versions[..., None] <= 2, unit, mean)
        for env, mine in enumerate(lists):
            mine += [(given.observation[t, env], stored[t, env]) for t in range(4)]
        if 16 * (k + 1) // 40 > 16 * k // 40:
            seen, then = map(np.array, zip(*taken(lists, 8 * 8)[1], strict=True))
            last, size = ((policy(acting, seen) - then) ** 2).mean() / 2, sum(map(len, lists))
            checks += 1
            if last > LIMIT and size > 30:
                lists, _ = taken(lists, size // 10)
                drops += 1
        found = made.capacity()
        assert (found["replay_size"], found["replay_drops"]) == (sum(map(len, lists)), drops)
        assert (found["policy_distance"] is None) == (last is None)
        if last is not None:
            np.testing.assert_allclose(found["policy_distance"], last, rtol=1e-4)
        if k % 5 == 4:
            made.update(4)
    assert checks == 8
    assert 1 < drops < checks - 1
    held = made.replay.get_state()
    assert held["held"].tolist() == [len(mine) for mine in lists]
    everything = [step for mine in lists for step in mine]
    np.testing.assert_array_equal(held["observation"], [observation for observation, _ in everything])
    np.testing.assert_allclose(held["mean_action"], [then for _, then in everything], atol=1e-6)


def test_a_learner_without_the_rule_has_nothing_of_it():
    made = filled()
    assert made.capacity() == {}
    assert not {"distance", "drops", "replay/mean_action"} & made.get_state().keys()
    with pytest.raises(ConfigError, match="here: the replay does not fit: mean_action is missing"):
        learner(**DYNAMIC).set_replay(made.get_state(), "here")


def test_a_saved_learner_goes_on_with_its_last_check():
    made, other = learner(**DYNAMIC, replay__max_distance=0.0), learner(**DYNAMIC, replay__max_distance=0.0)
    blocks = [with_means(some_block(k, first_step=4 * k), np.full((4, 4), 9)) for k in range(8)]
    for block in blocks[:4]:
        made.learn_from(block)
    other.set_state({name: np.array(value) for name, value in made.get_state().items()}, "here")
    assert other.capacity() == made.capacity()
    assert made.capacity()["replay_drops"] == 1
    for block in blocks[4:]:
        for each in (made, other):
            each.learn_from(block)
    assert_same(other.get_state(), made.get_state())
    assert made.capacity()["replay_drops"] == 3


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"replay__minimum": 4097}, "replay.minimum is 4097; allowed: 1 to replay.capacity"),
        ({"replay__minimum": 0}, "replay.minimum is 0; allowed: 1 to replay.capacity"),
        ({"replay__max_distance": -0.1}, "replay.max_distance is -0.1; allowed: 0 and more, finite"),
        ({"replay__max_distance": float("nan")}, "replay.max_distance is nan; allowed: 0 and more, finite"),
        ({"replay__check_every": 0}, "replay.check_every is 0; allowed: 1 and more"),
    ],
)
def test_what_cannot_be_is_named(changes, problem):
    assert problems_of(tiny_config(replay__minimum=4096)) == []
    assert problems_of(tiny_config(**changes)) == [problem]


# Whole runs.

RULE = {"replay__minimum": 40, "replay__check_every": 48, "replay__max_distance": 0.1}


@pytest.fixture(scope="module")
def dropping(tmp_path_factory):
    """The folder of an uninterrupted run with drops, and the learner that it ended with."""
    path = tmp_path_factory.mktemp("dropping") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "new_launcher", lambda config: launcher())
        made = keep_learners(patch)
        summary = train(path, tiny_config(**RULE), identity=IDENTITY)
    return path, made[0], summary


IDENTITY = {"stage": "dense"}


def test_a_run_drops_what_its_policy_left_behind(dropping):
    path, learner, summary = dropping
    assert summary["transitions_stored"] == 320
    assert summary["replay_drops"] >= 3
    assert summary["replay_size"] == len(learner.replay) < 320 - 3 * 8
    assert summary["policy_distance"] > 0
    row = read_rows(path / "metrics.jsonl")[-1]
    names = ("replay_size", "policy_distance", "replay_drops")
    assert [row[name] for name in names] == [summary[name] for name in names]


def test_random_actions_are_their_own_means_until_the_first_update_acts(dropping):
    """The first update comes at 96 steps, of which 4 environments made 24 each; drops took the oldest."""
    _, learner, _ = dropping
    held = learner.replay.get_state()
    for env in range(4):
        mine = slice(held["held"][:env].sum(), held["held"][: env + 1].sum())
        step = np.arange(held["written"][env] - held["held"][env], held["written"][env])
        own = (held["mean_action"][mine] == held["action"][mine]).all(1)
        np.testing.assert_array_equal(own, step < 24)


@pytest.mark.usefixtures("one_launcher")
@pytest.mark.parametrize(
    ("step", "resumed_with"),
    [
        (22, (4, 1, 0)),  # in the round after which the first weights that learned act
        (41, (2, 2, 1)),
    ],
)
def test_a_run_with_drops_before_and_after_a_resume_equals_an_uninterrupted_one(
    step, resumed_with, tmp_path, dropping, learners
):
    expected, learner, summary = dropping
    config = tiny_config(**RULE, env_kwargs=order(tmp_path / "order", 2, step, signal.SIGTERM))
    interrupted(tmp_path / "run", config, identity=IDENTITY)
    before = learners[-1].capacity()["replay_drops"]
    assert 0 < before < summary["replay_drops"]
    n, N, M = resumed_with
    config = tiny_config(**RULE, env_kwargs=config.env_kwargs, collect__n=n, collect__N=N, collect__M=M)
    train(tmp_path / "run", config, resume=True, identity=IDENTITY)
    assert_same_run(tmp_path / "run", expected)
    assert_same(learners[-1].get_state(), learner.get_state())
