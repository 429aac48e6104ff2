"""The comparison of whole studies: what it counts, what it projects, what it refuses."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import gymnasium
import pytest
from support.training import environment

from bench import pipeline
from bench.harness import command as harness
from bench.methods.original_protocol import StudyRequest, build, stock_arguments
from bench.pipeline import PipelineArguments, accounts, check, trained
from fastcollect.support.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
DENSE = {"env_steps": 1000, "updates": 50, "success_any": 1.0, "success_last": 0.5, "return_mean": 7.0}
ANCHOR = {"env_steps": 200, "updates": 10}


def row(name, env_steps, updates):
    return {"name": name, "env_steps": env_steps, "updates": updates}


def ticket(*rows):
    return {"anchor": ANCHOR, "rounds": list(rows)}


def test_a_round_made_what_comes_after_the_anchor():
    summary = ticket(row("ticket", 1000, 50), row("ticket", 700, 35))
    # 1000 + 800 + 500 and 50 + 40 + 25
    assert trained(DENSE, summary, from_zero=False) == {"env_steps": 2300, "updates": 115, "rounds": 2}


def test_controls_are_trained_and_are_no_rounds():
    rows = [row("ticket", 1000, 50), row("ticket", 1000, 50)]
    rows += [row(name, 1000, 50) for name in ("permuted-weights", "permuted-mask", "dense")]
    # Five times 800 and 40 after the anchor; the random mask begins at 0.
    summary = ticket(*rows, row("random-mask", 900, 45))
    assert trained(DENSE, summary, from_zero=False) == {"env_steps": 5900, "updates": 295, "rounds": 2}


def test_rounds_that_were_rewound_to_step_zero_made_all_of_theirs():
    summary = ticket(row("ticket", 1000, 50), row("dense", 1000, 50), row("random-mask", 900, 45))
    assert trained(DENSE, summary, from_zero=True) == {"env_steps": 3900, "updates": 195, "rounds": 1}


def test_the_original_is_projected_from_the_mean_of_its_rates():
    made = {"env_steps": 4000, "updates": 200, "rounds": 3}
    ours, original = accounts(made, {"dense": 15.0, "ticket": 35.0}, [30.0, 10.0])
    assert (ours["wall_seconds"], ours["rounds"], ours["projected"]) == (50.0, 3, False)
    assert original["env_steps_per_second"] == [30.0, 10.0]
    assert (original["wall_seconds"], original["projected"]) == (200.0, True)
    for each in (ours, original):
        assert (each["env_steps"], each["updates"]) == (4000, 200)


def test_the_stages_write_to_the_callers_folder_and_the_file_says_what_they_made(monkeypatch, tmp_path):
    commands = []

    def instead(command, **_):
        commands.append(command)
        folder = Path(command[command.index("--run") + 1])
        folder.mkdir(parents=True)
        summary = DENSE if folder.name == "dense" else ticket(row("ticket", 1000, 50))
        (folder / "summary.json").write_text(json.dumps(summary))
        return subprocess.CompletedProcess(command, 0)

    @contextlib.contextmanager
    def started(requests):
        yield lambda *seconds: commands.append((*requests, *seconds)) or {"rate": 100.0}

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline, "started", started)
    monkeypatch.setattr(pipeline.subprocess, "run", instead)
    monkeypatch.setattr(harness, "machine", lambda: {"versions": {}} | dict.fromkeys(MACHINE, 1))
    flags = "--rewind.step zero --env-kwargs horizon=400"
    pipeline.pipeline(PipelineArguments(runs=Path("kept"), json=Path("out.json"), flags=flags, seed=4))
    before, dense, drawn, after = commands
    assert dense[1:] == [*stage("dense"), "--run", f"{tmp_path}/kept/dense", *common(flags)]
    source = ("--from", f"{tmp_path}/kept/dense", "--run", f"{tmp_path}/kept/ticket")
    assert drawn[1:] == [*stage("ticket"), *source, *common(flags)]
    request = StudyRequest(method="original-protocol", flags=("--stage", "dense", *common(flags)))
    assert before == after == (request, 7.5, 30.0)
    result = json.loads((tmp_path / "out.json").read_text())
    ours, original = result["rows"]
    assert (ours["env_steps"], ours["updates"], ours["rounds"]) == (2000, 100, 1)
    assert original["wall_seconds"] == 20.0
    assert [each.get("stage", each.get("name")) for each in result["results"]] == ["dense", "ticket"]


MACHINE = ("cpu", "cpus", "memory_gib", "system", "commit")


def stage(name):
    return ["train.py", "--stage", name]


def common(flags):
    return ["--env", "reach-v3", "--seed", "4", *flags.split()]


def wrong(**values):
    with pytest.raises(ConfigError) as caught:
        check(PipelineArguments(**values))
    return caught.value.problems


@pytest.mark.parametrize("there", ["dense", "ticket"])
def test_a_study_that_was_run_before_is_not_measured_again(tmp_path, there):
    (tmp_path / there).mkdir()
    (problem,) = wrong(runs=tmp_path)
    assert str(tmp_path / there) in problem
    other = tmp_path / "new" / "folder"
    check(PipelineArguments(runs=other))
    assert not other.exists()


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("inf"), float("nan")])
def test_seconds_are_above_zero(seconds):
    (problem,) = wrong(seconds=seconds)
    assert problem.startswith("--seconds is")


def test_wrong_values_are_named_together(tmp_path):
    for name in pipeline.STAGES:
        os.symlink("nowhere", tmp_path / name)
    flags = "--algorithm.batch-size 0 --prune.rate 2 --env-kwargs goal_visible=false --controls"
    problems = wrong(env="CartPole-v1", seed=-1, seconds=0.0, json=tmp_path, runs=tmp_path, flags=flags)
    beginnings = (
        "--seconds is 0.0",
        "--env is 'CartPole-v1'",
        "--json: ",
        f"--runs: {str(tmp_path / 'dense')!r} exists",
        f"--runs: {str(tmp_path / 'ticket')!r} exists",
        "algorithm.batch_size is 0",
        "seed is -1",
        "prune.rate is 2",
        "--env-kwargs has goal_visible=False",
    )
    for beginning in beginnings:
        assert sum(each.startswith(beginning) for each in problems) == 1, beginning
    assert len(problems) == len(beginnings)


@pytest.mark.parametrize("flag", ["--seed 3", "--seed=3", "--env push-v3", "--run x", "--stage all"])
def test_what_the_command_gives_itself_is_not_given_twice(flag):
    problems = wrong(flags=f"--controls {flag}", seconds=0.0)
    assert problems[0].startswith("--seconds")
    assert problems[1:] == (f"--flags: {flag.split()[0]} is given by this command itself",)


def test_flags_that_are_no_shell_words_are_refused():
    (problem,) = wrong(flags='--env-kwargs "physics')
    assert problem.startswith("--flags: ")


def test_the_command_exits_with_2_before_anything_starts(tmp_path):
    (tmp_path / "ticket").mkdir()
    command = [sys.executable, "-m", "bench.pipeline", "--runs", str(tmp_path), "--seconds", "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("error: ") == len(done.stderr.splitlines()) == 2
    assert sorted(each.name for each in tmp_path.iterdir()) == ["ticket"]


def test_stock_environments_take_what_ours_do():
    given = ("horizon=400", "physics=fast", "goal_visible=true", "goal_indices=null", "mt1_seed=3")
    assert stock_arguments(given) == {"max_episode_steps": 400, "seed": 3}
    assert stock_arguments(()) == {}
    with pytest.raises(ConfigError) as caught:
        stock_arguments(("goal_visible=false", "goal_indices=seed", "horizon=4"))
    assert len(caught.value.problems) == 2


SHORT = (
    "--stage dense --env reach-v3 --algorithm.hidden 8 --algorithm.batch-size 8 "
    "--env-kwargs horizon=3 mt1_seed=1"
)


def original(updates_per_step):
    flags = (*SHORT.split(), "--updates-per-step", str(updates_per_step))
    return StudyRequest(method="original-protocol", flags=flags, num_envs=1)


def test_the_originals_episodes_end_at_the_horizon(monkeypatch):
    made, make_vec = [], gymnasium.make_vec
    monkeypatch.setattr(
        gymnasium, "make_vec", lambda *args, **kw: made.append(make_vec(*args, **kw)) or made[0]
    )
    subject = build(original(1.0))
    try:
        (envs,) = made
        truncated = [bool(envs.step(envs.action_space.sample())[3].all()) for _ in range(3)]
    finally:
        subject.close()
    assert truncated == [False, False, True]


@pytest.mark.parametrize(("ratio", "steps", "updates"), [(0.5, [2, 2], 2), (2.0, [1, 1], 4)])
def test_the_original_keeps_the_ratio_and_no_step_is_without_an_update(ratio, steps, updates):
    subject = build(original(ratio))
    try:
        assert [subject.step() for _ in range(2)] == steps
    finally:
        subject.close()
    assert (subject.facts(), subject.num_envs) == ({"updates": updates}, 1)


FEWER = """
from functools import partial

from bench import pipeline
from bench.harness.command import main

pipeline.StudyRequest = partial(pipeline.StudyRequest, num_envs=2)
if __name__ == "__main__":
    main(pipeline.PipelineArguments, pipeline.pipeline, pipeline.__doc__)
"""
"""The command with two stock environments; each of its eight takes most of a second to make."""


@pytest.mark.timeout(300)
def test_a_real_run_of_a_moment_trains_and_prunes_and_writes_its_file(tmp_path):
    file = tmp_path / "out.json"
    flags = (
        "--env-steps 320 --start-steps 64 --anchor-steps 128 --updates-per-dispatch 4 --collect.n 2 "
        "--replay.capacity 4096 --algorithm.hidden 8 --algorithm.batch-size 8 --evaluation.every 320 "
        "--prune.rate 1 --env-kwargs horizon=20"
    )
    done = subprocess.run(
        [sys.executable, "-c", FEWER, "--seconds", "1", "--json", str(file), f"--flags={flags}"],
        cwd=ROOT,
        env=environment(tmp_path / "compiled"),
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    ours, original = json.loads(file.read_text())["rows"]
    assert ours["rounds"] == 1
    assert (ours["env_steps"], original["env_steps"]) == (512, 512)  # the round begins at the anchor
    assert ours["wall_seconds"] > 0 < original["wall_seconds"]
    assert (ours["projected"], original["projected"]) == (False, True)
