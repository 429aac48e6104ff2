"""Another algorithm, registered by one line, through everything that a run can go through."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
from support.stages import run_dense, run_ticket
from support.tiny_algorithm import TinyConfig
from support.training import artifact, assert_same_run, one_launcher, tiny_config

from engine.algorithms import CONFIGS
from engine.algorithms.base import Network
from fastcollect.support.errors import ConfigError
from trainers import configure, load
from trainers.config.defaults import defaults
from trainers.config.training import PruneConfig
from trainers.export import ExportArguments, export
from trainers.report.__main__ import ReportArguments, report
from trainers.run.training import open_session
from trainers.store.layout import network
from trainers.study.controls import CONTROLS

pytestmark = pytest.mark.usefixtures("one_launcher")
__all__ = ["one_launcher"]
PRUNE = PruneConfig(actor=0.5, critic=0.25, rate=0.5)


@pytest.fixture
def config(monkeypatch):
    """Of a tiny run of the tiny algorithm."""
    monkeypatch.setitem(CONFIGS, "tiny", TinyConfig)
    defaults.cache_clear()
    yield tiny_config(algo="tiny", algorithm=TinyConfig())
    defaults.cache_clear()


def test_an_algorithm_of_one_file_trains_is_pruned_exported_and_reported(config, tmp_path, capsys):
    run_dense(tmp_path / "dense", config)
    summary = run_ticket(tmp_path / "ticket", tmp_path / "dense", PRUNE, controls=(1,), config=config)
    assert [row["name"] for row in summary["rounds"]] == ["ticket", *CONTROLS]
    assert summary["rounds"][0]["sparsity"] == {"actor": 0.5, "critic": pytest.approx(0.25, abs=0.01)}
    final = artifact(tmp_path / "ticket" / "round-1")
    for name in ("actor", "critic"):
        masks, weights = network(final, name, "masks"), network(final, name)
        assert all(not weights[leaf][~kept].any() for leaf, kept in masks.items())
    before, after = (artifact(tmp_path / "dense", name) for name in ("initial", "final"))
    assert (before["parameters/actor/kernel_0"] != after["parameters/actor/kernel_0"]).any()
    manifest = (tmp_path / "dense" / "manifest.yaml").read_text()
    assert "algo: tiny" in manifest
    assert load(tmp_path / "dense").policy(np.zeros(6, np.float32)).shape == (2,)

    export(ExportArguments(run=tmp_path / "ticket", out=tmp_path / "actor.npz"))
    assert json.loads(np.load(tmp_path / "actor.npz")["meta.json"])["parameters"]["kept"] > 0
    page = report(ReportArguments(runs=(tmp_path / "dense", tmp_path / "ticket"), out=tmp_path / "page"))
    assert "round 1 permuted-weights" in page.read_text()
    capsys.readouterr()


def test_its_runs_are_reproducible_too(config, tmp_path):
    run_dense(tmp_path / "one", config)
    run_dense(tmp_path / "two", config)
    assert_same_run(tmp_path / "two", tmp_path / "one")


def test_its_settings_are_chosen_by_its_name(config):
    found = configure("reach-v3", "tiny", algorithm={"discount": 0.5})
    assert (found.algo, found.algorithm) == ("tiny", TinyConfig(discount=0.5))
    with pytest.raises(ConfigError, match=r"algorithm.discount is 2.0; allowed: above 0, up to 1 \(given by"):
        configure("reach-v3", "tiny", algorithm={"discount": 2.0})
    with pytest.raises(ConfigError, match=r"algorithm.target_entropy is no setting"):
        configure("reach-v3", "tiny", algorithm={"target_entropy": 1.0})


@dataclass(frozen=True, kw_only=True)
class TellingConfig(TinyConfig):
    """A tiny algorithm that wants to know how likely its actions were."""

    @property
    def network(self):
        return Network("mlp", self.hidden, extras=("log_prob",))


def test_the_extras_that_an_algorithm_wants_stand_beside_its_actions(monkeypatch):
    monkeypatch.setitem(CONFIGS, "telling", TellingConfig)
    with open_session(tiny_config(algo="telling", algorithm=TellingConfig())) as session:
        block = session.turn()
    assert set(block.extras) == {"log_prob", "policy_version"}
    assert block.extras["log_prob"].shape == block.reward.shape
    assert np.isfinite(block.extras["log_prob"]).all()
    assert len(np.unique(block.extras["log_prob"])) > 1
