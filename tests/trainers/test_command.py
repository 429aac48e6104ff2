"""The training command: what its flags and files mean, how it ends, what it leaves; real processes too."""

import json
import os
import resource
import shutil
import signal
import sys
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import studies
from support.disk import full_disk
from support.training import (
    FLAGS,
    artifact,
    assert_same,
    assert_same_run,
    end_all,
    evaluations,
    one_launcher,
    processes_with,
    train_py,
)

from fastcollect.support.command import run
from trainers import command
from trainers.config.training import PruneConfig
from trainers.run.session import InterruptedRunError
from trainers.store.folder import RunFolder, config_hash, read_config, read_manifest, read_summary
from trainers.study import rewind, stages
from trainers.study.controls import CONTROLS
from trainers.study.transfer import VARIANTS

__all__ = ["one_launcher"]
PUBLISHED = "trainers/settings/published.yaml"
REACH_SEED = 0


@pytest.fixture
def call(monkeypatch, capsys):
    """``train.py`` with these flags in this process: (exit code, lines of errors)."""
    handler = signal.getsignal(signal.SIGTERM)

    def call(*flags):
        argv = [str(flag) for flag in flags]
        monkeypatch.setattr(sys, "argv", ["train.py", *argv])
        with pytest.raises(SystemExit) as caught:
            run(lambda: command.train(command.parse(argv)))
        lines = capsys.readouterr().err.splitlines()
        return caught.value.code, [line for line in lines if line.startswith("error: ")]

    yield call
    signal.signal(signal.SIGTERM, handler)


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


def contents(path):
    """Bytes of every file but the lock's."""
    return {
        str(each.relative_to(path)): each.read_bytes()
        for each in path.rglob("*")
        if each.is_file() and each.name != ".lock"
    }


def choices(arguments):
    """What identifies a run: everything but where it lies and where its flags came from."""
    return {k: v for k, v in vars(arguments).items() if k not in ("config", "run", "runs", "resume")}


def save_manifest(path, identity):
    with RunFolder.create(path, identity, ["train.py"]):
        pass
    return path / "manifest.yaml"


# Flags and files.


positive = st.floats(1e-9, 1e9)
COMBINATIONS = st.fixed_dictionaries(
    {
        "--seed": st.integers(0, 2**31 - 1),
        "--updates-per-step": positive,
        "--sac.actor-learning-rate": positive,
        "--sac.max-gradient-norm": st.none() | positive,
        "--sac.target-entropy": st.none() | st.floats(-1e9, 1e9),
        "--stop-success": st.none() | st.floats(1e-6, 1),
        "--collect.schedule": st.sampled_from(["asynchronous", "rounds"]),
        "--collect.group-size": st.none() | st.integers(1, 64),
        "--replay.storage": st.sampled_from([None, "host", "device"]),
        "--env": st.sampled_from(["reach-v3", "push-v3", "support.tiny_env:TinyEnv"]),
        "--env-kwargs": st.lists(st.sampled_from(["physics=fast", "a=[1, 2]", "b=x y", "c={}"]), max_size=2),
        "--sac.hidden": st.lists(st.integers(1, 512), min_size=1, max_size=3),
    }
)


def written_out(combination):
    flags = []
    for name, value in combination.items():
        if isinstance(value, bool):
            group, dot, own = name[2:].rpartition(".")
            flags.append(f"--{group}{dot}{'' if value else 'no-'}{own}")
        else:
            values = value if isinstance(value, list) else [value]
            flags += [name, *map(str, values)]
    return flags


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(COMBINATIONS)
def test_a_manifest_given_back_is_the_same_configuration(tmp_path, combination):
    arguments = command.parse(["--stage", "dense", *written_out(combination)])
    assert arguments.sac.hidden == tuple(combination["--sac.hidden"])
    assert arguments.sac.target_entropy == combination["--sac.target-entropy"]
    identity = command.dense_identity(command.train_config(arguments))
    path = tmp_path / config_hash(identity)
    file = save_manifest(path, identity) if not path.exists() else path / "manifest.yaml"
    for given_back in (file, path):
        again = command.parse(["--config", str(given_back)])
        assert choices(again) == choices(arguments)
        assert command.dense_identity(command.train_config(again)) == identity


def test_the_manifest_of_a_ticket_is_the_same_ticket(tmp_path):
    flags = ["--sac.hidden", "7", "--collect.schedule", "rounds", "--collect.reproducible", "--seed", "5"]
    base = command.parse(["--stage", "dense", *flags])
    source = tmp_path / "dense"
    save_manifest(source, command.dense_identity(command.train_config(base)))
    flags = ["--prune.critic", "0.3", "--rewind.replay", "fresh"]
    arguments = command.parse(["--stage", "ticket", "--from", str(source), "--env-steps", "9000", *flags])
    assert (arguments.sac.hidden, arguments.seed, arguments.collect.reproducible) == ((7,), 5, True)
    config = command.train_config(arguments)
    identity = command.ticket_identity(config, arguments, rewind.Source(str(source), "x"))
    again = command.parse(["--config", str(save_manifest(tmp_path / "ticket", identity))])
    assert choices(again) == choices(arguments)
    assert again.rewind.replay == "fresh"


def test_flags_win_over_the_file_and_the_file_over_the_task(tmp_path):
    file = tmp_path / "some.yaml"
    file.write_text("stage: dense\nenv: push-v3\nseed: 4\nsac:\n  discount: 0.9\n  n_step: 3\n")
    flags = ["--config", str(file), "--sac.n-step", "2", "--seed", "6"]
    arguments = command.parse(flags)
    assert (arguments.seed, arguments.sac.n_step, arguments.sac.discount) == (6, 2, 0.9)
    assert (arguments.env, arguments.env_steps) == ("push-v3", 250_000)
    file.write_text("stage: dense\nenv: push-v3\nenv_steps: 77777\n")
    assert command.parse(flags[:2]).env_steps == 77777
    assert command.parse([*flags[:2], "--env", "reach-v3"]).env == "reach-v3"
    assert command.parse(["--stage", "dense"]).env_steps == 200_000


def test_a_source_gives_its_settings_but_not_another_tasks_budget(tmp_path):
    config = command.train_config(command.parse(["--stage", "dense", "--sac.hidden", "5"]))
    save_manifest(tmp_path / "dense", command.dense_identity(config))
    arguments = command.parse(["--stage", "ticket", "--from", str(tmp_path / "dense")])
    assert arguments.sac.hidden == (5,)
    assert arguments.env_steps == 200_000
    arguments = command.parse(["--stage", "transfer", "--from", str(tmp_path / "dense"), "--env", "push-v3"])
    assert (arguments.sac.hidden, arguments.env, arguments.env_steps) == ((5,), "push-v3", 250_000)
    assert (arguments.sac.n_step, arguments.sac.target_entropy) == (3, 0.0)
    assert arguments.env_kwargs == ("horizon=200",)


def test_a_source_of_a_task_with_settings_does_not_hand_them_on(tmp_path):
    flags = ["--env", "push-v3", "--sac.hidden", "5", "--sac.discount", "0.9", "--evaluation.episodes", "9"]
    config = command.train_config(command.parse(["--stage", "dense", *flags]))
    save_manifest(tmp_path / "dense", command.dense_identity(config))
    arguments = command.parse(["--stage", "transfer", "--from", str(tmp_path / "dense"), "--env", "reach-v3"])
    assert (arguments.sac.hidden, arguments.sac.discount, arguments.env_steps) == ((5,), 0.9, 200_000)
    assert (arguments.sac.n_step, arguments.sac.temperature_learning_rate) == (1, 1e-3)
    assert (arguments.sac.target_entropy, arguments.env_kwargs) == (None, ())
    assert (arguments.evaluation.every, arguments.evaluation.episodes) == (25_000, 50)


def test_arguments_of_the_environment_are_kept_by_name(tmp_path):
    flags = ["--env-kwargs", "goal_visible=false", "mt1_seed=3"]
    config = command.train_config(command.parse(["--stage", "dense", *flags]))
    save_manifest(tmp_path / "reach", command.dense_identity(config))
    transfer = ["--stage", "transfer", "--from", str(tmp_path / "reach"), "--env", "push-v3"]
    arguments = command.parse([*transfer, "--env-kwargs", "mt1_seed=4"])
    assert arguments.env_kwargs == ("goal_visible=false", "mt1_seed=4", "horizon=200")
    push = ["--stage", "dense", "--env", "push-v3"]
    assert command.parse([*push, "--env-kwargs", "horizon=500"]).env_kwargs == ("horizon=500",)
    config = command.train_config(command.parse([*push, *flags]))
    assert config.env_kwargs == ("horizon=200", "goal_visible=false", "mt1_seed=3")
    save_manifest(tmp_path / "push", command.dense_identity(config))
    again = ["--stage", "dense", "--config", str(tmp_path / "push")]
    assert command.parse(again).env_kwargs == config.env_kwargs
    back = ["--stage", "transfer", "--from", str(tmp_path / "push"), "--env", "reach-v3"]
    assert command.parse(back).env_kwargs == ("goal_visible=false", "mt1_seed=3")
    (tmp_path / "one.yaml").write_text("env: push-v3\nenv_kwargs: physics=fast\n")
    arguments = command.parse([*again[:3], str(tmp_path / "one.yaml")])
    assert arguments.env_kwargs == ("horizon=200", "physics=fast")


def test_a_transfer_rewinds_to_where_its_ticket_did(tmp_path):
    config = command.train_config(command.parse(["--stage", "dense"]))
    dense = save_manifest(tmp_path / "dense", command.dense_identity(config)).parent
    arguments = command.parse(["--stage", "ticket", "--from", str(dense), "--rewind.parameters", "initial"])
    identity = command.ticket_identity(config, arguments, rewind.Source(str(dense), "y"))
    save_manifest(tmp_path / "ticket", identity)
    flags = ["--stage", "transfer", "--from", str(tmp_path / "ticket"), "--env", "push-v3"]
    assert command.parse(flags).rewind.parameters == "initial"
    assert command.parse([*flags, "--rewind.parameters", "anchor"]).rewind.parameters == "anchor"


@pytest.mark.parametrize(
    ("text", "named"),
    [("sac:\n  discounts: 0.9\n", "discounts"), ("sead: 3\n", "sead"), ("seed: x\n", "seed")],
)
def test_a_key_or_value_that_does_not_exist_ends_with_2_and_its_name(text, named, tmp_path, capsys):
    file = tmp_path / "some.yaml"
    file.write_text(f"stage: dense\n{text}")
    with pytest.raises(SystemExit) as caught:
        command.parse(["--config", str(file)])
    assert caught.value.code == 2
    output = capsys.readouterr()
    assert named in output.err + output.out
    assert os.listdir(tmp_path) == ["some.yaml"]


def test_a_file_that_is_not_there_or_no_yaml_is_one_error(tmp_path, call):
    code, errors = call("--config", tmp_path / "none.yaml")
    assert (code, len(errors)) == (2, 1)
    assert "none.yaml" in errors[0]
    (tmp_path / "bad.yaml").write_text("stage: dense\nseed: 1\nseed: 2\n")
    code, errors = call("--config", tmp_path / "bad.yaml")
    assert (code, len(errors)) == (2, 1)
    assert "line 3" in errors[0]


def test_the_published_settings_are_those_that_were_published():
    arguments = command.parse(["--config", PUBLISHED])
    command.train_config(arguments)
    sac = arguments.sac
    assert (sac.discount, sac.target_rate) == (0.99, 0.005)
    assert sac.actor_learning_rate == sac.critic_learning_rate == 6e-4
    assert (sac.temperature_learning_rate, sac.initial_temperature) == (5e-5, 0.2)
    assert (sac.batch_size, sac.hidden, sac.reward_scale) == (2048, (256, 256), 0.1)
    assert (sac.n_step, sac.target_entropy) == (1, None)
    push = command.parse(["--config", PUBLISHED, "--env", "push-v3"])
    assert (push.sac, push.env_kwargs, push.env_steps) == (sac, ("horizon=400",), 150_000)
    assert (arguments.env_steps, arguments.start_steps, arguments.anchor_steps) == (150_000, 10_000, 20_000)
    assert (arguments.env_kwargs, arguments.updates_per_step) == (("horizon=400",), 0.25)
    assert (arguments.stop_success, arguments.stop_patience, arguments.evaluation.every) == (0.8, 3, 10_000)
    assert arguments.stage == "all"
    assert arguments.tasks == ("reach-v3", "push-v3", "pick-place-v3")
    assert (arguments.seeds, arguments.targets) == ((2000, 3000, 4000), ("push-v3",))
    assert arguments.prune == PruneConfig(actor=0.8, critic=0.0, rate=0.33)
    for task in arguments.tasks:  # its budget is for all of them
        assert command.parse(["--config", PUBLISHED, "--env", task]).env_steps == 150_000


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
        assert manifest["config_hash"] == config_hash(read_config(study / name))
        assert manifest["command"].startswith(f"python train.py --stage {name}")
        assert {"versions", "cpu", "commit"} <= manifest["machine"].keys()
        assert manifest["facts"]["stage"] == name
    rows = read_summary(study / "ticket")["rounds"]
    assert [row["name"] for row in rows] == ["ticket", *CONTROLS]
    assert [row["name"] for row in read_summary(study / "transfer")["variants"]] == list(VARIANTS)
    source = read_manifest(study / "ticket")["facts"]["source"]
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
        (["--stage", "ticket", "--from", "{study}/dense", "--sac.hidden", "9"], None),
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
        assert any("sac/actor/kernel_0 is (6, 8) float32 there and (6, 9)" in line for line in errors)
    else:
        assert len(errors) == 1
        assert all(text in errors[0] for text in texts)
    assert sorted(os.listdir(tmp_path)) == there
    assert {name: contents(study / name) for name in before} == before


def test_all_wrong_values_are_named_at_once(tmp_path, call):
    flags = ["--seed", "-1", "--sac.discount", "1.5", "--updates-per-step", "0", "--env-steps", "0"]
    code, errors = call("--stage", "dense", *flags, "--sac.n-step", "0", "--run", tmp_path / "run")
    assert code == 2
    for name in (
        "seed is -1",
        "sac.discount is 1.5",
        "updates_per_step is 0.0",
        "env_steps is 0",
        "n_step is 0",
    ):
        assert sum(name in line for line in errors) == 1
    assert not (tmp_path / "run").exists()


def test_a_folder_of_another_run_is_refused_and_stays_as_it_is(study, tmp_path, call):
    path = copied(study, "dense", tmp_path)
    before = contents(path)
    code, errors = call("--stage", "dense", *FLAGS, "--seed", "4", "--sac.n-step", "2", "--run", path)
    assert code == 2
    assert [line.rpartition("configuration: ")[2] for line in errors] == [
        "seed is 3 there and 4 here",
        "sac.n_step is 1 there and 2 here",
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
    folders = sorted((tmp_path / "run" / "checkpoints").iterdir(), key=lambda each: int(each.name))
    largest = max((f for f in folders[-1].rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    before = saved(tmp_path / "run")
    code, errors = call(*seen["flags"], "--run", tmp_path / "run", "--resume")
    assert (code, len(errors)) == (2, 1)
    assert folders[-1].name in errors[0]
    assert "damaged" in errors[0] or "was changed" in errors[0]
    after = saved(tmp_path / "run")
    assert after.keys() == before.keys()
    for name in before:
        assert_same(after[name], before[name])


# Stage all, its trainings pretended.

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
    # A dense run and two rounds for each task; for reach-v3 also 4 variants.
    assert len(inside) == len(set(inside)) == (3 + 4) + 3
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
    assert call(*flags, "--prune.rate", "0.8", "--sac.discount", "0.9", "--runs", tmp_path / "runs") == (
        0,
        [],
    )
    assert len(began) == 2
    (one,) = (each for each in (tmp_path / "runs" / "study").iterdir() if str(each) not in began[0])
    before = contents(one)
    code, errors = call(*flags, "--prune.rate", "0.8", "--sac.discount", "0.9", "--run", one)
    assert (code, len(errors)) == (2, 1)
    assert "sac.discount is 0.97 there and 0.9 here" in errors[0]
    assert contents(one) == before


def test_each_run_of_a_whole_study_has_the_settings_that_it_would_have_alone(tmp_path, call, monkeypatch):
    pretend(monkeypatch)
    assert call(*ALL, "--run", tmp_path / "all") == (0, [])
    base = tmp_path / "all" / "push-v3" / "seed-1"
    config = command.train_config(
        command.parse(["--stage", "dense", *studies.FLAGS, "--env", "push-v3", "--seed", "1"])
    )
    assert read_config(base / "dense") == command.dense_identity(config)
    assert read_config(base / "ticket")["from"] == str(base / "dense")
    assert not (base / "transfer-push-v3").exists()


@pytest.mark.parametrize("name", ["tasks", "seeds"])
def test_a_whole_study_of_nothing_is_an_error(name, tmp_path, call):
    code, errors = call("--stage", "all", f"--{name}", "--run", tmp_path / "run")
    assert (code, errors) == (2, [f"error: {name} is empty"])
    assert not (tmp_path / "run").exists()


# Learning.


@pytest.mark.usefixtures("one_launcher")
def test_a_short_run_learns_to_reach(tmp_path, call):
    flags = ("--stage", "dense", "--env", "reach-v3", "--env-kwargs", "horizon=100", "--seed", REACH_SEED)
    flags += ("--env-steps", "12288", "--start-steps", "2048", "--anchor-steps", "12288")
    flags += ("--updates-per-step", "0.25", "--sac.hidden", "64", "64", "--evaluation.every", "1000000")
    flags += (
        "--collect.n",
        "16",
        "--collect.N",
        "2",
        "--collect.schedule",
        "rounds",
        "--collect.reproducible",
    )
    flags += ("--run", tmp_path / "run")
    assert call(*flags) == (0, [])
    untrained, trained = evaluations(tmp_path / "run")
    assert (untrained["env_steps"], trained["env_steps"]) == (0, 12288)
    assert trained["updates"] == 2560
    assert trained["return_mean"] > 2 * untrained["return_mean"]
