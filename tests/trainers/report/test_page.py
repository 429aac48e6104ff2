"""The report: one page that stands alone, its numbers those of the runs, nothing claimed beyond them."""

import base64
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support import studies
from support.page import Page

from fastcollect.support.errors import ConfigError
from trainers import export
from trainers.report import film, sections
from trainers.report.__main__ import ReportArguments, report
from trainers.store import artifacts
from trainers.store.reader import load

ROOT = Path(__file__).resolve().parents[3]
ODD = 'a<b>&"study'


@pytest.fixture(scope="module")
def whole(study, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "deep" / "report"
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(export, "_ROUNDS", 1)
        monkeypatch.setattr(sections, "film", lambda *_: film.Film(b"GIF89a", "a film"))
        return report(ReportArguments(runs=(study,), out=out))


def test_the_page_stands_alone_and_its_pictures_lie_beside_it(whole):
    page = Page(whole)
    assert all(address.startswith("#") for address in page.addresses)
    assert "url(" not in whole.read_text()
    assert "@import" not in whole.read_text()
    embedded = {base64.b64decode(source.partition("base64,")[2]) for source in page.sources}
    beside = {file.name: file.read_bytes() for file in whole.parent.iterdir() if file != whole}
    assert embedded == set(beside.values())
    kinds = {name.rpartition("-v3")[0] + name.rpartition("-v3")[2] for name in beside}
    assert kinds == {
        *("figure-curves-reach-rounds.png", "figure-curves-reach-controls-2.png", "figure-episode.gif"),
        *("figure-curves-push-rounds.png", "figure-curves-push-transfer.png", "figure-sparsity-reach.png"),
        *("figure-density-reach.png", "figure-overlap-reach.png", "figure-inputs-reach.png"),
    }
    pictures = [content for name, content in beside.items() if name.endswith(".png")]
    assert all(content.startswith(b"\x89PNG") and len(content) > 5000 for content in pictures)


def test_no_text_of_a_run_becomes_markup(whole):
    raw = whole.read_text()
    assert "<b>" not in raw
    assert "a&lt;b&gt;&amp;&quot;study" in raw
    assert ODD in Page(whole).text


def test_every_run_is_in_the_table_with_its_exact_counts(study, whole):
    page = Page(whole)
    runs, _ = load([study])
    assert len(runs) == 2 * (1 + 2 + 6 + 1 + 6)
    assert list(dict.fromkeys(run.env for run in runs)) == ["reach-v3", "push-v3"]
    for run in runs:
        (row,) = page.rows_of(str(run.path.relative_to(study)))
        mask = artifacts.load(run.path, "mask").arrays if any(map(len, run.masks.values())) else {}
        leaves = [int(mask[f"actor/kernel_{i}"].sum()) for i in range(3)] if mask else []
        total = sum(leaves) if mask else 39 * 8 + 8 * 6 + 6 * 8
        layers = f": {' + '.join(map(str, leaves))}" if mask else ""
        if mask:
            kernels = [mask[f"actor/kernel_{i}"].astype(int) for i in range(3)]
            into = [np.ones(39, int), kernels[0].sum(0), kernels[0].sum(0) @ kernels[1]]
            out = [kernels[1] @ kernels[2].sum(1), kernels[2].sum(1), np.ones(8, int)]
            paths = zip(into, kernels, out, strict=True)
            layers += f"; effective {sum(np.count_nonzero(a[:, None] * k * b) for a, k, b in paths)}"
        assert f"{total} of 408{layers}" in row
        assert row[1:5] == [run.env, run.label, str(run.seed), "finished"]


def test_results_are_means_with_their_extremes(whole):
    page = Page(whole)
    # Seeds 0 and 1 end at 0.3 and 0.5; half of it at the last step.
    (row,) = page.rows_of("reach-v3", "ticket round 2", "2 of 2")
    assert row[3:6] == ["0.40 (0.30 to 0.50)", "0.20 (0.15 to 0.25)", "400 (300 to 500)"]
    live = 408 - len(studies.CONSTANT) * 8
    kept = live - round(0.8 * live)
    assert row[6:10] == [f"{1 - kept / 408:.3f}", "0.000", f"{1 - kept / live:.3f}", "0.000"]
    (row,) = page.rows_of("from reach-v3: mask-only")
    assert row[1:3] == ["2 seeds", "0.40 (0.30 to 0.50)"]
    assert row[-2:] == ["2,000 [0.95, 1 of 2]", "not reached"]


def test_the_page_says_what_cannot_be_concluded(study, whole, tmp_path):
    assert "no confidence interval" in Page(whole).text
    assert "single seed" not in Page(whole).text
    file = report(ReportArguments(runs=(study / "reach-v3" / "seed-0" / "dense",), out=tmp_path / "out"))
    text = Page(file).text
    assert "One seed says nothing about a difference" in text
    assert "There is no ticket among the runs." in text
    assert "Not among these runs: tickets, matched controls, transfers." in text


def test_the_default_folder_is_in_the_first_run_and_a_report_replaces_a_report(study, tmp_path):
    dense = shutil.copytree(study / "reach-v3" / "seed-0" / "dense", tmp_path / "dense")
    ticket = study / "reach-v3" / "seed-1" / "ticket"
    first = report(ReportArguments(runs=(dense, ticket)))
    assert first == dense / "report" / "report.html"
    assert (dense / "report" / "figure-sparsity-reach-v3.png").exists()
    (dense / "report" / "notes.txt").write_text("mine")
    report(ReportArguments(runs=(dense,)))
    names = {file.name for file in (dense / "report").iterdir()}
    assert names == {"report.html", "figure-curves-reach-v3-rounds.png", "notes.txt"}
    assert {file.name for file in dense.parent.iterdir()} == {"dense"}


def test_a_run_is_there_once_however_often_it_is_named(study):
    part = study / "reach-v3" / "seed-0"
    runs, containers = load([study, part / "ticket", part / "ticket" / "round-1", part / "dense"])
    assert len(runs) == 32
    assert [each.kind for each in containers] == ["study", "ticket", "transfer", "ticket", "transfer"]
    (alone,), _ = load([part / "ticket" / "round-2-random-mask"])
    assert alone.label == "round 2 random-mask"


def test_a_summary_without_results_is_one_error_that_names_it(study, tmp_path):
    part = shutil.copytree(study / "reach-v3" / "seed-0", tmp_path / "part")
    file = part / "ticket" / "round-1" / "summary.json"
    summary = json.loads(file.read_text())
    del summary["best"]["return_mean"], summary["updates"]
    for content, text in ((summary, "lacks best.return_mean, updates"), ({}, "is no summary")):
        file.write_text(json.dumps(content))
        with pytest.raises(ConfigError, match=text) as caught:
            report(ReportArguments(runs=(part / "ticket",), out=tmp_path / "out"))
        assert all(str(file) in problem for problem in caught.value.problems)
    assert not (tmp_path / "out").exists()


def test_an_unfinished_run_is_shown_as_unfinished(study, tmp_path):
    part = shutil.copytree(study / "reach-v3" / "seed-0", tmp_path / "part")
    for name in ("ticket/summary.json", "ticket/round-2-dense/summary.json", "ticket/round-2/summary.json"):
        (part / name).unlink()
    begun = part / "ticket" / "round-2-dense"
    shutil.rmtree(begun / "artifacts")
    (begun / "evaluations.jsonl").unlink()
    manifest = (begun / "manifest.yaml").read_text()
    (begun / "manifest.yaml").write_text(re.sub(r"(?s)  facts:.*", "  facts: {}\n", manifest))
    page = Page(report(ReportArguments(runs=(part / "ticket", part / "dense"), out=tmp_path / "out")))
    states = {row[0]: row[4:] for row in page.rows if len(row) == 16}
    assert states["ticket/round-1"][0] == "finished"
    assert states["ticket/round-2"][:3] == ["unfinished", "3,000", "187"]
    assert states["ticket/round-2-dense"] == ["unfinished", *[""] * 11]
    assert "Unfinished:" in page.text
    assert page.rows_of("reach-v3", "ticket round 2", "0 of 1")


def test_nothing_finished_is_a_page_too(study, tmp_path):
    dense = shutil.copytree(study / "reach-v3" / "seed-0" / "dense", tmp_path / "dense")
    (dense / "summary.json").unlink()
    assert "No run is finished, so nothing was timed." in Page(report(ReportArguments(runs=(dense,)))).text


def spoiled(study, tmp_path, what):
    part = shutil.copytree(study / "reach-v3" / "seed-0", tmp_path / "part")
    if what == "artifact":
        file = part / "ticket" / "round-1" / "artifacts" / "final.npz"
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    elif what == "manifest":
        file = part / "dense" / "manifest.yaml"
        file.write_text(file.read_text().replace("seed: 0", "seed: 7", 1))
    elif what == "evaluations":
        (part / "dense" / "evaluations.jsonl").write_text("no rows\n")
    elif what == "gone":
        (part / "ticket" / "round-2" / "artifacts" / "final.npz").unlink()
    return part


@pytest.mark.parametrize("what", ["artifact", "manifest", "evaluations", "gone"])
def test_a_folder_that_was_changed_is_an_error_and_nothing_is_written(study, tmp_path, what):
    part = spoiled(study, tmp_path, what)
    with pytest.raises(ConfigError):
        report(ReportArguments(runs=(part / "dense", part / "ticket"), out=tmp_path / "out"))
    assert {path.name for path in tmp_path.iterdir()} == {"part"}
    assert not (part / "dense" / "report").exists()


def test_all_bad_folders_are_named_and_the_command_ends_with_2(tmp_path):
    (tmp_path / "empty").mkdir()
    names = [str(tmp_path / name) for name in ("empty", "absent")]
    done = subprocess.run(
        [sys.executable, "-m", "trainers.report", *names], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert all(f"'{name}' is no run folder" in done.stderr for name in names)
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


def test_an_old_picture_that_cannot_be_removed_is_named(study, tmp_path):
    dense, out = study / "reach-v3" / "seed-0" / "dense", tmp_path / "out"
    report(ReportArguments(runs=(dense,), out=out))
    (out / "figure-old.png").mkdir()
    with pytest.raises(ConfigError, match=r"figure-old\.png' cannot be removed"):
        report(ReportArguments(runs=(dense,), out=out))


def test_other_peoples_folders_are_left_alone(study, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    for out in (tmp_path, tmp_path / "mine.txt" / "report"):
        with pytest.raises(ConfigError):
            report(ReportArguments(runs=(study / "reach-v3" / "seed-0" / "dense",), out=out))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(ConfigError, match="at least one"):
        report(ReportArguments(runs=(), out=tmp_path / "out"))
