"""Whose n, N and M are measured, the file of a real short run, and what wrong requests do."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import gymnasium
import mujoco
import numpy as np
import psutil
import pytest

from bench import fps
from bench.fps import FpsArguments, Options, make_plan
from bench.methods.physics import bare_loop
from fastcollect.control.parallelism import Parallelism
from fastcollect.envs.registry import EnvConfig
from fastcollect.policies.choice import parse_policy
from fastcollect.support.errors import ConfigError
from fastcollect.tuning import profile

ROOT = Path(__file__).resolve().parents[2]
FLAGS = [field.name for field in fields(FpsArguments) if field.name != "json"]


def command(*arguments, **environment):
    """Start the real command; profiles of whoever runs the tests must not change what it measures."""
    return subprocess.Popen(
        [sys.executable, "-m", "bench.fps", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def plan(**changes):
    return make_plan(Options(**{"env": "CartPole-v1", "methods": ("ours",), **changes}))


def settings(case):
    return (*(case.row[key] for key in "nNM"), case.row["settings"])


def gone(processes, seconds=10.0):
    return not psutil.wait_procs(processes, timeout=seconds)[1]


@pytest.fixture(autouse=True)
def no_profiles(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_rows_that_exclude_each_other_are_told_by_their_labels():
    rows = plan(
        methods=("ours", "env-only"), num_envs=(8, 16), num_env_workers=(2,), num_model_workers=(0, 1)
    )
    assert [case.row["label"] for case in rows] == [
        "ours n=8 N=2 M=0",
        "ours n=8 N=2 M=1",
        "ours n=16 N=2 M=0",
        "ours n=16 N=2 M=1",
        "env-only",
    ]
    assert [str(case.request.parallelism) for case in rows] == [
        f"n={n} N={N} M={M}" for n, N, M in ((8, 2, 0), (8, 2, 1), (16, 2, 0), (16, 2, 1), (8, 1, 0))
    ]
    assert [[case.row[key] for key in "nNM"] for case in rows][1] == [8, 2, 1]
    with pytest.raises(ConfigError, match="each value once"):
        plan(num_envs=(8, 8))


def test_every_wrong_value_is_named_at_once(tmp_path):
    result = tmp_path / "no" / "result.json"
    process = command(
        *("--env", "rech-v3", "--methods", "our", "ours", "ours", "--seconds", "-1", "--rounds", "0"),
        *("--n", "0", "4", "4", "--M", "-1", "--policy", "3,a", "--json", result),
    )
    out, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert not out
    assert len(err.strip().splitlines()) == 10
    for text in (
        *("'rech-v3'; did you mean 'reach-v3'", "'our'; did you mean 'ours'", "'ours' 2 times"),
        *("--seconds is -1.0", "--rounds is 0", "num_envs (n) is 0", "num_model_workers (M) is -1"),
        *("--n, --N or --M", "each value once", "'3,a'", "--json"),
    ):
        assert text in err
    assert list(tmp_path.iterdir()) == []


def test_a_real_run_writes_the_documented_file(tmp_path):
    result = tmp_path / "result.json"
    flags = "--env CartPole-v1 --methods ours gymnasium-sync ours-fast --seconds 0.3"
    flags += " --rounds 1 --n 64 --N 2 --M 0"
    arguments = [*flags.split(), "--json", str(result)]
    process = command(*arguments)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    found = json.loads(result.read_text())
    assert list(tmp_path.iterdir()) == [result]
    assert list(found) == ["machine", "command", *FLAGS, "rows"]
    assert found["command"] == "python -m bench.fps " + " ".join(arguments)
    assert found["machine"]["cpu"]
    assert (found["seconds"], found["rounds"]) == (0.3, 1)
    ours, peer, missing = found["rows"]
    assert [ours[key] for key in ("env", "method", "n", "N", "M")] == ["CartPole-v1", "ours", 64, 2, 0]
    assert (ours["policy"], ours["settings"]) == ("mlp-16x16", "chosen")
    assert (peer["method"], peer["n"], peer["policy"]) == ("gymnasium-sync", 8, "mlp-16x16")
    for row in (ours, peer):
        assert set(row["fps"]) == {"median", "min", "max"}
        assert row["fps"]["median"] == row["fps"]["min"] == row["fps_rounds"][0] > 0
        assert row["memory_mib"] > 10
        assert row["num_envs"] >= 1
        assert 0 < row["cpus_busy"] < 100
        assert row["start_seconds"] > 0
        assert row["label"] in out
    assert ours["ratios"] == {"gymnasium-sync": pytest.approx(ours["fps"]["median"] / peer["fps"]["median"])}
    assert missing["fps"] is None
    assert "Meta-World" in missing["error"]
    assert missing["error"] in out
    assert "round 1/1  ours" in err


def test_a_missing_peer_is_a_row_that_says_why(tmp_path):
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "envpool.py").write_text("raise ImportError('not here')")
    result = tmp_path / "result.json"
    process = command(
        *("--env", "Pendulum-v1", "--methods", "envpool", "physics-limit", "env-only", "--n", "2"),
        *("--seconds", "0.05", "--rounds", "2", "--json", result),
        PYTHONPATH=str(hidden),
    )
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    found = json.loads(result.read_text())
    peer, limit, env = found["rows"]
    assert peer["fps"] is limit["fps"] is None
    assert "not here" in peer["error"]
    assert "pip install envpool" in peer["error"]
    assert "exists for Meta-World" in limit["error"]
    assert len(env["fps_rounds"]) == 2
    assert "envpool was not measured" in out
    assert env["ratios"] == {}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_leaves_no_process_and_no_file(tmp_path, number, code):
    result = tmp_path / "result.json"
    process = command(
        *("--env", "CartPole-v1", "--methods", "ours", "--seconds", "60", "--rounds", "1"),
        *("--n", "8", "--N", "2", "--M", "0", "--json", result),
    )
    deadline = time.monotonic() + 20
    # The child that measures, its guard, the process that starts the workers, and both workers.
    while len(processes := psutil.Process(process.pid).children(recursive=True)) < 5:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == code
    assert not out
    assert gone(processes)
    assert not result.exists()


def _names(processes):
    """What runs in each of them; a process that has ended meanwhile has no name."""
    names = set()
    for each in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            names.add(each.name())
    return names


def test_a_killed_run_takes_along_what_a_peer_started(tmp_path):
    # A peer whose worker does not notice that nobody is left.
    (tmp_path / "envpool.py").write_text("import subprocess as s; s.run(['sleep', '1000'])")
    process = command(
        *("--env", "CartPole-v1", "--methods", "envpool", "--seconds", "60", "--rounds", "1"),
        PYTHONPATH=str(tmp_path),
    )
    deadline = time.monotonic() + 20
    while "sleep" not in _names(processes := psutil.Process(process.pid).children(recursive=True)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.communicate(timeout=20)
    assert gone(processes)


def test_a_child_that_is_killed_is_an_error_and_takes_its_workers_along():
    process = command(
        *("--env", "CartPole-v1", "--methods", "ours", "--seconds", "60", "--rounds", "1"),
        *("--n", "8", "--N", "1", "--M", "0"),
    )
    deadline = time.monotonic() + 20
    while len(processes := psutil.Process(process.pid).children(recursive=True)) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    psutil.Process(process.pid).children()[0].kill()
    out, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "ended without an answer" in out
    assert "none of the methods could be measured" in err
    assert gone(processes)


def test_settings_come_from_the_flags_then_the_profile_then_defaults():
    policy = parse_policy(None, "CartPole-v1")
    assert settings(*plan())[::2] == (4096, 0)
    assert plan()[0].row["settings"] == "default"
    profile.save(EnvConfig(id="CartPole-v1"), policy, Parallelism(96, 3, 1), fps=1.0)
    assert settings(*plan()) == (96, 3, 1, "profile")
    assert settings(*plan(num_envs=(8,))) == (8, 3, 1, "chosen")
    limit, serial = plan(methods=("physics-limit", "ours-serial"))
    assert settings(limit)[1::2] == (3, "fixed")
    assert settings(serial)[:3] == (96, 1, 0)


def test_a_limit_is_measured_in_as_many_processes_as_the_largest_of_ours_has(monkeypatch):
    asked = []
    monkeypatch.setattr(fps, "measure", lambda requests, *seconds: asked.append(requests))
    (limit,) = plan(methods=("physics-limit",), num_env_workers=(2, 3))
    limit.measure(1.0)
    assert [request.index for request in asked[0]] == [0, 1, 2]


@pytest.mark.parametrize("robot", ["HalfCheetah-v5", "Hopper-v5"])
def test_bare_physics_begins_anew_as_often_as_random_actions_end_episodes(monkeypatch, robot):
    stock, begun = gymnasium.make(robot), []
    stock.reset(seed=0)
    monkeypatch.setattr(mujoco, "mj_setState", lambda *_: begun.append(True))
    step = bare_loop(stock.unwrapped, 1, 0)
    for _ in range(500):
        assert step() == 1
    stock.reset(seed=1)
    rng, ends = np.random.default_rng(1), 0
    for _ in range(500):
        if stock.step(rng.uniform(-1, 1, stock.action_space.shape).astype(np.float32))[2]:
            ends += 1
            stock.reset()
    assert abs(len(begun) - max(1, ends)) <= 0.5 * ends  # other actions, so about as often


@pytest.mark.parametrize("env", ["CartPole-v1", "reach-v3"])
def test_where_steps_are_cheap_the_fastest_candidate_is_taken(monkeypatch, env):
    tried = []

    def measure(requests, *seconds):
        tried.append(requests[0].parallelism.n)
        return {"rate": {64: 1.0, 256: 5.0, 1024: 9.0, 4096: 7.0}[tried[-1]], "start_seconds": 0.0}

    monkeypatch.setattr(fps, "measure", measure)
    cases = plan(methods=("envpool",), env=env)
    (row,) = fps.measure_cases(cases, seconds=1.0, rounds=2)
    cheap = env == "CartPole-v1"
    assert tried == ([256, 1024, 4096, 1024, 1024] if cheap else [64, 64])
    assert (row["n"], row["fps"]["median"]) == ((1024, 9.0) if cheap else (64, 1.0))
