"""Run folders: one process, one configuration, a manifest that can be given back, nothing half made."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import yaml
from support.disk import full_disk
from support.run_folders import CONFIG, create, error_of, identity

from trainers.config.defaults import VERSION
from trainers.run import metrics
from trainers.store import artifacts
from trainers.store import folder as run_folder
from trainers.store.folder import RunFolder
from trainers.store.manifest import read_config, read_identity, read_manifest, read_summary

ROOT = Path(__file__).resolve().parents[3]


def test_the_manifest_is_the_configuration_with_its_provenance(tmp_path):
    with create(tmp_path / "run") as run:
        content = yaml.safe_load((run.path / "manifest.yaml").read_text())
        manifest = content.pop("manifest")
        assert content == CONFIG
        assert manifest == read_manifest(run.path)
        assert manifest["config_hash"] == run.config_hash == identity().hash()
        assert manifest["run"] == {"kind": "dense", "name": "", "round": 0, "env": "reach-v3", "seed": 1}
        assert (manifest["defaults"], manifest["sources"], manifest["parent"]) == (VERSION, [], None)
        assert manifest["command"] == "python train.py --env-kwargs 'a=b c'"
        assert manifest["started"].endswith("+00:00")
        assert {"cpu", "versions", "commit"} <= manifest["machine"].keys()
        assert read_config(run.path) == run.identity.config == CONFIG


@pytest.mark.parametrize("value", [object(), {1, 2}, Path("x"), {(1, 2): 3}, float])
def test_what_is_not_plain_is_refused_before_anything_is_made(tmp_path, value):
    assert "not plain data" in error_of(identity({"a": value}).hash)
    assert "not plain data" in error_of(create, tmp_path / "run", {"a": value})
    assert list(tmp_path.iterdir()) == []


def test_a_configuration_that_holds_itself_is_refused(tmp_path):
    config = {}
    config["a"] = config
    assert "not plain data" in error_of(create, tmp_path / "run", config)


def test_the_reserved_key_is_refused(tmp_path):
    assert "'manifest'" in error_of(create, tmp_path / "run", {"manifest": 1})


def test_facts_are_added_and_replaced(tmp_path):
    with create(tmp_path / "run") as run:
        run.annotate(rewind={"actor": "anchor", "replay": "empty"}, kept={"actor/0": np.int64(5)})
        run.annotate(kept={"actor/0": np.arange(2)}, loss=float("nan"))
        expected = {
            "rewind": {"actor": "anchor", "replay": "empty"},
            "kept": {"actor/0": [0, 1]},
            "loss": None,
        }
        assert read_manifest(run.path)["facts"] == expected
        assert "not plain data" in error_of(run.annotate, bad=object())
        with full_disk():
            assert "manifest.yaml" in error_of(run.annotate, more=1)
        assert read_manifest(run.path)["facts"] == expected
        assert read_config(run.path) == CONFIG
    with create(tmp_path / "run", resume=True) as run:
        run.annotate(more=1)
        assert read_manifest(run.path)["facts"] == {**expected, "more": 1}


def test_a_folder_that_explains_itself(tmp_path):
    with create(tmp_path / "run") as run, metrics.MetricsWriter(run.path) as writer:
        writer.write_metrics({"env_steps": 1, "updates": 0, "wall_seconds": 0.1})
        artifacts.save(run.path, "dense", {"x": 1}, config_hash=run.config_hash)
        run.write_summary({"success": 1.0})
        text = (run.path / "README.md").read_text()
        assert "# run\n" in text
        assert "a=b c" in text
        names = {path.name for path in run.path.iterdir()} - {"README.md"}
        assert len(names) == 8
        names.add("checkpoints")
        for name in names:
            assert f"`{name}`" in text or f"`{name}/" in text


def test_a_summary_makes_a_run_finished(tmp_path):
    with create(tmp_path / "run") as run:
        assert not run.finished()
        assert "not finished" in error_of(read_summary, run.path)
        with full_disk():
            assert "summary.json" in error_of(run.write_summary, {"success": 1})
        assert not run.finished()
        run.write_summary({"success": np.float32(0.5), "per_goal": np.ones(2), "worst": float("-inf")})
        assert run.finished()
        assert read_summary(run.path) == {"success": 0.5, "per_goal": [1.0, 1.0], "worst": None}
    before = (tmp_path / "run" / "manifest.yaml").read_bytes()
    for resume in (False, True):
        with create(tmp_path / "run", resume=resume) as run:
            assert run.finished()
    assert (tmp_path / "run" / "manifest.yaml").read_bytes() == before


def checkpoint_in(path):
    (path / "checkpoints" / "20" / "arrays").mkdir(parents=True)
    (path / "checkpoints" / "20" / "arrays" / "data").write_bytes(b"x" * 1000)


def test_a_finished_run_has_no_checkpoints(tmp_path, monkeypatch):
    removed, really = [], shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", lambda *args, **kwargs: removed.append(run.finished()))
    with create(tmp_path / "run") as run:
        checkpoint_in(run.path)
        with full_disk():
            assert "summary.json" in error_of(run.write_summary, {"success": 1})
        assert removed == []
        run.write_summary({"success": 1})
    assert removed == [True]  # not before the summary is there
    # As after a process that ended between the two.
    assert (tmp_path / "run" / "checkpoints" / "20").exists()
    monkeypatch.setattr(shutil, "rmtree", really)
    create(tmp_path / "run").close()
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert read_summary(tmp_path / "run") == {"success": 1}


def test_an_unfinished_run_keeps_its_checkpoints(tmp_path):
    with create(tmp_path / "run") as run:
        checkpoint_in(run.path)
    create(tmp_path / "run", resume=True).close()
    assert (tmp_path / "run" / "checkpoints" / "20" / "arrays" / "data").exists()


def test_an_unfinished_run_needs_resume_and_remembers_it(tmp_path):
    with create(tmp_path / "run") as run:
        run.annotate(kept=5)
        first = read_manifest(run.path)
    assert "--resume" in error_of(create, tmp_path / "run")
    (tmp_path / "run" / "README.md").unlink()
    with RunFolder.create(tmp_path / "run", identity(), ["again"], resume=True) as run:
        resumed = read_manifest(run.path)
        (entry,) = resumed.pop("resumed")
        assert entry["command"] == "again"
        assert {**resumed, "resumed": []} == first
        assert resumed["facts"] == {"kept": 5}
        assert (run.path / "README.md").exists()


def test_resume_of_nothing_is_a_new_run(tmp_path):
    with create(tmp_path / "deep" / "run", resume=True) as run:
        assert read_manifest(run.path)["resumed"] == []


HOLDER = """
    import sys, time
    from trainers.store.folder import RunFolder
    from trainers.store.identity import Identity

    run = RunFolder.create(sys.argv[1], Identity(kind="dense", config={"a": 1}), ["holder"])
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_folder_in_use_is_refused_until_its_process_is_killed(tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-c", textwrap.dedent(HOLDER), str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout.readline() == b"held\n"
            before = sorted(folder.iterdir())
            problem = error_of(create, folder, {"a": 1}, resume=True)
            assert f"is in use by process {holder.pid}" in problem
            assert sorted(folder.iterdir()) == before
            assert read_config(folder) == {"a": 1}  # reading needs no lock
        finally:
            holder.send_signal(signal.SIGKILL)
    with create(folder, {"a": 1}, resume=True):
        assert f"is in use by process {os.getpid()}" in error_of(create, folder, {"a": 1})
    create(folder, {"a": 1}, resume=True).close()


def test_a_child_does_not_hold_the_folder_for_its_parent(tmp_path):
    run = create(tmp_path / "run")
    code = "print('up', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, close_fds=False
    ) as child:
        assert child.stdout.readline() == b"up\n"  # by now it has closed what it must not inherit
        run.close()
        create(tmp_path / "run", resume=True).close()
        child.communicate(b"\n")


def test_closing_twice_closes_nothing_else(tmp_path):
    run = create(tmp_path / "run")
    run.close()
    with open(tmp_path / "other", "w") as other:  # may get the same descriptor
        run.close()
        other.write("x")


@pytest.mark.parametrize("parent", ["file", "proc"])
def test_a_folder_that_cannot_be_made_is_one_error(tmp_path, parent):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "a" / "run" if parent == "file" else Path("/proc/a/run")
    assert f"run folder {str(path)!r} cannot be written: " in error_of(create, path)
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_a_file_in_the_folders_place_is_one_error(tmp_path):
    (tmp_path / "run").write_text("mine")
    assert str(tmp_path / "run") in error_of(create, tmp_path / "run")
    assert (tmp_path / "run").read_text() == "mine"


NOBODY = """
    import os, sys
    from fastcollect.support.command import run
    from trainers.store.folder import RunFolder
    from trainers.store.identity import Identity

    identity = Identity(kind="dense", config={"a": 1})
    RunFolder.create(sys.argv[1] + "/first", identity, ["x"]).close()
    os.chmod(sys.argv[1], 0o555)
    if os.geteuid() == 0:
        os.setuid(65534)
    run(lambda: RunFolder.create(sys.argv[1] + "/deep/run", identity, ["x"]))
"""


def test_a_parent_without_permission_ends_with_2(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(NOBODY), str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    os.chmod(tmp_path, 0o755)
    assert done.returncode == 2, done.stderr
    assert done.stderr == f"error: run folder '{tmp_path}/deep/run' cannot be written: Permission denied\n"
    assert [path.name for path in tmp_path.iterdir()] == ["first"]


def test_a_full_disk_leaves_nothing_behind(tmp_path):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "deep" / "run", tmp_path / "empty"):
        with full_disk():
            assert "cannot be written" in error_of(create, path)
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


@pytest.mark.parametrize("failing", ["manifest.yaml", "README.md"])
def test_a_creation_that_fails_late_leaves_nothing_behind(tmp_path, monkeypatch, failing):
    replace = os.replace

    def fail(source, target):
        if Path(target).name == failing:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        create(tmp_path / "deep" / "run")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    create(tmp_path / "deep" / "run").close()


def test_other_peoples_files_are_left_alone(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    assert "no manifest.yaml, but other files" in error_of(create, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    assert (tmp_path / "README.md").read_text() == "mine"
    assert "is no run folder" in error_of(read_identity, tmp_path)
    assert "manifest.yaml" in error_of(read_config, tmp_path)


def test_what_a_killed_creation_left_is_no_obstacle(tmp_path):
    (tmp_path / ".lock").write_text("123\n")
    (tmp_path / ".manifest.yaml.tmp").write_text("a: ")
    create(tmp_path).close()
    assert read_config(tmp_path) == CONFIG


@pytest.mark.parametrize("made_again", [False, True])
def test_a_lock_file_that_was_taken_away_while_it_was_opened_is_no_lock(tmp_path, monkeypatch, made_again):
    flock, file = run_folder.fcntl.flock, tmp_path / "run" / ".lock"

    def lose(fd, how):
        file.unlink()
        if made_again:
            file.write_text("5\n")
        flock(fd, how)

    monkeypatch.setattr(run_folder.fcntl, "flock", lose)
    assert "is in use by process" in error_of(create, tmp_path / "run")
    assert list(tmp_path.rglob(".lock")) == [file] * made_again
