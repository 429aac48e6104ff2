"""The index of a study: every run in it, found again wherever the study lies, and never half a line."""

import json
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from support import studies
from support.disk import full_disk
from support.files import contents

from fastcollect.support.errors import ConfigError
from trainers import command
from trainers.store import index, reader
from trainers.store.folder import RunFolder
from trainers.store.identity import Identity
from trainers.store.index import root_of
from trainers.store.manifest import read_identity
from trainers.study import stages

ROOT = Path(__file__).resolve().parents[3]
FLAGS = ("--stage", "all", "--tasks", "reach-v3", "--targets", "push-v3", "--seeds", "0", "--controls")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        path = tmp_path_factory.mktemp("index") / "study"
        return studies.study(monkeypatch, path, *FLAGS, "--prune.rate", "0.6")


@pytest.fixture
def moved(study, tmp_path):
    """The study at another place; nothing is left where it was made."""
    there = tmp_path / "far" / "away"
    shutil.copytree(study, there)
    hidden = study.rename(study.parent / "hidden")
    yield there
    hidden.rename(study)


def error_of(function, *args):
    with pytest.raises(ConfigError) as caught:
        function(*args)
    (problem,) = caught.value.problems
    return problem


def run(path, kind="dense", parent=None, **config):
    return RunFolder.create(path, Identity(kind=kind, config=config), ["test"], parent=parent, resume=True)


def test_the_index_has_every_run_once_with_what_it_is(study):
    entries = index.entries(study)
    part = "reach-v3/seed-0"
    assert [each.path for each in entries] == [
        *(".", f"{part}/dense", f"{part}/ticket", f"{part}/ticket/round-1", f"{part}/ticket/round-2"),
        *(f"{part}/ticket/round-2-{name}" for name in ("permuted-weights", "permuted-mask")),
        *(f"{part}/ticket/round-2-{name}" for name in ("random-mask-anchor", "random-mask-fresh-actor")),
        *(f"{part}/ticket/round-2-{name}" for name in ("random-mask", "dense")),
        *("push-v3/seed-0/dense", f"{part}/transfer-push-v3"),
        *(f"{part}/transfer-push-v3/{name}" for name in ("mask-anchor", "anchor-dense", "mask-only")),
        *(f"{part}/transfer-push-v3/{name}" for name in ("dense-finetuned", "final-fresh-critic")),
        f"{part}/transfer-push-v3/random-mask",
    ]
    assert all(each.finished for each in entries)
    assert len({each.config_hash for each in entries}) == len(entries)
    kinds = [(each.kind, each.name, each.round) for each in entries]
    assert kinds[:5] == [
        *(("study", "", 0), ("dense", "", 0), ("ticket", "", 0), ("round", "", 1), ("round", "", 2)),
    ]
    assert kinds[5] == ("control", "permuted-weights", 2)
    assert kinds[-1] == ("variant", "random-mask", 0)
    assert [each.env for each in entries[-8:]] == ["push-v3"] * 8
    assert {*index.scan(study)} == {*entries}


def test_every_entry_and_every_source_is_found_again_after_a_move(moved):
    entries = index.entries(moved)
    assert len(entries) == 19
    found = {}
    for each in entries:
        identity, manifest = read_identity(moved / each.path)
        assert manifest["config_hash"] == each.config_hash
        assert root_of(moved / each.path) == moved
        for source in identity.sources:
            there = reader.find_source(moved / each.path, source)
            assert reader.identify(there)[1]["config_hash"] == source.config_hash
            assert there.is_relative_to(moved)
            found.setdefault(identity.kind, set()).add(source.role)
    drawn, transferred = {"dense"}, {"dense", "ticket"}
    assert found == {
        **dict.fromkeys(("ticket", "round", "control"), drawn),
        **dict.fromkeys(("transfer", "variant"), transferred),
    }
    runs, containers = reader.load([moved])
    assert (len(runs), len(containers)) == (16, 3)
    assert all(run.dense is not None for run in runs if run.kind in ("round", "control"))


def test_a_source_that_was_renamed_is_found_by_its_hash(moved):
    (moved / "reach-v3" / "seed-0" / "dense").rename(moved / "other")
    index.rebuild(moved)
    ticket = moved / "reach-v3" / "seed-0" / "ticket"
    source = read_identity(ticket)[0].source("dense")
    assert reader.find_source(ticket, source) == moved / "other"


def test_a_moved_study_goes_on_where_it_was(moved, monkeypatch):
    part = moved / "reach-v3" / "seed-0"
    for unfinished in (moved, part / "transfer-push-v3", part / "ticket"):
        (unfinished / "summary.json").unlink()
    shutil.rmtree(part / "transfer-push-v3" / "random-mask")
    began = []

    def train(folder, *args, **kwargs):
        began.append(folder.path.name)
        return studies.fake_train(folder, *args, **kwargs)

    monkeypatch.setattr(stages, "train", train)
    command.main([*studies.FLAGS, *FLAGS, "--prune.rate", "0.6", "--run", str(moved)])
    assert began == ["random-mask"]
    assert all(each.finished for each in index.entries(moved))


def test_a_part_that_was_copied_out_is_read_without_an_index(study, tmp_path):
    part = shutil.copytree(study / "reach-v3" / "seed-0" / "ticket", tmp_path / "ticket")
    before = contents(part)
    runs, containers = reader.load([part])
    names = ("random-mask-anchor", "random-mask-fresh-actor", "random-mask", "dense")
    names = ("permuted-weights", "permuted-mask", *names)
    labels = {"ticket round 1", "ticket round 2", *(f"round 2 {name}" for name in names)}
    assert ({run.label for run in runs}, len(runs)) == (labels, 8)
    assert [each.kind for each in containers] == ["ticket"]
    assert contents(part) == before
    # Inside another study, which knows nothing of it, it is found too.
    inner = tmp_path / "study"
    run(inner, "study").close()
    shutil.copytree(part, inner / "a" / "b" / "ticket")
    assert len(reader.load([inner / "a" / "b" / "ticket"])[0]) == 8


def test_an_entry_says_when_its_run_is_finished(tmp_path):
    with run(tmp_path / "study", "study") as root:
        with run(tmp_path / "study" / "a", parent=root, seed=3, env="x") as inner:
            assert [(each.path, each.finished) for each in index.entries(root.path)] == [
                (".", False),
                ("a", False),
            ]
            inner.write_summary({"done": 1})
        assert [each.finished for each in index.entries(root.path)] == [False, True]
        assert (index.entries(root.path)[1].seed, index.entries(root.path)[1].env) == (3, "x")
    assert not (tmp_path / "study" / "a" / "index.jsonl").exists()


def test_a_run_inside_a_study_that_is_opened_by_itself_is_in_the_studys_index(tmp_path):
    with run(tmp_path / "study", "study") as root:
        run(tmp_path / "study" / "a", parent=root).close()
    with run(tmp_path / "study" / "a") as alone:
        assert alone.root == tmp_path / "study"
        alone.write_summary({"done": 1})
    assert [each.finished for each in index.entries(tmp_path / "study")] == [False, True]


@pytest.mark.parametrize(
    "content", [None, b"", b"no line\n", b'{"path": "."}\n', b"\xff\n", b"[" * 10**5 + b"\n"]
)
def test_an_index_that_is_gone_or_damaged_is_written_anew(content, tmp_path):
    with run(tmp_path / "study", "study") as root:
        run(tmp_path / "study" / "a", parent=root).close()
    file = tmp_path / "study" / "index.jsonl"
    good = index.entries(file.parent)
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    run(tmp_path / "study", "study").close()
    assert index.entries(file.parent) == good


def line(**changes):
    entry = {"path": "a", "config_hash": "0", "kind": "dense", "name": "", "round": 0, "env": "", "seed": 0}
    return json.dumps({**entry, "finished": False, **changes})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[1]",
        "{",
        line(path="../a"),
        line(path="/a"),
        line(path="a/../../b"),
        line(path=5),
        line(path="a\0"),
        line(kind="other"),
        line(seed=True),
        line(finished=0),
        line(more=1),
        line().replace('"round": 0, ', ""),
    ],
)
def test_a_line_that_is_no_entry_is_one_error_that_says_what_to_do(text, tmp_path):
    file = tmp_path / "index.jsonl"
    file.write_text(f"{line()}\n{text}\n")
    problem = error_of(index.entries, tmp_path)
    assert problem.startswith(f"{str(file)!r}, line 2 is no entry: ")
    assert problem.endswith("remove the file, and the manifests are searched instead")


def test_an_index_that_cannot_be_read_is_an_error_of_the_run_that_begins(tmp_path):
    (tmp_path / "index.jsonl").mkdir()
    with pytest.raises(ConfigError, match=r"index\.jsonl' cannot be read"):
        index.add(tmp_path, index.Entry(**json.loads(line())))


def test_the_last_line_of_a_path_counts_and_a_cut_off_one_does_not(tmp_path):
    file = tmp_path / "index.jsonl"
    cut_off = line(path="c")[:30]
    file.write_text(f"{line()}\n{line(path='b')}\n{line(finished=True)}\n{cut_off}")
    assert [(each.path, each.finished) for each in index.entries(tmp_path)] == [("a", True), ("b", False)]
    index.add(tmp_path, index.entries(tmp_path)[1])
    assert [each.path for each in index.entries(tmp_path)] == ["a", "b"]
    assert cut_off not in file.read_text()


def test_a_full_disk_leaves_the_index_and_the_folder_as_they_were(tmp_path):
    with run(tmp_path / "study", "study") as root:
        before = contents(tmp_path)
        with full_disk():
            assert "index.jsonl" in error_of(index.add, root.path, index.entries(root.path)[0])
            with pytest.raises(ConfigError):
                run(tmp_path / "study" / "a", parent=root)
        assert contents(tmp_path) == before
        assert not (tmp_path / "study" / "a").exists()


ADDER = """
    import sys
    from dataclasses import replace
    from pathlib import Path
    from trainers.store import index

    root, name = Path(sys.argv[1]), sys.argv[2]
    one = index.entries(root)[0]
    print("begun", flush=True)
    for seed in range(300):
        index.add(root, replace(one, path=f"{name}-{seed}", seed=seed))
"""


def test_several_writers_and_one_that_is_killed_lose_no_line(tmp_path):
    run(tmp_path / "study", "study").close()
    command = [sys.executable, "-c", textwrap.dedent(ADDER), str(tmp_path / "study")]
    writers = [
        subprocess.Popen([*command, name], cwd=ROOT, stdout=subprocess.PIPE) for name in ("a", "b", "killed")
    ]
    assert all(writer.stdout.readline() == b"begun\n" for writer in writers)
    writers[2].send_signal(signal.SIGKILL)
    assert [writer.wait(60) for writer in writers] == [0, 0, -signal.SIGKILL]
    for writer in writers:
        writer.stdout.close()
    paths = [each.path for each in index.entries(tmp_path / "study")]
    assert {f"{name}-{seed}" for name in "ab" for seed in range(300)} <= {*paths}


@pytest.mark.parametrize("parent", ["a/..", "/", "../..", "", 5, ["x"]])
def test_a_parent_that_is_none_makes_a_run_its_own_root(parent, tmp_path):
    run(tmp_path / "a" / "b").close()
    file = tmp_path / "a" / "b" / "manifest.yaml"
    file.write_text(file.read_text().replace("parent: null", f"parent: {json.dumps(parent)}"))
    assert root_of(tmp_path / "a" / "b") == tmp_path / "a" / "b"
