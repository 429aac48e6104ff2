"""The policy's lag: how many updates the weights that acted were behind those that were learned."""

import contextlib
from dataclasses import replace

import numpy as np
import pytest
from support import tiny_env
from support.blocks import block
from support.training import ASYNCHRONOUS, tiny_config, train

from fastcollect.control.serial import SerialCollector
from trainers.run.learner import Learner, as_numpy
from trainers.run.session import PolicyLag, Session
from trainers.run.training import collector_config, open_session
from trainers.store.rows import read_rows


def acted_by(*versions):
    """A block of two environments whose actions came from these versions, a row for each step."""
    steps = len(versions)
    made = block(np.zeros((steps + 1, 2, 1)), np.zeros((steps, 2, 1)))
    return replace(made, extras={"policy_version": np.array(versions, np.int64)})


def lag(mean, most):
    return {"policy_lag": mean, "policy_lag_max": most}


def test_the_lag_is_the_updates_made_less_those_that_the_weights_had_had():
    measured = PolicyLag(10)
    assert measured.read() == lag(None, None)
    measured.took(acted_by((1, 1)), 10)  # the weights from the start
    assert measured.read() == lag(0, 0)
    measured.published(2, 10)
    measured.published(3, 14)
    measured.took(acted_by((1, 2), (2, 3)), 18)  # 8, 8, 8, 4
    measured.took(acted_by((3, 3)), 22)  # 8, 8
    assert measured.read() == lag(44 / 6, 8)
    assert measured.read() == lag(None, None)


def test_a_version_that_is_published_again_has_what_it_was_published_with_last():
    """In rounds all weights of a round are one version, and only the last of them act."""
    measured = PolicyLag(0)
    measured.published(2, 4)
    measured.published(2, 8)
    measured.took(acted_by((2, 2)), 8)
    assert measured.read() == lag(0, 0)


def test_blocks_that_do_not_say_who_acted_are_not_counted():
    measured = PolicyLag(0)
    measured.took(block(np.zeros((2, 2, 1)), np.zeros((1, 2, 1))), 100)
    assert measured.read() == lag(None, None)


def test_of_many_versions_the_newest_are_remembered():
    measured = PolicyLag(0)
    for version in range(2, 5000):
        measured.published(version, 4 * version)
    assert len(measured._updates) < 2000
    measured.took(acted_by((4999, 4500)), 4 * 4999)
    assert measured.read() == lag(2 * 499, 4 * 499)


@contextlib.contextmanager
def serial_session(config):
    collection = collector_config(config)
    learner = Learner(config, tiny_env.spec(8), collection.env_indices)
    with SerialCollector(collection, parameters=as_numpy(learner.acting)) as source:
        yield Session(source, learner)


@pytest.mark.parametrize("opened", [serial_session, open_session])
@pytest.mark.parametrize(("ratio", "dispatch"), [(0.5, 4), (0.125, 4), (1.25, 3)])
def test_in_rounds_the_lag_is_what_was_learned_since_the_round_began(
    ratio, dispatch, opened, one_launcher, without_learning
):
    config = tiny_config(updates_per_step=ratio, updates_per_dispatch=dispatch, collect__reproducible=False)
    rows, updates, seen, expected = 8, [0], [], []  # a round is two blocks of eight steps
    with opened(config) as session:
        for k in range(24):
            at_round_begin = updates[k - k % 2]
            expected.append(updates[-1] - at_round_begin)
            due = max(0, int(ratio * ((k + 1) * rows - 64)))
            updates.append(due - (due - updates[-1]) % dispatch)
            session.turn()
            found = session.lag.read()
            assert found["policy_lag"] == found["policy_lag_max"]  # one version in a block
            seen.append(found["policy_lag"])
        assert session.learner.updates == updates[-1] > 0
    assert seen == expected
    assert any(seen) == (ratio > 0.125)


def lags(path):
    """(policy_lag, policy_lag_max, updates) of a run's metrics.

    On a slow machine a row may be due before another block was taken; such a row, and no other, says nothing.
    """
    rows, before = read_rows(path / "metrics.jsonl"), 0
    for row in rows:
        nothing = row["env_steps"] == before
        assert (row["policy_lag"] is None, row["policy_lag_max"] is None) == (nothing, nothing)
        before = row["env_steps"]
    found = [(row["policy_lag"], row["policy_lag_max"], row["updates"]) for row in rows]
    return [each for each in found if each[0] is not None]


def test_metrics_say_how_far_behind_the_weights_were(tmp_path, one_launcher, without_learning):
    config = tiny_config(updates_per_step=2.0, updates_per_dispatch=2, **ASYNCHRONOUS)
    train(tmp_path / "run", config)
    found = lags(tmp_path / "run")
    assert found
    for mean, most, updates in found:
        assert 0 <= mean <= most <= updates
    assert max(most for _, most, _ in found) > 0


def test_metrics_of_rounds_that_learn_at_their_ends_say_zero(uninterrupted):
    found = lags(uninterrupted[0])
    assert found
    assert {(mean, most) for mean, most, _ in found} == {(0, 0)}
