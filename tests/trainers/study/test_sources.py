"""What a stage begins from and what is there already: missing, moved, of another run, finished."""

import shutil

import pytest
from support.stages import (
    BOTH,
    CONFIG,
    files,
    pretend,
    problems_of,
    run_dense,
    run_ticket,
    run_transfer,
)
from support.training import tiny_config

from trainers.config.training import PruneConfig, RewindConfig
from trainers.store.identity import dense_identity
from trainers.store.manifest import read_manifest, read_summary
from trainers.study import stages

pytestmark = pytest.mark.usefixtures("one_launcher")


def without(path, name, copy):
    """A copy of a run folder that lost an artifact's file."""
    shutil.copytree(path, copy)
    (file,) = (each for each in (copy / "artifacts").glob(f"{name}*.npz") if each.stem.rstrip("~") == name)
    file.unlink()
    return copy


@pytest.mark.parametrize(
    ("name", "prune", "matrix"),
    [
        ("final", BOTH, RewindConfig()),
        ("anchor", BOTH, RewindConfig()),
        ("anchor-replay", BOTH, RewindConfig()),
        ("initial", BOTH, RewindConfig(parameters="initial")),
        ("saliency", PruneConfig(criterion="taylor"), RewindConfig()),
    ],
)
def test_a_ticket_asks_for_all_that_it_needs_before_it_makes_a_folder(name, prune, matrix, dense, tmp_path):
    source = without(dense, name, tmp_path / "dense")
    (problem,) = problems_of(run_ticket, tmp_path / "run", source, prune, matrix)
    assert f"artifact {name!r} of {str(source)!r} is gone" in problem
    assert not (tmp_path / "run").exists()


def test_a_ticket_does_not_ask_for_what_it_does_not_need(dense, tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "train", pretend)
    source = without(dense, "saliency", tmp_path / "dense")
    for name in ("initial", "anchor-replay"):
        (source / "artifacts" / f"{name}.npz").unlink()
    run_ticket(tmp_path / "run", source, BOTH, RewindConfig(replay="fresh"))
    assert (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize("name", ["anchor", "final"])
def test_a_transfer_asks_for_all_that_it_needs_before_it_makes_a_folder(name, dense, ticket, tmp_path):
    source = without(dense, name, tmp_path / "dense")
    (problem,) = problems_of(run_transfer, tmp_path / "run", ticket[0], source)
    assert f"artifact {name!r} of {str(source)!r} is gone" in problem
    assert not (tmp_path / "run").exists()


def test_finished_stages_are_left_as_they_are(dense, ticket, transfer):
    folders = (dense, ticket[0], transfer[0])
    before = [files(path) for path in folders]
    run_dense(dense)
    run_ticket(ticket[0], dense, controls=(2,))
    run_transfer(transfer[0], ticket[0], dense)
    assert [files(path) for path in folders] == before


def test_a_ticket_of_another_source_is_not_taken_for_finished(dense, ticket, tmp_path, monkeypatch):
    shutil.copytree(ticket[0], tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    monkeypatch.setattr(stages, "train", pretend)
    other = tmp_path / "other"
    shutil.copytree(dense, other)
    manifest = (other / "manifest.yaml").read_text()
    hashes = [dense_identity(each).hash() for each in (CONFIG, tiny_config(stop_patience=9))]
    assert hashes[0] in manifest
    text = manifest.replace(hashes[0], hashes[1]).replace("stop_patience: 3", "stop_patience: 9")
    (other / "manifest.yaml").write_text(text)
    index = other / "artifacts" / "index.json"
    index.write_text(index.read_text().replace(hashes[0], hashes[1]))
    before = files(tmp_path / "run")
    (problem,) = problems_of(run_ticket, tmp_path / "run", other, resume=True)
    assert f"the hash of the dense source is {hashes[0]!r} there".replace("'", '"') in problem
    assert files(tmp_path / "run") == before


def test_a_source_that_was_moved_is_the_same_source(dense, ticket, tmp_path, monkeypatch):
    """In the same study or out of it: what a ticket begins from is known by its hash."""
    monkeypatch.setattr(stages, "train", None)  # nothing is trained again
    shutil.copytree(ticket[0], tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    shutil.copytree(dense, tmp_path / "elsewhere" / "dense")
    run_ticket(tmp_path / "run", tmp_path / "elsewhere" / "dense", controls=(2,), resume=True)
    assert read_manifest(tmp_path / "run")["sources"][0]["path"] == "../elsewhere/dense"
    rows = [read_summary(each)["rounds"] for each in (tmp_path / "run", ticket[0])]
    assert rows[0] == rows[1]
