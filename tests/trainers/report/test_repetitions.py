"""Which runs a report takes for repetitions of each other."""

import shutil

from support import studies
from support.page import Page

from trainers.report.__main__ import ReportArguments, report
from trainers.report.repetitions import repetitions
from trainers.store import reader
from trainers.store.reader import load


def test_other_settings_are_another_group(study, tmp_path, monkeypatch):
    other = studies.study(monkeypatch, tmp_path / "other", "--stage", "dense", "--algorithm.discount", "0.8")
    runs, _ = load([study / "reach-v3" / "seed-0" / "dense", study / "reach-v3" / "seed-1" / "dense", other])
    groups = repetitions(runs)
    assert [len(each.runs) for each in groups] == [2, 1]
    assert len({each.label for each in groups}) == 2


def one_group(paths, label):
    (found,) = (each for each in repetitions(load(paths)[0]) if each.label.startswith(label))
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
    groups = [each for each in repetitions(runs) if "mask-only" in each.label]
    assert [[run.seed for run in each.runs] for each in groups] == [[1], [2]]
    assert len({each.label for each in groups}) == 2
    # With or without controls, and wherever it lies, a ticket of the same settings is the same.
    again = studies.study(
        *(monkeypatch, tmp_path / "again", "--stage", "transfer", "--from", str(part / "ticket")),
        *("--env", "push-v3", "--seed", "2"),
    )
    assert len(one_group([transfers[0], again], "from reach-v3: mask-only").runs) == 2

    flags = ("--stage", "dense", "--algorithm.discount", "0.8", "--seed", "1")
    dense = studies.study(monkeypatch, tmp_path / "dense", *flags)
    flags = ("--stage", "ticket", "--from", str(dense), "--algorithm.discount", "0.99", "--prune.rate", "0.6")
    ticket = studies.study(monkeypatch, tmp_path / "ticket", *flags)
    groups = [each for each in repetitions(load([same, ticket])[0]) if "round 1" in each.label]
    assert [len(each.runs) for each in groups] == [1, 1]


def test_a_ticket_whose_dense_run_is_gone_is_a_repetition_without_a_level(study, tmp_path, monkeypatch):
    for seed in (0, 1):
        shutil.copytree(study / "reach-v3" / f"seed-{seed}" / "ticket", tmp_path / f"ticket-{seed}")
    with monkeypatch.context() as patch:
        patch.setattr(reader, "find_source", lambda *_: None)
        found = one_group([tmp_path / "ticket-0", tmp_path / "ticket-1"], "ticket round 1")
    assert len(found.runs) == 2
    assert [run.dense for run in found.runs] == [None, None]
    there = one_group([study / "reach-v3" / f"seed-{seed}" / "ticket" for seed in (0, 1)], "ticket round 1")
    assert [run.dense["seed"] for run in there.runs] == [0, 1]


def test_another_run_of_the_same_seed_is_no_further_seed(study, tmp_path):
    first, second = (study / "reach-v3" / f"seed-{seed}" / "dense" for seed in (0, 1))
    unfinished = shutil.copytree(first, tmp_path / "unfinished")
    (unfinished / "summary.json").unlink()
    again = shutil.copytree(first, tmp_path / "again")
    found = one_group([unfinished, first, again, second], "dense")
    assert [run.path for run in found.runs] == [first, second]
    assert [run.path for run in found.repeated] == [unfinished, again]
    assert len(found.runs) == 2
    page = Page(report(ReportArguments(runs=(unfinished, first, again, second), out=tmp_path / "out")))
    assert page.rows_of("reach-v3", "dense", "2 of 2")
    assert "another run has the same settings and the same seed" in page.text
    assert f"{again} (dense, seed 0)" in page.text
