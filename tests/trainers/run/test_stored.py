"""What is stored: every step once, through wrap-around, interruption and the death of a worker."""

import signal

import numpy as np
import pytest
from support.content import check_content, histories
from support.training import (
    ASYNCHRONOUS,
    check_ratio,
    checkpoint,
    evaluations,
    interrupted,
    order,
    tiny_config,
    train,
)

from fastcollect.control.collector import Collector

pytestmark = pytest.mark.usefixtures("one_launcher", "without_learning")
ALONE = {**ASYNCHRONOUS, "collect__n": 4, "collect__N": 1, "collect__group_size": None}
"""One worker with one group, whose blocks come in order."""


@pytest.mark.parametrize("capacity", [4096, 64])
def test_every_step_is_stored_once(capacity, tmp_path, learners, monkeypatch):
    taken = []
    stats = Collector.stats
    monkeypatch.setattr(Collector, "stats", lambda self: taken.append(stats(self).taken) or stats(self))
    config = tiny_config(**ASYNCHRONOUS, replay__capacity=capacity)
    summary = train(tmp_path / "run", config)
    (learner,) = learners
    assert summary["transitions_stored"] == summary["env_steps"] == learner.env_steps == taken[-1]
    assert learner.state.normalizer.count == learner.env_steps
    assert len(check_content(learner)) == len(learner.replay) <= capacity


def test_steps_and_updates_stay_exact_across_an_interruption_in_rounds(tmp_path, learners):
    args = order(tmp_path / "order", 2, 33, signal.SIGINT)
    config = tiny_config(updates_per_step=0.37, updates_per_dispatch=9, env_kwargs=args)
    interrupted(tmp_path / "run", config, signum=signal.SIGINT)
    first = check_content(learners[0])
    assert learners[0].due() > 0  # a part of a dispatch is owed
    summary = train(tmp_path / "run", config, resume=True)
    keys = check_content(learners[1])
    assert summary["transitions_stored"] == summary["env_steps"] == len(keys) == 320
    assert first < keys
    assert len({env for env, _, _ in keys}) == 4
    check_ratio(config, [*learners[0].log, *learners[1].log], 8)


def test_an_asynchronous_run_is_resumed_with_new_episodes(tmp_path, learners):
    args = order(tmp_path / "order", 4, 33, signal.SIGTERM)
    config = tiny_config(updates_per_step=0.37, updates_per_dispatch=9, env_kwargs=args, **ALONE)
    interrupted(tmp_path / "run", config)
    stopped = learners[0].env_steps
    first = check_content(learners[0])
    arrays, _ = checkpoint(tmp_path / "run")
    assert arrays["env_steps"] == stopped
    assert arrays["normalizer/count"] == stopped
    summary = train(tmp_path / "run", config, resume=True)
    keys = check_content(learners[1], breaks=(stopped // 4,))
    assert summary["transitions_stored"] == summary["env_steps"] == len(keys)
    assert first < keys
    assert not {env for env, _, _ in first} & {env for env, _, _ in keys - first}
    assert learners[1].log[0] == ("stored", stopped + 16, learners[0].updates)
    check_ratio(config, [*learners[0].log, *learners[1].log], 16)


def test_rewards_are_not_summed_across_the_death_of_a_worker(tmp_path, learners):
    args = order(tmp_path / "order", 4, 30, signal.SIGKILL, "self")
    summary = train(tmp_path / "run", tiny_config(env_kwargs=args, **ALONE))
    assert summary["collector"]["env_worker_deaths"] == 1
    assert summary["transitions_stored"] == summary["env_steps"] == 320
    codes = histories(learners[0])[0]["observation"][:, 0]
    (gap,) = np.flatnonzero(np.diff(codes)) + 1
    assert gap % 4 == 0  # at a block's end
    check_content(learners[0], breaks=(gap,))


def test_environments_that_cannot_save_their_state_are_resumed_where_nothing_is_reproducible(tmp_path):
    env, args = "support.tiny_env:ForgetfulEnv", order(tmp_path / "order", 2, 41, signal.SIGTERM)
    config = tiny_config(env=env, env_kwargs=args, **ASYNCHRONOUS)
    interrupted(tmp_path / "run", config)
    summary = train(tmp_path / "run", config, resume=True)
    assert summary["transitions_stored"] == summary["env_steps"] >= 320
    assert [row["env_steps"] for row in evaluations(tmp_path / "run")][-1] == summary["env_steps"]
