"""Stage all, its trainings pretended: what it trains, skips and refuses."""

import signal

import pytest
from support import studies
from support.files import contents
from support.training import artifact, assert_same

from trainers import command
from trainers.config.training import train_config
from trainers.run.observers import InterruptedRunError
from trainers.store.identity import dense_identity
from trainers.store.manifest import read_config, read_summary
from trainers.study import stages

ALL = ("--stage", "all", "--tasks", "reach-v3", "push-v3", "--seeds", "1", "--targets", "push-v3")
ALL = (*ALL, *studies.FLAGS, "--prune.rate", "0.6")


def pretend(monkeypatch, stop_after=None):
    """Trainings that only write what one writes; returns the folders of those that began."""
    began = []

    def fake(folder, *args, **kwargs):
        if stop_after is not None and len(began) == stop_after:
            raise InterruptedRunError(signal.SIGTERM)
        began.append(str(folder.path))
        return studies.fake_train(folder, *args, **kwargs)

    monkeypatch.setattr(stages, "train", fake)
    return began


def test_a_whole_study_skips_what_is_finished_and_goes_on_where_it_was(tmp_path, call, monkeypatch):
    whole = pretend(monkeypatch)
    assert call(*ALL, "--run", tmp_path / "whole") == (0, [])
    inside = [each.removeprefix(f"{tmp_path}/whole/") for each in whole]
    # A dense run and two rounds for each task; for reach-v3 also 6 variants.
    assert len(inside) == len(set(inside)) == (3 + 6) + 3
    names = ("reach-v3/seed-1/dense", "ticket/round-1", "ticket/round-2", "push-v3/seed-1/dense")
    assert [each.endswith(name) for each, name in zip(inside, names, strict=False)] == [True] * 4
    again = pretend(monkeypatch)
    assert call(*ALL, "--run", tmp_path / "whole") == (0, [])
    assert again == []

    parts = []
    for count in (2, 4, None):
        began = pretend(monkeypatch, count)
        code, errors = call(*ALL, "--run", tmp_path / "parts")
        assert (code, errors) == (0 if count is None else 143, [])
        assert (tmp_path / "parts" / "summary.json").exists() == (count is None)
        parts += [each.removeprefix(f"{tmp_path}/parts/") for each in began]
    assert parts == inside
    summaries = [read_summary(tmp_path / name) for name in ("whole", "parts")]
    assert summaries[0] == summaries[1]
    assert [(row["stage"], row["env"], row["seed"]) for row in summaries[0]["results"]] == [
        ("dense", "reach-v3", 1),
        ("ticket", "reach-v3", 1),
        ("dense", "push-v3", 1),
        ("transfer", "push-v3", 1),
        ("ticket", "push-v3", 1),
    ]
    for each in inside:
        first, second = (artifact(tmp_path / name / each) for name in ("whole", "parts"))
        assert_same(first, second)


def test_a_changed_setting_is_not_skipped(tmp_path, call, monkeypatch):
    pretend(monkeypatch)
    flags = ("--stage", "all", "--tasks", "reach-v3", "--seeds", "0", "--targets", *studies.FLAGS)
    assert call(*flags, "--prune.rate", "0.8", "--runs", tmp_path / "runs") == (0, [])
    began = pretend(monkeypatch)
    assert call(*flags, "--prune.rate", "0.8", "--runs", tmp_path / "runs") == (0, [])
    assert began == []
    assert call(
        *flags, "--prune.rate", "0.8", "--algorithm.discount", "0.8", "--runs", tmp_path / "runs"
    ) == (
        0,
        [],
    )
    assert len(began) == 2
    (one,) = (each for each in (tmp_path / "runs" / "study").iterdir() if str(each) not in began[0])
    before = contents(one)
    code, errors = call(*flags, "--prune.rate", "0.8", "--algorithm.discount", "0.8", "--run", one)
    assert (code, len(errors)) == (2, 1)
    assert "algorithm.discount is 0.9 there and 0.8 here" in errors[0]
    assert contents(one) == before


def test_each_run_of_a_whole_study_has_the_settings_that_it_would_have_alone(tmp_path, call, monkeypatch):
    pretend(monkeypatch)
    assert call(*ALL, "--run", tmp_path / "all") == (0, [])
    base = tmp_path / "all" / "push-v3" / "seed-1"
    flags = ["--stage", "dense", *studies.FLAGS, "--env", "push-v3", "--seed", "1"]
    config = train_config(command.read(flags).arguments())
    assert read_config(base / "dense") == dense_identity(config).config
    assert read_config(base / "ticket")["from"] == str(base / "dense")
    assert not (base / "transfer-push-v3").exists()


@pytest.mark.parametrize("name", ["tasks", "seeds"])
def test_a_whole_study_of_nothing_is_an_error(name, tmp_path, call):
    code, errors = call("--stage", "all", f"--{name}", "--run", tmp_path / "run")
    assert (code, errors) == (2, [f"error: {name} is empty"])
    assert not (tmp_path / "run").exists()
