"""The report: one page that stands alone, its numbers those of the runs, nothing claimed beyond them."""

import base64
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from support import studies

from engine.sparse import masks as mask_functions
from fastcollect.support.errors import ConfigError
from trainers import command, export
from trainers.report import film, numbers, sections
from trainers.report.__main__ import ReportArguments, report
from trainers.store import artifacts
from trainers.store import reader as run_reader
from trainers.store.reader import group, load

ROOT = Path(__file__).resolve().parents[2]
ODD = 'a<b>&"study'
SMALL = ("--algorithm.hidden", "8", "--algorithm.batch-size", "8", "--collect.n", "2", "--collect.N", "1")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two tickets of two rounds with controls, from reach to push, and both tasks' dense runs."""
    path = tmp_path_factory.mktemp("report") / ODD
    with pytest.MonkeyPatch.context() as monkeypatch:
        flags = ("--stage", "all", "--tasks", "reach-v3", "--targets", "push-v3", "--seeds", "0", "1")
        return studies.study(monkeypatch, path, *flags, "--controls", "--prune.rate", "0.6")


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(export, "_ROUNDS", 1)
    monkeypatch.setattr(sections, "film", lambda *_: film.Film(None, "No episode: not here."))


class Page(HTMLParser):
    """What a page shows: its text, its pictures, its addresses, its open tags."""

    def __init__(self, file):
        super().__init__()
        self.texts, self.sources, self.addresses, self.open = [], [], [], []
        self.rows, self._void = [], ("meta", "img", "br")
        self.feed(file.read_text())
        self.text = " ".join(" ".join(self.texts).split())
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        assert tag not in ("script", "link", "iframe", "object")
        if tag not in self._void:
            self.open.append(tag)
        self.sources += [attrs["src"]] if "src" in attrs else []
        self.addresses += [attrs["href"]] if "href" in attrs else []
        if tag == "tr":
            self.rows.append([])
        if tag == "td":
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        if self.open and self.open[-1] == "td":
            self.rows[-1][-1] += data

    def rows_of(self, *cells):
        return [row for row in self.rows if row[: len(cells)] == list(cells)]


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
    assert len(runs) == 2 * (1 + 2 + 4 + 1 + 4)
    assert list(dict.fromkeys(run.env for run in runs)) == ["reach-v3", "push-v3"]
    for run in runs:
        (row,) = page.rows_of(str(run.path.relative_to(study)))
        mask = artifacts.load(run.path, "mask").arrays if any(map(len, run.masks.values())) else {}
        leaves = [int(mask[f"actor/kernel_{i}"].sum()) for i in range(3)] if mask else []
        total = sum(leaves) if mask else 39 * 8 + 8 * 6 + 6 * 8
        layers = f": {' + '.join(map(str, leaves))}" if mask else ""
        assert f"{total} of 408{layers}" in row
        assert row[1:5] == [run.env, run.label, str(run.seed), "finished"]


def test_results_are_means_with_their_extremes(whole):
    page = Page(whole)
    # Seeds 0 and 1 end at 0.3 and 0.5; half of it at the last step.
    (row,) = page.rows_of("reach-v3", "ticket round 2", "2 of 2")
    assert row[3:6] == ["0.40 (0.30 to 0.50)", "0.20 (0.15 to 0.25)", "400 (300 to 500)"]
    assert row[6] == f"{1 - (408 - round(0.8 * 408)) / 408:.3f}"
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
    runs, folders = load([study, part / "ticket", part / "ticket" / "round-1", part / "dense"])
    assert len(runs) == 24
    assert [folder.stage for folder in folders] == ["all", "ticket", "transfer", "ticket", "transfer"]
    (alone,), _ = load([part / "ticket" / "round-2-random-mask"])
    assert alone.label == "round 2 random-mask"


def test_other_settings_are_another_group(study, tmp_path, monkeypatch):
    other = studies.study(monkeypatch, tmp_path / "other", "--stage", "dense", "--algorithm.discount", "0.9")
    runs, _ = load([study / "reach-v3" / "seed-0" / "dense", study / "reach-v3" / "seed-1" / "dense", other])
    groups = group(runs)
    assert [len(each.runs) for each in groups] == [2, 1]
    assert len({each.label for each in groups}) == 2


def one_group(paths, label):
    (found,) = (each for each in group(load(paths)[0]) if each.label.startswith(label))
    return found


def test_other_settings_of_what_a_run_begins_from_are_another_group(study, tmp_path, monkeypatch):
    """Transfers of another ticket, and tickets of another dense run, are no further seeds."""
    part = study / "reach-v3" / "seed-0"
    same, other = (
        studies.study(
            *(monkeypatch, tmp_path / name, "--stage", "ticket", "--from", str(part / "dense")),
            *("--prune.rate", rate, *(["--controls"] if name == "other" else [])),
        )
        for name, rate in (("same", "0.6"), ("other", "0.8"))
    )
    transfers = [
        studies.study(
            *(monkeypatch, tmp_path / f"transfer-{ticket.name}", "--stage", "transfer"),
            *("--from", str(ticket), "--env", "push-v3", "--seed", str(seed)),
        )
        for seed, ticket in ((1, same), (2, other))
    ]
    runs, _ = load(transfers)
    groups = [each for each in group(runs) if "mask-only" in each.label]
    assert [[run.seed for run in each.runs] for each in groups] == [[1], [2]]
    assert len({each.label for each in groups}) == 2
    # With or without controls, and wherever it lies, a ticket of the same settings is the same.
    again = studies.study(
        *(monkeypatch, tmp_path / "again", "--stage", "transfer", "--from", str(part / "ticket")),
        *("--env", "push-v3", "--seed", "2"),
    )
    assert one_group([transfers[0], again], "from reach-v3: mask-only").seeds() == "2 seeds"

    flags = ("--stage", "dense", "--algorithm.discount", "0.9", "--seed", "1")
    dense = studies.study(monkeypatch, tmp_path / "dense", *flags)
    flags = ("--stage", "ticket", "--from", str(dense), "--algorithm.discount", "0.99", "--prune.rate", "0.6")
    ticket = studies.study(monkeypatch, tmp_path / "ticket", *flags)
    groups = [each for each in group(load([same, ticket])[0]) if "round 1" in each.label]
    assert [len(each.runs) for each in groups] == [1, 1]


def test_a_ticket_whose_dense_run_is_gone_is_in_no_mean(study, tmp_path, monkeypatch):
    for seed in (0, 1):
        shutil.copytree(study / "reach-v3" / f"seed-{seed}" / "ticket", tmp_path / f"ticket-{seed}")
    paths = [tmp_path / "ticket-0", tmp_path / "ticket-1"]
    assert one_group(paths, "ticket round 1").seeds() == "2 seeds"
    monkeypatch.setattr(run_reader, "find_source", lambda *_: None)
    assert [len(each.runs) for each in group(load(paths)[0]) if each.label.startswith("ticket round 1")] == [
        1,
        1,
    ]


def test_another_run_of_the_same_seed_is_no_further_seed(study, tmp_path):
    first, second = (study / "reach-v3" / f"seed-{seed}" / "dense" for seed in (0, 1))
    unfinished = shutil.copytree(first, tmp_path / "unfinished")
    (unfinished / "summary.json").unlink()
    again = shutil.copytree(first, tmp_path / "again")
    found = one_group([unfinished, first, again, second], "dense")
    assert [run.path for run in found.runs] == [first, second]
    assert [run.path for run in found.repeated] == [unfinished, again]
    assert found.seeds() == "2 seeds"
    page = Page(report(ReportArguments(runs=(unfinished, first, again, second), out=tmp_path / "out")))
    assert page.rows_of("reach-v3", "dense", "2 of 2")
    assert "another run has the same settings and the same seed" in page.text
    assert f"{again} (dense, seed 0)" in page.text


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
        file = part / "ticket" / "round-1" / "artifacts" / "mask.npz"
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


def test_other_peoples_folders_are_left_alone(study, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    for out in (tmp_path, tmp_path / "mine.txt" / "report"):
        with pytest.raises(ConfigError):
            report(ReportArguments(runs=(study / "reach-v3" / "seed-0" / "dense",), out=out))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(ConfigError, match="at least one"):
        report(ReportArguments(runs=(), out=tmp_path / "out"))


# Numbers.


def test_expected_overlap_is_that_of_every_pair_of_sets():
    for size, first, second in ((5, 2, 3), (6, 6, 1), (4, 0, 2), (6, 4, 5), (3, 0, 0)):
        sets = [[set(chosen) for chosen in itertools.combinations(range(size), k)] for k in (first, second)]
        found = [len(a & b) / len(a | b) if a | b else 1.0 for a, b in itertools.product(*sets)]
        assert numbers.expected_jaccard(size, first, second) == pytest.approx(np.mean(found))


def test_a_curve_is_a_mean_where_every_finished_run_has_values(study):
    runs, _ = load([study / "reach-v3" / f"seed-{seed}" / "dense" for seed in (0, 1)])
    found = numbers.curve(runs, "success_any")
    np.testing.assert_array_equal(found.steps, [0, 1000, 2000, 3000])
    np.testing.assert_allclose(found.mean, [0.1, 0.2, 0.3, 0.4])
    np.testing.assert_allclose(found.high - found.low, 0.2)
    shifted = [{**row, "env_steps": row["env_steps"] + 500} for row in runs[1].evaluations]
    later = run_reader.Run(**{**vars(runs[1]), "evaluations": shifted})
    found = numbers.curve([runs[0], later], "success_any")
    np.testing.assert_array_equal(found.steps, [500, 1000, 1500, 2000, 2500, 3000])
    np.testing.assert_allclose(found.mean, np.linspace(0.125, 0.375, 6))
    assert numbers.curve(runs, "success_first_step") is None


def test_masks_are_nested_and_a_revived_weight_shows(study):
    runs, _ = load([study / "reach-v3" / "seed-0" / "ticket"])
    (family,) = numbers.families(group(runs))
    assert numbers.nested(family) == {0: {2: True}}
    last = family.rounds[2].first
    pruned = np.argwhere(~family.rounds[1].first.masks["actor"]["kernel_0"])[0]
    last.masks["actor"]["kernel_0"][tuple(pruned)] = True
    assert numbers.nested(family) == {0: {2: False}}
    assert "Not nested in the round before: round 2 of seed 0." in sections.masks([family], {})


def test_constant_inputs_are_found_and_their_weights_left_out(study):
    runs, _ = load([study / "reach-v3" / "seed-1" / "ticket" / "round-2"])
    (run,) = runs
    assert np.flatnonzero(numbers.constant_inputs(run)).tolist() == list(studies.CONSTANT)
    mask = run.masks["actor"]
    idle = int(mask["kernel_0"][list(studies.CONSTANT)].sum())
    kept, size = mask_functions.counts(mask)[1] - idle, 408 - 14 * 8
    assert numbers.sparsity_without_constants(run, "actor") == (pytest.approx(1 - kept / size), idle)
    names = numbers.input_names("reach-v3", 43, 39)
    assert all("padding" in names[i] for i in studies.CONSTANT)
    assert (names[0], names[18], names[36], names[42]) == ("hand x", "previous hand x", "goal x", "action 4")
    assert numbers.input_names("Pendulum-v1", 3, 3) == [f"observation {i}" for i in range(3)]


# A real run, and a real film.


def test_what_training_writes_is_what_the_report_reads(tmp_path, monkeypatch):
    monkeypatch.setattr(sections, "film", film.film)
    steps = (
        "--env-steps",
        "600",
        "--start-steps",
        "100",
        "--anchor-steps",
        "200",
        "--evaluation.every",
        "300",
    )
    few = ("--evaluation.episodes", "2", "--updates-per-dispatch", "2")
    dense = tmp_path / "dense"
    flags = ["--env", "Pendulum-v1", *SMALL, *steps, *few, "--stage", "dense", "--run", str(dense)]
    command.train(command.parse(flags))
    page = Page(report(ReportArguments(runs=(dense,), out=tmp_path / "out")))
    assert page.rows_of("Pendulum-v1", "dense", "1 of 1")
    assert "no finished run of a Meta-World task" in page.text
    export.export(export.ExportArguments(run=dense, out=tmp_path / "actor.npz"))
    assert np.load(tmp_path / "actor.npz")["inputs"].tolist() == [0, 1, 2]


PICTURE = """
import mujoco

model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><geom size='1'/></worldbody></mujoco>")
renderer = mujoco.Renderer(model, 20, 20)
renderer.update_scene(mujoco.MjData(model))
renderer.render()
renderer.close()
"""


def can_draw(name, folder):
    """Whether MuJoCo draws with this library, in a process that has nothing of ours."""
    environment = {**os.environ, "MUJOCO_GL": name}
    environment.pop("PYOPENGL_PLATFORM", None)
    command = [sys.executable, "-c", PICTURE]
    return not subprocess.run(command, env=environment, cwd=folder, capture_output=True).returncode


def test_a_film_is_small_and_drawn_wherever_mujoco_draws(tmp_path):
    actor = {"kernel_0": np.zeros((39, 8), np.float32), "bias_0": np.zeros(8, np.float32)}
    able = [name for name in film.BACKENDS if can_draw(name, tmp_path)]
    name, reasons = film.backend()
    assert "ModuleNotFoundError" not in reasons
    assert name == (able[0] if able else None), reasons
    shown = film.film(actor, "reach-v3", {"goal_visible": False}, 3, 12)
    if not able:
        assert shown.gif is None
        assert all(f"{each}: " in shown.text for each in film.BACKENDS)
        return
    assert shown.gif.startswith(b"GIF8")
    assert len(shown.gif) < film.LARGEST_FILM
    assert "reach-v3, goal 3 of 50, 12 steps: no success" in shown.text


def test_without_a_renderer_there_is_a_reason(monkeypatch):
    monkeypatch.setattr(film, "_call", lambda *_: ("", "it crashed"))
    shown = film.film({}, "reach-v3", {}, 0, 5)
    assert shown.gif is None
    assert "cannot draw on this machine (egl: it crashed; osmesa: it crashed)" in shown.text
    assert "not for Pendulum-v1" in film.film({}, "Pendulum-v1", {}, 0, 5).text
    monkeypatch.undo()
    # A process that dies or hangs takes nothing with it; that one finds our packages, and no second argument.
    assert "IndexError" in film._call("egl", ["--no-such"], 60)[1]
    assert "no answer within 0 s" in film._call("egl", ["--probe"], 0.01)[1]
