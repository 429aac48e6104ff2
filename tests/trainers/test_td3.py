"""A run of the twin delayed deterministic policy gradient through everything that a run can go through."""

import json
import signal

import numpy as np
import pytest
from support import tiny_env
from support.collectors import one_round
from support.content import histories
from support.stages import run_ticket
from support.training import (
    KeptLearner,
    artifact,
    assert_same_run,
    interrupted,
    keep_learners,
    launcher,
    one_launcher,
    order,
    tiny_config,
    train,
)

from engine.algorithms.td3 import TD3Config
from fastcollect.control.collector import Collector
from trainers import load
from trainers.config.training import PruneConfig, RewindConfig
from trainers.export import ExportArguments, export
from trainers.report.__main__ import ReportArguments, report
from trainers.run import training as loop
from trainers.store.layout import network

__all__ = ["one_launcher"]
CONFIG = tiny_config(algo="td3", algorithm=TD3Config(hidden=(8,), batch_size=8, actor_period=3))
PRUNE = PruneConfig(actor=0.5, critic=0.25, rate=0.5)


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "new_launcher", lambda config: launcher())
        path = tmp_path_factory.mktemp("td3") / "dense"
        made = keep_learners(patch)
        train(path, CONFIG)
        return path, made[0]


def test_a_run_moves_the_actor_once_in_a_period_and_acts_with_noise(dense):
    path, learner = dense
    assert isinstance(learner, KeptLearner)
    state = learner.state
    assert int(state.updates) == int(state.optimizer["critic"].count) == 32
    assert int(state.optimizer["actor"].count) == 32 // 3
    before, after = (artifact(path, name) for name in ("initial", "final"))
    for part in ("parameters/actor", "parameters/critic", "targets/actor", "targets/critic"):
        names = [name for name in before if name.startswith(part) and "kernel" in name]
        assert names
        assert all((before[name] != after[name]).any() for name in names)
    assert np.asarray(learner.acting["spread"]).tolist() == np.float32([0, 0.1]).tolist()
    # Nearly uniform until the first updates are there, and the actor's own with a little noise after.
    action = np.stack([each["action"] for each in histories(learner)])
    random, own = action[:, :24].reshape(-1, 2), action[:, 28:]
    assert np.abs(random.mean(0)).max() < 0.2
    assert np.abs(random.std(0) - 3**-0.5).max() < 0.1
    # From one step to the next uniform numbers differ by 2 / 3 on average.
    steps = [np.abs(np.diff(each, axis=1)).mean() for each in (action[:, :24], own)]
    assert abs(steps[0] - 2 / 3) < 0.1
    assert 0.05 < steps[1] < 0.8 * steps[0]


@pytest.mark.usefixtures("one_launcher")
def test_an_interrupted_run_equals_an_uninterrupted_one(dense, tmp_path):
    kwargs = order(tmp_path / "signal", 2, 30, signal.SIGTERM)
    config = tiny_config(algo="td3", algorithm=CONFIG.algorithm, env_kwargs=kwargs)
    interrupted(tmp_path / "run", config)
    train(tmp_path / "run", config, resume=True)
    assert_same_run(tmp_path / "run", dense[0])


@pytest.mark.usefixtures("one_launcher")
def test_its_tickets_are_rewound_exported_and_reported(dense, tmp_path, capsys):
    path, _ = dense
    matrix = RewindConfig(temperature="fresh", step="zero")
    summary = run_ticket(tmp_path / "ticket", path, PRUNE, config=CONFIG, matrix=matrix)
    assert summary["rounds"][-1]["sparsity"] == {"actor": 0.5, "critic": pytest.approx(0.25, abs=0.01)}
    final = artifact(tmp_path / "ticket" / "round-1")
    for name, part in (
        ("actor", "parameters"),
        ("critic", "parameters"),
        ("actor", "targets"),
        ("critic", "targets"),
    ):
        masks, weights = network(final, name, "masks"), network(final, name, part)
        assert all(not weights[leaf][~kept].any() for leaf, kept in masks.items())

    export(ExportArguments(run=tmp_path / "ticket", out=tmp_path / "actor.npz"))
    actor = np.load(tmp_path / "actor.npz")
    meta = json.loads(actor["meta.json"])
    assert (meta["actions"], meta["outputs"]) == (2, "mean of each action before tanh")
    observation = np.random.default_rng(0).random((5, 6), np.float32)
    x = np.maximum(observation[:, actor["inputs"]] @ actor["kernel_0"] + actor["bias_0"], 0)
    squashed = np.tanh(x @ actor["kernel_1"] + actor["bias_1"])
    policy = load(tmp_path / "ticket" / "round-1").policy
    low, high = policy.spec.action.low, policy.spec.action.high
    expected = (low + high) / 2 + (high - low) / 2 * squashed
    np.testing.assert_allclose(policy(observation), expected, rtol=1e-4, atol=1e-4)
    page = report(ReportArguments(runs=(path, tmp_path / "ticket"), out=tmp_path / "page"))
    assert "ticket round 1" in page.read_text()
    capsys.readouterr()


def test_model_workers_act_as_env_workers_do():
    actions, policy = [], loop.acting_policy(CONFIG.algorithm.network).build(tiny_env.spec(8), batched=False)
    weights = policy.initial_parameters(5) | {"spread": np.float32([0, 0.1])}
    for models in (0, 1):
        config = loop.collector_config(tiny_config(algo="td3", algorithm=CONFIG.algorithm, collect__M=models))
        with Collector(config, launcher(), parameters=weights) as collector:
            blocks = one_round(collector)
            actions.append({int(block.env_index[0]): block.action for block in blocks})
    assert actions[0].keys() == actions[1].keys()
    for first, action in actions[0].items():
        np.testing.assert_allclose(action, actions[1][first], atol=1e-5)
