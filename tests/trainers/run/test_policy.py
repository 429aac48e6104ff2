"""The policy that a run leaves: it acts as in evaluations, on one observation or many, and unchanged."""

import shutil

import numpy as np
import pytest
from support import tiny_env
from support.training import artifact, launcher, tiny_config

from fastcollect.control.probe import env_spec
from fastcollect.envs.base import ActionSpec
from fastcollect.support.errors import ConfigError
from trainers.run import evaluation
from trainers.run.evaluation import Evaluator, first_episodes
from trainers.run.learner import as_numpy
from trainers.run.policy import load_policy, save_policy
from trainers.run.training import acting_policy, collector_config
from trainers.store import artifacts
from trainers.store.folder import RunFolder
from trainers.store.identity import dense_identity
from trainers.store.manifest import read_manifest

HASH = dense_identity(tiny_config()).hash()


@pytest.fixture
def copy(uninterrupted, tmp_path):
    """A run's folder that a test may change."""
    shutil.copytree(uninterrupted[0], tmp_path / "run")
    return tmp_path / "run"


def observations(count=40):
    spread = np.array([1e4, 3, 4, 1, 1, 0.5])
    return (spread * np.random.default_rng(0).random((count, tiny_env.OBSERVATIONS))).astype(np.float32)


def expected_actions(path, seen):
    """The actor's mean action in float64, from the final state."""
    arrays = artifact(path)
    weights = {k: v.astype(np.float64) for k, v in arrays.items() if k.startswith("parameters/actor/")}
    variance = arrays["normalizer/squares"] / arrays["normalizer/count"]
    x = (seen.astype(np.float64) - arrays["normalizer/mean"]) / np.sqrt(variance + 1e-4)
    hidden = x @ weights["parameters/actor/kernel_0"] + weights["parameters/actor/bias_0"]
    head = np.maximum(hidden, 0) @ weights["parameters/actor/kernel_1"] + weights["parameters/actor/bias_1"]
    return np.tanh(head[:, : tiny_env.ACTIONS]) * [2.0, 2.0] + [0.0, 1.0]


def test_it_acts_as_the_final_state_does_alone_and_in_a_batch(uninterrupted):
    path, _ = uninterrupted
    assert read_manifest(path)["config_hash"] == HASH
    policy, seen = load_policy(path, HASH), observations()
    actions = policy(seen)
    assert (actions.shape, actions.dtype) == ((40, 2), np.float32)
    np.testing.assert_allclose(actions, expected_actions(path, seen), rtol=1e-3, atol=1e-3)
    assert np.ptp(actions, axis=0).min() > 0.01
    for row, action in zip(seen, actions, strict=True):
        alone = policy(row)
        assert (alone.shape, alone.dtype) == ((2,), np.float32)
        np.testing.assert_allclose(alone, action, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(policy(seen.astype(np.float64).tolist()), actions)
    assert policy(seen[:0]).shape == (0, 2)
    first = policy(seen)
    policy(seen + 1)
    np.testing.assert_array_equal(first, actions)  # not a buffer that is written again


def test_it_acts_as_the_policy_of_the_last_evaluation_did(uninterrupted, monkeypatch):
    path, learner = uninterrupted
    blocks, config = [], tiny_config()
    monkeypatch.setattr(evaluation, "first_episodes", lambda b: blocks.append(b) or first_episodes(b))
    chosen = acting_policy(config.algorithm.network, deterministic=True)
    env = collector_config(config).env
    spec = env_spec(launcher(), env)
    evaluator = Evaluator(env, chosen, config.evaluation, config.seed, spec, launcher(), {})
    try:
        evaluator.start(as_numpy(learner.acting))
        assert evaluator.receive(60) is not None
    finally:
        evaluator.close()
    policy = load_policy(path, HASH)
    for seen, action in zip(blocks[0].observation[:-1], blocks[0].action, strict=True):
        np.testing.assert_array_equal(policy(seen), action)


@pytest.mark.parametrize("shape", [(), (5,), (7,), (2, 5), (2, 3, 6), (6, 2)])
def test_observations_of_another_shape_are_refused(shape, uninterrupted):
    policy = load_policy(uninterrupted[0], HASH)
    with pytest.raises(ValueError, match=r"allowed: \(6,\), or a batch") as caught:
        policy(np.zeros(shape, np.float32))
    assert str(shape) in str(caught.value)


def test_a_policy_that_was_changed_or_is_another_runs_or_is_gone_is_refused(copy):
    def problem(config_hash=HASH):
        with pytest.raises(ConfigError) as caught:
            load_policy(copy, config_hash)
        return str(caught.value)

    load_policy(copy, HASH)
    assert "another configuration" in problem("0" * 16)
    (file,) = (copy / "artifacts").glob("policy*.npz")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert "was changed" in problem()
    file.unlink()
    assert "is gone" in problem()


def test_a_folder_does_not_choose_which_code_runs(copy):
    found = artifacts.load(copy, "policy", HASH)
    for path in ("os:system", "fastcollect.policiesx:a", "engine.policies:MLPPolicy"):
        found.meta["policy"]["inline"] = path
        artifacts.save(copy, "policy", found.arrays, found.meta, config_hash=HASH)
        with pytest.raises(ConfigError, match=f"{path}.*allowed: those of fastcollect.policies"):
            load_policy(copy, HASH)


def test_discrete_actions_are_kept_too(tmp_path):
    """No algorithm learns them yet; the policies do."""
    spec = tiny_env.spec(8, ActionSpec(shape=(), dtype=np.dtype(np.int64), num_actions=3))
    config = acting_policy(tiny_config().algorithm.network, deterministic=True)
    weights = config.build(spec, batched=False).initial_parameters(5)
    with RunFolder.create(tmp_path / "run", dense_identity(tiny_config()), ["test"]) as folder:
        save_policy(folder, config, spec, weights)
    policy, seen = load_policy(tmp_path / "run", HASH), observations()
    hidden = np.maximum(seen @ weights["kernel_0"] + weights["bias_0"], 0)
    logits = hidden @ weights["kernel_1"] + weights["bias_1"]
    np.testing.assert_array_equal(policy(seen), logits.argmax(1))
    assert policy(seen[0]).shape == ()
