"""Interrupted and resumed equals uninterrupted, bit for bit, and how signals end a run."""

import os
import signal

import numpy as np
import pytest
from support.training import (
    Silent,
    artifact,
    assert_same,
    assert_same_run,
    checkpoint,
    evaluations,
    interrupted,
    order,
    tiny_config,
    train,
)

from fastcollect.support.named import below
from trainers.config.training import RewindConfig
from trainers.run import observers
from trainers.store.folder import RunFolder
from trainers.store.manifest import read_summary
from trainers.store.reader import load
from trainers.study.rewind import Ticket, open_source

pytestmark = pytest.mark.usefixtures("one_launcher")
IDENTITY = {"stage": "dense"}
"""Of runs whose environments are ordered to interrupt them, and that are resumed with others' n and N."""


@pytest.mark.parametrize(
    ("batch", "step", "signum", "resumed_with"),
    [
        (2, 5, signal.SIGTERM, (2, 2, 0)),  # before the first update
        (2, 41, signal.SIGINT, (4, 1, 0)),
        (3, 40, signal.SIGTERM, (2, 2, 1)),  # during an evaluation
        (2, 78, signal.SIGINT, (2, 2, 0)),  # in the last round
    ],
)
def test_an_interrupted_run_equals_an_uninterrupted_one(
    batch, step, signum, resumed_with, tmp_path, uninterrupted, plain_loop, learners
):
    expected, learner = uninterrupted
    config = tiny_config(env_kwargs=order(tmp_path / "order", batch, step, signum))
    interrupted(tmp_path / "run", config, signum=signum, identity=IDENTITY)
    assert not (tmp_path / "run" / "summary.json").exists()
    n, N, M = resumed_with
    config = tiny_config(env_kwargs=config.env_kwargs, collect__n=n, collect__N=N, collect__M=M)
    summary = train(tmp_path / "run", config, resume=True, identity=IDENTITY)
    assert summary["updates"] == 32
    assert_same_run(tmp_path / "run", expected)
    assert_same(learners[-1].replay.get_state(), learner.replay.get_state())
    assert_same(artifact(tmp_path / "run"), plain_loop)


def test_a_whole_run_has_the_bits_of_a_plain_loop(uninterrupted, plain_loop):
    assert_same(artifact(uninterrupted[0]), plain_loop)


def test_a_run_interrupted_again_and_again_equals_an_uninterrupted_one(tmp_path, uninterrupted):
    expected, _ = uninterrupted
    for resume, step in ((False, 5), (True, 9)):
        config = tiny_config(env_kwargs=order(tmp_path / "order", 2, step, signal.SIGTERM))
        interrupted(tmp_path / "run", config, resume=resume, identity=IDENTITY)
    train(tmp_path / "run", config, resume=True, identity=IDENTITY)
    assert_same_run(tmp_path / "run", expected)


def test_checkpoints_on_the_way_change_nothing_and_can_be_resumed_from(tmp_path, uninterrupted, monkeypatch):
    expected, _ = uninterrupted
    monkeypatch.setattr(observers, "_CHECKPOINT_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "_remove_checkpoints", lambda folder: None)
        train(tmp_path / "run", tiny_config())
    assert_same_run(tmp_path / "run", expected)
    # As after a kill before the last round.
    (tmp_path / "run" / "summary.json").unlink()
    (tmp_path / "run" / "checkpoints" / "320.npz").unlink()
    arrays, meta = checkpoint(tmp_path / "run")
    assert arrays["env_steps"] == 304
    assert meta["next_evaluation"] == 336
    train(tmp_path / "run", tiny_config(), resume=True)
    assert_same_run(tmp_path / "run", expected)


def test_resuming_what_has_no_checkpoint_begins_anew(tmp_path, uninterrupted):
    def fail(row):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train(tmp_path / "run", tiny_config(), progress=Silent(fail))
    assert len(evaluations(tmp_path / "run")) == 1
    train(tmp_path / "run", tiny_config(), resume=True)
    assert_same_run(tmp_path / "run", uninterrupted[0])


def test_another_seed_gives_another_run(tmp_path, uninterrupted):
    train(tmp_path / "run", tiny_config(seed=4))
    mine, theirs = artifact(tmp_path / "run"), artifact(uninterrupted[0])
    for name in ("parameters/actor/kernel_0", "normalizer/mean", "parameters/critic/q1/kernel_1"):
        assert (mine[name] != theirs[name]).all(), name


# Signals.


def test_a_second_signal_ends_the_run_at_once_and_an_earlier_checkpoint_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(observers, "_CHECKPOINT_SECONDS", 0.0)

    def stop(row):
        if row["env_steps"] == 96:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", tiny_config(), progress=Silent(stop))
    arrays, _ = checkpoint(tmp_path / "run")
    assert arrays["env_steps"] == 80


def test_a_signal_that_comes_too_late_for_a_run_is_not_lost(tmp_path, without_learning):
    def stop(row):
        if row["env_steps"] == 320:
            os.kill(os.getpid(), signal.SIGTERM)

    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    interrupted(tmp_path / "run", tiny_config(), progress=Silent(stop))
    assert read_summary(tmp_path / "run")["env_steps"] == 320
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


def test_an_average_of_the_actor_is_resumed_and_is_the_policy_that_is_kept(tmp_path):
    averaged = {"algorithm__actor_average": 0.9}
    whole = tmp_path / "whole"
    train(whole, tiny_config(**averaged), identity=IDENTITY)
    config = tiny_config(env_kwargs=order(tmp_path / "order", 2, 78, signal.SIGINT), **averaged)
    interrupted(tmp_path / "run", config, signum=signal.SIGINT, identity=IDENTITY)
    train(tmp_path / "run", config, resume=True, identity=IDENTITY)
    assert_same_run(tmp_path / "run", whole)
    final = artifact(whole)
    mean = final["normalizer/mean"]
    scale = 1 / np.sqrt(final["normalizer/squares"] / final["normalizer/count"] + config.variance_floor)
    kept = below(artifact(whole, "policy"), "parameters/")
    for which, same in (("averages", True), ("parameters", False)):
        kernel = final[f"{which}/actor/kernel_0"] * scale[:, None]
        folded = final[f"{which}/actor/bias_0"] - mean @ kernel
        assert np.allclose(kept["kernel_0"], kernel, rtol=1e-4, atol=1e-6) == same
        assert np.allclose(kept["bias_0"], folded, rtol=1e-3, atol=1e-4) == same
        last = final[f"{which}/actor/kernel_1"]
        assert np.array_equal(kept["kernel_1"], last) == same
    # The evaluated actor is exported; a ticket is drawn from the trained one, and goes on from either's own.
    saved = load([whole])[0][0]
    assert np.array_equal(saved.actor["kernel_1"], final["averages/actor/kernel_1"])
    assert np.array_equal(saved.parameters["actor"]["kernel_1"], final["parameters/actor/kernel_1"])
    for name in ("anchor", "final"):
        ticket = Ticket.begin(
            tiny_config(**averaged), RewindConfig(parameters=name), open_source(str(whole)), {}
        )
        begin, there = ticket.rewound({}).state, artifact(whole, name)
        assert np.array_equal(begin.averages["actor"]["kernel_1"], there["averages/actor/kernel_1"])
        restarted = ticket.restarted(name, {}).state
        assert np.array_equal(restarted.averages["actor"]["kernel_1"], there["averages/actor/kernel_1"])
        anew = ticket.rewound_but_actor({}).state
        assert np.array_equal(anew.averages["actor"]["kernel_1"], anew.parameters["actor"]["kernel_1"])
        assert not np.array_equal(anew.averages["actor"]["kernel_1"], begin.averages["actor"]["kernel_1"])
