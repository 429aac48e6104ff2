"""One whole run in its folder: what it leaves, when it is evaluated, what ends it early."""

import os
import signal

import jax
import numpy as np
import pytest
from support import tiny_env
from support.content import histories
from support.training import (
    Silent,
    artifact,
    assert_same,
    evaluations,
    interrupted,
    tiny_config,
    train,
    wanted,
)

from engine.algorithms import base
from fastcollect.control import collector
from fastcollect.control.probe import env_spec
from trainers.run import observers, training
from trainers.run.evaluation import evaluation_row
from trainers.run.learner import Start
from trainers.store.manifest import read_summary

pytestmark = pytest.mark.usefixtures("one_launcher")


def test_a_run_leaves_its_states_and_its_normaliser(uninterrupted):
    path, learner = uninterrupted
    counts = {name: artifact(path, name)["env_steps"] for name in ("initial", "anchor", "final")}
    assert counts == {"initial": 0, "anchor": 128, "final": 320}
    for name, steps in counts.items():
        saved = artifact(path, name)
        assert saved["normalizer/count"] == steps
        assert saved["updates"] == max(0, steps - 64) // 8
    content = histories(learner)
    seen = np.concatenate([each["observation"] for each in content]).astype(np.float64)
    np.testing.assert_allclose(artifact(path)["normalizer/mean"], seen.mean(0), rtol=1e-6)
    squares = np.square(seen - seen.mean(0)).sum(0)
    np.testing.assert_allclose(artifact(path)["normalizer/squares"], squares, rtol=1e-6, atol=1e-9)
    replay = artifact(path, "anchor-replay")
    assert replay["replay/written"].tolist() == [32] * 4
    first = np.concatenate([each["observation"][:32] for each in content])
    np.testing.assert_array_equal(replay["replay/observation"], first)
    best = max(
        evaluations(path), key=lambda row: (row["success_any"], row["success_last"], row["return_mean"])
    )
    assert artifact(path, "best")["env_steps"] == best["env_steps"]
    assert read_summary(path)["best"]["return_mean"] == best["return_mean"]


def test_actions_are_random_until_the_first_update_and_the_actors_own_after(uninterrupted):
    action = np.stack([each["action"] for each in histories(uninterrupted[1])])
    # Nearly uniform on [-1, 1]: 64 steps before the ratio asks for anything, 32 for the first dispatch.
    random = action[:, :24].reshape(-1, tiny_env.ACTIONS)
    assert np.abs(random.mean(0)).max() < 0.2
    assert np.abs(random.std(0) - 3**-0.5).max() < 0.1
    assert np.abs(action[:, 28:].reshape(-1, tiny_env.ACTIONS).mean(0)).max() > 0.2


def test_evaluations_do_not_touch_training(tmp_path, uninterrupted):
    train(tmp_path / "run", tiny_config(evaluation__every=1000, evaluation__episodes=2))
    assert [row["env_steps"] for row in evaluations(tmp_path / "run")] == [0, 320]
    for name in ("anchor", "final", "saliency", "anchor-replay"):
        assert_same(artifact(tmp_path / "run", name), artifact(uninterrupted[0], name))


def test_evaluations_are_made_on_time_and_hold_their_rows(uninterrupted):
    rows = evaluations(uninterrupted[0])
    assert [row["env_steps"] for row in rows] == [0, 48, 96, 144, 192, 240, 288, 320]
    assert [row["updates"] for row in rows] == [0, 0, 4, 8, 16, 20, 28, 32]
    for row in rows:
        assert len(row["return_by_goal"]) == 3
        assert row["density"] == {"actor": 1.0, "critic": 1.0}


def judged_as(monkeypatch, success):
    """Let evaluations say this success instead of the one that they found."""
    monkeypatch.setattr(
        observers, "evaluation_row", lambda found: {**evaluation_row(found), "success_any": success()}
    )


def test_early_stopping_counts_evaluations_in_a_row(tmp_path, monkeypatch, without_learning):
    success = iter([1.0, 0.9, 0.0, 0.9, 1.0, 0.9, 1.0, 1.0])
    judged_as(monkeypatch, lambda: next(success))
    config = tiny_config(stop_success=0.9, stop_patience=3)
    summary = train(tmp_path / "run", config)
    assert summary["stopped_early"]
    assert summary["env_steps"] == 240
    rows = evaluations(tmp_path / "run")
    assert [row["success_any"] for row in rows[:6]] == [1.0, 0.9, 0.0, 0.9, 1.0, 0.9]
    assert rows[-1]["updates"] == summary["updates"] == wanted(config, 240)
    assert summary["reached"]["success_any"]["env_steps"] == 0


def test_a_run_that_was_interrupted_when_it_had_succeeded_long_enough_does_not_go_on(
    tmp_path, monkeypatch, without_learning
):
    judged_as(monkeypatch, lambda: 1.0)

    def stop(row):
        if row["env_steps"] == 96:
            os.kill(os.getpid(), signal.SIGTERM)

    config = tiny_config(stop_success=0.9, stop_patience=3)
    interrupted(tmp_path / "run", config, progress=Silent(stop))
    summary = train(tmp_path / "run", config, resume=True)
    assert summary["stopped_early"]
    assert summary["env_steps"] == 96


def test_a_pruned_weight_that_is_not_zero_stops_the_run(tmp_path, monkeypatch):
    mask = np.ones((tiny_env.OBSERVATIONS, 8), bool)
    mask[2, 3] = False
    masks = {"actor": {"kernel_0": mask, "kernel_1": np.ones((8, 4), bool)}}
    learn = base.learn

    def corrupting(*args):
        state, acting, metrics = learn(*args)
        return state.replace(**{part: spoiled(state)}), acting, metrics

    def spoiled(state):
        spoil = jax.numpy.zeros(mask.shape).at[2, 3].set(1e-30)
        if part == "parameters":
            actor = state.parameters["actor"]
            return {**state.parameters, "actor": {**actor, "kernel_0": actor["kernel_0"] + spoil}}
        adam = state.optimizer["actor"]
        moments = {**adam.nu, "kernel_0": adam.nu["kernel_0"] + spoil}
        return {**state.optimizer, "actor": adam._replace(nu=moments)}

    monkeypatch.setattr(base, "learn", corrupting)
    for part in ("parameters", "optimizer"):
        with pytest.raises(AssertionError, match=r"kernel_0.* are not zero"):
            train(tmp_path / part, tiny_config(), Start(masks))
        assert evaluations(tmp_path / part)[-1]["env_steps"] == 48  # the evaluation after the first update


def test_a_run_builds_one_environment_to_learn_its_spaces(tmp_path, monkeypatch):
    probed = []
    for module in (training, collector):
        monkeypatch.setattr(module, "env_spec", lambda *args: probed.append(args) or env_spec(*args))
    train(tmp_path / "run", tiny_config())
    assert len(probed) == 1
