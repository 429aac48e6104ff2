"""The exported actor: the trained one's outputs, from NumPy alone, or an error and no file."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support import studies

from fastcollect.support.errors import ConfigError
from trainers import export as exporting
from trainers.export import DifferentOutputsError, ExportArguments, export, exportable
from trainers.store import artifacts
from trainers.store import reader as run_reader

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        folder = tmp_path_factory.mktemp("export")
        dense, ticket = folder / "dense", folder / "ticket"
        studies.study(monkeypatch, dense, "--stage", "dense")
        flags = ("--stage", "ticket", "--from", str(dense), "--controls")
        studies.study(monkeypatch, ticket, *flags, "--prune.actor", "0.9", "--prune.rate", "0.7")
        return folder


@pytest.fixture(autouse=True)
def _one_slice(monkeypatch):
    monkeypatch.setattr(exporting, "_ROUNDS", 1)


def act(file, observation):
    """As the module's own text says."""
    actor = np.load(file)
    depth = len([name for name in actor.files if name.startswith("kernel_")])
    x = observation[:, actor["inputs"]]
    for i in range(depth - 1):
        x = np.maximum(x @ actor[f"kernel_{i}"] + actor[f"bias_{i}"], 0)
    head = x @ actor[f"kernel_{depth - 1}"] + actor[f"bias_{depth - 1}"]
    return np.tanh(head[:, : head.shape[1] // 2]), json.loads(actor["meta.json"])


def trained(path, observation, tanh=True):
    """The same by hand, in float64: normalise, then the masked average of the actor."""
    arrays = artifacts.load(path, "final").arrays
    variance = arrays["normalizer/squares"] / arrays["normalizer/count"]
    x = (observation.astype(np.float64) - arrays["normalizer/mean"]) / np.sqrt(variance + 1e-4)
    for i in range(3):
        x = x @ arrays[f"averages/actor/kernel_{i}"].astype(np.float64) + arrays[f"averages/actor/bias_{i}"]
        x = np.maximum(x, 0) if i < 2 else x
    return np.tanh(x[:, : x.shape[1] // 2]) if tanh else x


def check_by_hand(source, out, meta):
    """The number that the file gives, from the observations that it was checked on, in float64."""
    dense = source if source.name == "dense" else source.parent.parent / "dense"
    seen = artifacts.load(dense, "saliency").arrays["observation"].reshape(-1, studies.OBSERVATIONS)
    file = {name: value.astype(np.float64) for name, value in np.load(out).items() if "_" in name}
    x = seen[:, np.load(out)["inputs"]].astype(np.float64)
    for i in range(3):
        x = x @ file[f"kernel_{i}"] + file[f"bias_{i}"]
        x = np.maximum(x, 0) if i < 2 else x
    expected = trained(source, seen, tanh=False)
    difference = np.abs(x - expected).max() / np.abs(expected).max()
    # Their normaliser is in float64 here, and the trained one was in float32.
    assert abs(difference - meta["largest_relative_difference"]) < 3e-7
    assert difference < 1e-6


@pytest.mark.parametrize("name", ["dense", "ticket", "ticket/round-1", "ticket/round-2-random-mask"])
def test_numpy_alone_acts_as_the_trained_actor_did(study, tmp_path, name, capsys):
    out = tmp_path / "actor.npz"
    export(ExportArguments(run=study / name, out=out))
    source = study / ("ticket/round-2" if name == "ticket" else name)
    seen = np.random.default_rng(5).normal(0.5, 0.3, (200, studies.OBSERVATIONS)).astype(np.float32)
    actions, meta = act(out, seen)
    np.testing.assert_allclose(actions, trained(source, seen), atol=2e-5)
    assert meta["env"] == "reach-v3"
    assert meta["checked_observations"] == 64
    assert meta["largest_relative_difference"] <= 1e-6
    check_by_hand(source, out, meta)
    assert "hidden layer 1" in capsys.readouterr().out


def test_what_is_smaller_is_counted_exactly(study, tmp_path):
    export(ExportArguments(run=study / "ticket", out=tmp_path / "actor.npz"))
    found = np.load(tmp_path / "actor.npz")
    _, meta = act(tmp_path / "actor.npz", np.zeros((1, studies.OBSERVATIONS), np.float32))
    prunable, biases = 39 * 8 + 8 * 6 + 6 * 8, 8 + 6 + 8
    sizes = [found[name].size for name in found.files if name.startswith(("kernel", "bias"))]
    assert meta["parameters"]["trained"] == prunable + biases
    live = prunable - len(studies.CONSTANT) * 8  # inputs that never changed count in no sparsity
    assert meta["parameters"]["kept"] == live - round(0.9 * live) + biases
    assert meta["parameters"]["exported"] == sum(sizes) < prunable + biases
    assert meta["widths"]["trained"] == [39, 8, 6, 8]
    shapes = [found[f"kernel_{i}"].shape for i in range(3)]
    assert meta["widths"]["exported"] == [shapes[0][0], *(shape[1] for shape in shapes)]
    assert len(found["inputs"]) == shapes[0][0] < 39


def test_the_default_file_lies_in_the_run_folder(study):
    export(ExportArguments(run=study / "dense"))
    assert (study / "dense" / "actor.npz").exists()


def test_other_outputs_are_an_error_and_no_file(study, tmp_path, monkeypatch):
    real = exporting.compact

    def wrong(mask, parameters):
        small = real(mask, parameters)
        small.parameters["bias_2"][0] += 1e-3
        return small

    monkeypatch.setattr(exporting, "compact", wrong)
    with pytest.raises(DifferentOutputsError, match="differs from the trained one by"):
        export(ExportArguments(run=study / "ticket", out=tmp_path / "actor.npz"))
    assert list(tmp_path.iterdir()) == []


def test_weights_beneath_the_mask_are_an_error(study, tmp_path):
    folder = shutil.copytree(study / "ticket" / "round-2", tmp_path / "round-2")
    arrays = dict(artifacts.load(folder, "final").arrays)
    arrays["averages/actor/kernel_0"] = arrays["averages/actor/kernel_0"] + 1
    config_hash = run_reader.identify(folder)[1]["config_hash"]
    artifacts.save(folder, "final", arrays, config_hash=config_hash)
    with pytest.raises(DifferentOutputsError):
        export(ExportArguments(run=folder, out=tmp_path / "actor.npz"))
    assert not (tmp_path / "actor.npz").exists()


@pytest.mark.parametrize(("offset", "fits"), [(10.0, True), (10_000.0, False)])
def test_a_normaliser_that_float32_cannot_fold_is_an_error(study, tmp_path, offset, fits):
    folder = shutil.copytree(study / "ticket" / "round-2", tmp_path / "round-2")
    config_hash = run_reader.identify(folder)[1]["config_hash"]
    arrays = dict(artifacts.load(folder, "final").arrays)
    arrays["normalizer/mean"] = arrays["normalizer/mean"] + offset
    artifacts.save(folder, "final", arrays, config_hash=config_hash)
    seen = artifacts.load(study / "dense", "saliency").arrays["observation"].astype(np.float64) + offset
    artifacts.save(folder, "saliency", {"observation": seen}, config_hash=config_hash)
    out = tmp_path / "actor.npz"
    if fits:
        export(ExportArguments(run=folder, out=out))
        return
    with pytest.raises(DifferentOutputsError, match="after folding the normaliser"):
        export(ExportArguments(run=folder, out=out))
    assert not out.exists()


def test_a_source_that_was_changed_is_refused(study, tmp_path):
    moved = shutil.copytree(study, tmp_path / "moved")
    file = moved / "dense" / "manifest.yaml"
    file.write_text(file.read_text().replace("seed: 0", "seed: 7", 1))
    source = run_reader.identify(moved / "ticket" / "round-1")[0].source("dense")
    with pytest.raises(ConfigError, match="was changed"):
        run_reader.find_source(moved / "ticket", source)


def test_a_study_that_was_moved_still_knows_its_dense_run(study, tmp_path):
    moved = shutil.copytree(study, tmp_path / "moved")
    source = run_reader.identify(moved / "ticket" / "round-1")[0].source("dense")
    assert run_reader.find_source(moved / "ticket" / "round-1", source) == moved / "dense"
    assert run_reader.find_source(study / "ticket" / "round-1", source) == study / "dense"
    assert run_reader.find_source(moved / "ticket", replace(source, config_hash="other")) is None
    alone = shutil.copytree(moved / "ticket" / "round-1", tmp_path / "alone" / "round-1")
    assert run_reader.find_source(alone, source) == study / "dense"
    (moved / "dense").rename(tmp_path / "dense")
    (moved / "ticket").rename(tmp_path / "inner")
    assert run_reader.find_source(tmp_path / "inner" / "round-1", source) == tmp_path / "dense"


def test_a_run_without_observations_to_check_on_is_refused(study, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "find_source", lambda *_: None)
    with pytest.raises(ConfigError, match="has observations to check the outputs on"):
        export(ExportArguments(run=study / "ticket", out=tmp_path / "actor.npz"))
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_is_one_error(study, tmp_path):
    unfinished = shutil.copytree(study / "dense", tmp_path / "dense")
    (unfinished / "summary.json").unlink()
    (tmp_path / "empty").mkdir()
    for path, text in {unfinished: "not finished", tmp_path / "empty": "no run folder"}.items():
        with pytest.raises(ConfigError, match=text):
            exportable(path)
    broken = shutil.copytree(study / "dense", tmp_path / "broken")
    arrays = dict(artifacts.load(broken, "final").arrays)
    arrays["averages/actor/bias_0"] = np.full(8, np.nan, np.float32)
    config_hash = run_reader.identify(broken)[1]["config_hash"]
    artifacts.save(broken, "final", arrays, config_hash=config_hash)
    with pytest.raises(ConfigError, match="not finite"):
        exportable(broken)


def test_observations_that_were_changed_or_are_gone_are_passed_over(study, tmp_path):
    folder = shutil.copytree(study / "dense", tmp_path / "dense")
    seen = artifacts.load(folder, "anchor-replay").arrays["replay/observation"]
    file = folder / "artifacts" / "saliency.npz"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    np.testing.assert_array_equal(exporting.check_observations(exportable(folder)), seen)
    file.unlink()
    np.testing.assert_array_equal(exporting.check_observations(exportable(folder)), seen)
    (folder / "artifacts" / "anchor-replay.npz").unlink()
    with pytest.raises(ConfigError, match="has observations to check"):
        exporting.check_observations(exportable(folder))


def test_an_index_of_the_source_that_cannot_be_read_is_an_error(study, tmp_path):
    copied = shutil.copytree(study, tmp_path / "study")
    (copied / "dense" / "artifacts" / "index.json").write_text("[")
    with pytest.raises(ConfigError, match=r"dense/artifacts/index\.json' cannot be read"):
        exporting.check_observations(exportable(copied / "ticket"))


def test_the_command_ends_with_2_for_a_changed_artifact(study, tmp_path):
    folder = shutil.copytree(study / "dense", tmp_path / "dense")
    file = folder / "artifacts" / "final.npz"
    file.write_bytes(file.read_bytes().replace(b"\x00", b"\x01", 1))
    command = [sys.executable, "-m", "trainers.export", str(folder), "--out", str(tmp_path / "actor.npz")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "artifact 'final'" in done.stderr
    assert not (tmp_path / "actor.npz").exists()
