"""The training command in real processes and in this one: how it ends, and what it leaves."""

import json
import os
import resource
import shutil
import signal
import time

import pytest
from support.disk import full_disk
from support.files import contents
from support.training import (
    FLAGS,
    artifact,
    assert_same,
    assert_same_run,
    end_all,
    one_launcher,
    processes_with,
    train_py,
)

from trainers.store.manifest import read_config, read_identity, read_manifest, read_summary
from trainers.study import stages
from trainers.study.controls import CONTROLS, VARIANTS

__all__ = ["one_launcher"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """What the processes of this file compiled; none of them outlives the file."""
    path = tmp_path_factory.mktemp("cache")
    yield path
    end_all(path)


def finish(process):
    """(Exit code, output) of a process that ends by itself."""
    output = process.communicate(timeout=100)[0]
    return process.returncode, output


# Real processes: a study.


@pytest.fixture(scope="module")
def study(tmp_path_factory, cache):
    """Folder of a dense run, a ticket with controls and a transfer, each a process of its own."""
    path = tmp_path_factory.mktemp("study")
    for name, flags in {
        "dense": FLAGS,
        "ticket": ("--prune.actor", "0.5", "--prune.rate", "0.5", "--controls", "--from", path / "dense"),
        "transfer": ("--from", path / "ticket", "--env-kwargs", "scale=2.0"),
    }.items():
        flags = (*flags, "--evaluation.every", "320") if name != "dense" else flags
        code, output = finish(train_py(cache, "--stage", name, *flags, "--run", path / name))
        assert code == 0, output
        assert str(path / name) in output
    assert processes_with(cache) == []
    return path


def test_a_study_leaves_results_and_where_they_came_from(study):
    for name in ("dense", "ticket", "transfer"):
        summary = json.loads((study / name / "summary.json").read_text())
        names = {"success_any", "success_last", "return_mean", "env_steps", "updates", "wall_seconds"}
        assert names <= summary.keys()
        assert (summary["env_steps"], summary["updates"]) == (320, 32)
        assert summary["density"] == {"actor": 1.0 if name == "dense" else 0.5, "critic": 1.0}
        manifest = read_manifest(study / name)
        assert manifest["config_hash"] == read_identity(study / name)[0].hash()
        assert manifest["command"].startswith(f"python train.py --stage {name}")
        assert {"versions", "cpu", "commit"} <= manifest["machine"].keys()
        assert manifest["run"]["kind"] == name
    rows = read_summary(study / "ticket")["rounds"]
    assert [row["name"] for row in rows] == ["ticket", *CONTROLS]
    assert [row["name"] for row in read_summary(study / "transfer")["variants"]] == list(VARIANTS)
    (source,) = read_manifest(study / "ticket")["sources"]
    assert (source["role"], source["path"]) == ("dense", "../dense")
    assert source["config_hash"] == read_manifest(study / "dense")["config_hash"]
    assert read_config(study / "transfer")["env_kwargs"] == ["scale=2.0"]


def test_what_is_finished_is_not_run_again(study, call, monkeypatch):
    monkeypatch.setattr(stages, "train", None)
    before = contents(study / "dense")
    assert call("--stage", "dense", *FLAGS, "--run", study / "dense") == (0, [])
    assert call("--stage", "dense", "--config", study / "dense", "--run", study / "dense", "--resume")[0] == 0
    assert contents(study / "dense") == before


# Errors.


def copied(study, name, tmp_path):
    shutil.copytree(study / name, tmp_path / name)
    return tmp_path / name


def flip_a_byte(path, name):
    (file,) = (each for each in (path / "artifacts").glob("*.npz") if each.stem.rstrip("~") == name)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def sources(study, tmp_path):
    changed, gone = tmp_path / "changed", tmp_path / "gone"
    for path in (changed, gone):
        shutil.copytree(study / "dense", path)
    flip_a_byte(changed, "anchor")
    for file in (gone / "artifacts").glob("final*.npz"):
        file.unlink()
    (tmp_path / "unfinished").mkdir()
    shutil.copy(study / "dense" / "manifest.yaml", tmp_path / "unfinished")


@pytest.mark.parametrize(
    ("flags", "texts"),
    [
        (["--stage", "ticket"], ["--from RUN, a finished dense run"]),
        (["--stage", "transfer"], ["--from RUN, a finished ticket run"]),
        (["--stage", "ticket", "--from", "{study}/ticket"], ["is a ticket run; allowed: a dense run"]),
        (["--stage", "transfer", "--from", "{study}/dense"], ["is a dense run; allowed: a ticket run"]),
        (["--stage", "ticket", "--from", "{tmp}/nowhere"], ["nowhere"]),
        (["--stage", "ticket", "--from", "{tmp}/unfinished"], ["the run is not finished"]),
        (["--stage", "ticket", "--from", "{tmp}/changed"], ["'anchor'", "was changed: sha256"]),
        (["--stage", "ticket", "--from", "{tmp}/gone"], ["'final'", "is gone"]),
        (["--stage", "ticket", "--from", "{study}/dense", "--prune.actor", "1"], ["sparsity in [0, 1)"]),
        (["--stage", "ticket", "--from", "{study}/dense", "--prune.actor", "-0.1"], ["prune.actor is -0.1"]),
        (["--stage", "ticket", "--from", "{study}/dense", "--prune.actor", "0"], ["prune.critic are 0"]),
        (
            ["--stage", "ticket", "--from", "{study}/dense", "--controls", "--control-rounds", "9"],
            ["control_rounds has [9]"],
        ),
        (["--stage", "ticket", "--from", "{study}/dense", "--algorithm.hidden", "9"], None),
        (["--stage", "dense", "--anchor-steps", "900000"], ["anchor_steps is 900000"]),
    ],
)
def test_what_cannot_work_ends_with_2_and_leaves_nothing(flags, texts, study, tmp_path, call):
    sources(study, tmp_path)
    before = {name: contents(study / name) for name in ("dense", "ticket")}
    flags = [flag.format(study=study, tmp=tmp_path) for flag in flags]
    there = sorted(os.listdir(tmp_path))
    code, errors = call(*flags, "--run", tmp_path / "new" / "run")
    assert code == 2
    if texts is None:
        assert any("parameters/actor/kernel_0 is (6, 8) float32 there and (6, 9)" in line for line in errors)
    else:
        assert len(errors) == 1
        assert all(text in errors[0] for text in texts)
    assert sorted(os.listdir(tmp_path)) == there
    assert {name: contents(study / name) for name in before} == before


def test_all_wrong_values_are_named_at_once(tmp_path, call):
    flags = ["--seed", "-1", "--algorithm.discount", "1.5", "--updates-per-step", "0", "--env-steps", "0"]
    code, errors = call("--stage", "dense", *flags, "--algorithm.n-step", "0", "--run", tmp_path / "run")
    assert code == 2
    for name in (
        "seed is -1",
        "algorithm.discount is 1.5",
        "updates_per_step is 0.0",
        "env_steps is 0",
        "n_step is 0",
    ):
        assert sum(name in line for line in errors) == 1
    assert not (tmp_path / "run").exists()


def test_a_folder_of_another_run_is_refused_and_stays_as_it_is(study, tmp_path, call):
    path = copied(study, "dense", tmp_path)
    before = contents(path)
    code, errors = call("--stage", "dense", *FLAGS, "--seed", "4", "--algorithm.n-step", "2", "--run", path)
    assert code == 2
    assert [line.rpartition("configuration: ")[2] for line in errors] == [
        "seed is 3 there and 4 here",
        "algorithm.n_step is 1 there and 2 here",
    ]
    (path / "summary.json").unlink()
    del before["summary.json"]
    code, errors = call("--stage", "dense", *FLAGS, "--run", path)
    assert (code, len(errors)) == (2, 1)
    assert "go on with it by --resume" in errors[0]
    assert contents(path) == before


def test_a_folder_that_cannot_be_written_ends_with_2(tmp_path, call):
    (tmp_path / "file").write_text("mine")
    code, errors = call("--stage", "dense", *FLAGS, "--run", tmp_path / "file" / "run")
    assert (code, len(errors)) == (2, 1)
    assert "no writable folder" in errors[0]
    assert (tmp_path / "file").read_text() == "mine"


def test_a_disk_that_is_full_from_the_start_leaves_nothing(tmp_path, call):
    with full_disk():
        code, errors = call("--stage", "dense", *FLAGS, "--run", tmp_path / "new" / "run")
    assert (code, len(errors)) == (2, 1)
    assert str(tmp_path / "new" / "run") in errors[0]
    assert "cannot be written" in errors[0]
    assert list(tmp_path.iterdir()) == []


# Real processes: signals, kills, a disk that runs full.


def order(file, step, signum):
    """Has the training's first batch of environments send the trainer a signal at that step of its own."""
    file.write_text(f"2 {step} {int(signum)} trainer")


def wait_until_stopped(pid):
    until = time.monotonic() + 60
    while time.monotonic() < until:
        with open(f"/proc/{pid}/stat") as file:
            if file.read().rpartition(")")[2].split()[0] == "T":
                return
        time.sleep(0.02)
    raise TimeoutError


def wait_until_gone(cache):
    until = time.monotonic() + 20
    while (left := processes_with(cache)) and time.monotonic() < until:
        time.sleep(0.05)
    assert left == []


def saved(path):
    """Arrays of every artifact that a run's index names."""
    index = json.loads((path / "artifacts" / "index.json").read_text())
    return {name: artifact(path, name) for name in index}


@pytest.fixture(scope="module")
def ended(study, cache, tmp_path_factory):
    """Folder of one run, ended five ways one after the other; what was seen on the way, by name."""
    path = tmp_path_factory.mktemp("ended")
    flags = (
        "--stage",
        "dense",
        *FLAGS,
        "--env-kwargs",
        f"signal_file={path / 'order'}",
        "--run",
        path / "run",
    )
    seen = {"flags": flags}

    # In use, then on a disk that ran full.
    order(path / "order", 20, signal.SIGSTOP)
    process = train_py(cache, *flags)
    wait_until_stopped(process.pid)
    second = train_py(cache, *flags, "--resume")
    seen["in use"] = (process.pid, *finish(second))
    earlier = saved(path / "run")
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    process.send_signal(signal.SIGCONT)
    seen["full disk"] = (*finish(process), earlier, saved(path / "run"), processes_with(cache))

    # Killed before its first checkpoint.
    order(path / "order", 30, signal.SIGKILL)
    seen["killed"] = (*finish(train_py(cache, *flags, "--resume")), os.path.exists(path / "run/summary.json"))
    wait_until_gone(cache)

    for name, step, signum in (("SIGTERM", 41, signal.SIGTERM), ("SIGINT", 61, signal.SIGINT)):
        order(path / "order", step, signum)
        seen[name] = (*finish(train_py(cache, *flags, "--resume")), processes_with(cache))
        shutil.copytree(path / "run", path / name)

    # Killed after a checkpoint, before it goes on to the end.
    order(path / "order", 75, signal.SIGKILL)
    seen["killed again"] = finish(train_py(cache, *flags, "--resume"))
    wait_until_gone(cache)
    seen["resumed"] = (*finish(train_py(cache, *flags, "--resume")), processes_with(cache))
    return path, seen


def errors_of(output):
    return [line for line in output.splitlines() if line.startswith("error: ")]


def test_a_folder_in_use_by_a_live_process_is_refused(ended):
    pid, code, output = ended[1]["in use"]
    assert code == 2
    (error,) = errors_of(output)
    assert error.endswith(f"is in use by process {pid}")


def test_a_disk_that_runs_full_is_one_error_and_leaves_what_was_saved(ended):
    code, output, earlier, later, left = ended[1]["full disk"]
    assert code == 2, output
    (error,) = errors_of(output)
    assert "cannot be written" in error
    assert "Traceback" not in output
    assert "initial" in earlier
    assert earlier.keys() == later.keys()
    for name in earlier:
        assert_same(later[name], earlier[name])
    assert left == []


def test_signals_end_a_process_with_their_code_and_leave_no_child(ended):
    _, seen = ended
    for name, number in (("SIGTERM", 143), ("SIGINT", 130)):
        code, output, left = seen[name]
        assert code == number, output
        assert f"stopped by {name}; go on with --resume" in output
        assert "Traceback" not in output
        assert left == []
    assert seen["killed"][0] == seen["killed again"][0] == -signal.SIGKILL
    assert seen["killed"][2] is False


def test_a_run_that_was_ended_again_and_again_equals_an_uninterrupted_one(study, ended):
    path, seen = ended
    code, output, left = seen["resumed"]
    assert code == 0, output
    assert left == []
    assert_same_run(path / "run", study / "dense")
    assert len(read_manifest(path / "run")["resumed"]) == 5


@pytest.mark.usefixtures("one_launcher")
def test_a_truncated_checkpoint_ends_with_2_and_what_was_saved_stays(ended, tmp_path, call):
    path, seen = ended
    shutil.copytree(path / "SIGINT", tmp_path / "run")
    newest = max((tmp_path / "run" / "checkpoints").glob("*.npz"), key=lambda each: int(each.stem))
    os.truncate(newest, newest.stat().st_size // 2)
    before = saved(tmp_path / "run")
    code, errors = call(*seen["flags"], "--run", tmp_path / "run", "--resume")
    assert (code, len(errors)) == (2, 1)
    assert "was changed" in errors[0]
    assert errors[0].endswith(f"remove {str(newest)!r} to go on from the checkpoint before it")
    after = saved(tmp_path / "run")
    assert after.keys() == before.keys()
    for name in before:
        assert_same(after[name], before[name])
