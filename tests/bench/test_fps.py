"""The arithmetic of rounds, the result file of a real short run, and what wrong or impossible requests do."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from bench.plan import Options, make_plan
from bench.table import fps_table, ratios, references, summary
from fastcollect.control.parallelism import Parallelism
from fastcollect.envs.registry import EnvConfig
from fastcollect.policies.choice import parse_policy
from fastcollect.support.errors import ConfigError
from fastcollect.tuning import profile

ROOT = Path(__file__).resolve().parents[2]


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
    return make_plan(Options(**{"env": "CartPole-v1", "methods": "engine", **changes}))


def gone(processes, seconds=10.0):
    return not psutil.wait_procs(processes, timeout=seconds)[1]


@pytest.fixture(autouse=True)
def no_profiles(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_summary_of_rounds():
    assert summary([30.0, 10.0, 50.0]) == {"median": 30.0, "min": 10.0, "max": 50.0}
    assert summary([10.0, 20.0])["median"] == 15.0


def test_ratios_are_taken_within_a_round_so_that_drift_cancels():
    # The machine is ten times slower in the second round; a is always twice b.
    found = ratios({"a": [200.0, 20.0, 240.0], "b": [100.0, 10.0, 120.0], "missing": None})
    assert found == {"a": {"b": 2.0}, "b": {"a": 0.5}}
    # The median of 4, 1, 3, where the ratio of the medians would be 40 / 20.
    assert ratios({"a": [40.0, 20.0, 90.0], "b": [10.0, 20.0, 30.0]})["a"]["b"] == 3.0


def test_rows_are_compared_with_peers_or_else_with_the_first():
    methods = {"engine 1": "engine", "engine 2": "engine", "envpool": "envpool"}
    assert references(["engine 1", "envpool"], methods) == ["envpool"]
    assert references(["engine 1", "engine 2"], methods) == ["engine 1"]


def test_the_table_shows_numbers_ratios_and_what_is_missing():
    rows = [
        {"label": "engine", "method": "engine", "n": 4, "N": 2, "M": 0, "start_seconds": 0.5}
        | {"fps": {"median": 3000.0, "min": 2000.0, "max": 4000.0}}
        | {"cpus_busy": 1.95, "memory_mib": 80.0, "num_envs": 8},
        {"label": "physics-limit", "method": "physics-limit", "n": 16, "N": 2, "M": 0, "start_seconds": 0.1}
        | {"fps": {"median": 6000.0, "min": 5000.0, "max": 7000.0}}
        | {"cpus_busy": 2.0, "memory_mib": 8.0, "num_envs": 32},
        {"label": "envpool", "method": "envpool", "n": 64, "N": 1, "M": 0, "fps": None, "error": "absent"},
    ]
    table = fps_table(rows, {"engine": {"physics-limit": 0.5}, "physics-limit": {"engine": 2.0}}, "title")
    columns = {column.header: list(column.cells) for column in table.columns}
    assert columns["median"] == ["3,000", "6,000", "none"]
    assert columns["\u00d7 physics-limit"] == ["0.50", "", ""]
    assert "\u00d7 envpool" not in columns
    assert columns["CPUs"] == ["1.9", "2.0", ""]
    assert columns["MiB/env"] == ["10.0", "0.2", ""]


def test_every_wrong_value_is_named_at_once(tmp_path):
    result = tmp_path / "no" / "result.json"
    process = command(
        *("--env", "rech-v3", "--methods", "engin,engine,engine", "--seconds", "-1", "--rounds", "0"),
        *("--n", "0", "--M", "-1", "--configs", "1,2;8,0,0", "--policy", "3,a", "--json", result),
    )
    out, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert not out
    assert len(err.strip().splitlines()) == 12
    for text in (
        *("'rech-v3'; did you mean 'reach-v3'", "'engin'; did you mean 'engine'", "'engine' 2 times"),
        *("--seconds is -1.0", "--rounds is 0", "num_envs (n) is 0", "num_model_workers (M) is -1"),
        *("'1,2' is not n,N,M", "8,0,0: num_env_workers (N) is 0", "exclude each other", "'3,a'", "--json"),
    ):
        assert text in err
    assert list(tmp_path.iterdir()) == []


def test_a_real_run_writes_the_documented_file(tmp_path):
    result = tmp_path / "result.json"
    arguments = ["--env", "CartPole-v1", "--methods", "engine,gymnasium-sync,engine-fast"]
    arguments += [
        "--seconds",
        "0.3",
        "--rounds",
        "1",
        "--n",
        "64",
        "--N",
        "2",
        "--M",
        "0",
        "--json",
        str(result),
    ]
    process = command(*arguments)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    found = json.loads(result.read_text())
    assert list(tmp_path.iterdir()) == [result]
    assert list(found) == ["machine", "command", "seconds", "rounds", "rows", "ratios"]
    assert found["command"] == "python -m bench.fps " + " ".join(arguments)
    assert found["machine"]["cpu"]
    assert (found["seconds"], found["rounds"]) == (0.3, 1)
    engine, peer, missing = found["rows"]
    assert [engine[key] for key in ("env", "method", "n", "N", "M")] == ["CartPole-v1", "engine", 64, 2, 0]
    assert (engine["policy"], engine["settings"]) == ("mlp-16x16", "chosen")
    assert (peer["method"], peer["n"], peer["policy"]) == ("gymnasium-sync", 8, "mlp-16x16")
    for row in (engine, peer):
        assert set(row["fps"]) == {"median", "min", "max"}
        assert row["fps"]["median"] == row["fps"]["min"] == row["fps_rounds"][0] > 0
        assert row["memory_mib"] > 10
        assert row["num_envs"] >= 1
        assert 0 < row["cpus_busy"] < 100
        assert row["start_seconds"] > 0
        assert row["label"] in out
    assert found["ratios"]["engine"]["gymnasium-sync"] == pytest.approx(
        engine["fps"]["median"] / peer["fps"]["median"]
    )
    assert missing["fps"] is None
    assert "Meta-World" in missing["error"]
    assert missing["error"] in out
    assert "round 1/1  engine" in err


def test_a_missing_peer_is_a_row_that_says_why(tmp_path):
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "envpool.py").write_text("raise ImportError('not here')")
    result = tmp_path / "result.json"
    process = command(
        *("--env", "Pendulum-v1", "--methods", "envpool,physics-limit,env-only", "--n", "2"),
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
    assert found["ratios"] == {"env-only": {}}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_leaves_no_process_and_no_file(tmp_path, number, code):
    result = tmp_path / "result.json"
    process = command(
        *("--env", "CartPole-v1", "--methods", "engine", "--seconds", "60", "--rounds", "1"),
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


def test_a_killed_run_takes_along_what_a_peer_started(tmp_path):
    # A peer whose worker does not notice that nobody is left.
    (tmp_path / "envpool.py").write_text("import subprocess as s; s.run(['sleep', '1000'])")
    process = command(
        *("--env", "CartPole-v1", "--methods", "envpool", "--seconds", "60", "--rounds", "1"),
        PYTHONPATH=str(tmp_path),
    )
    deadline = time.monotonic() + 20
    while len(processes := psutil.Process(process.pid).children(recursive=True)) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert "sleep" in {each.name() for each in processes}
    process.kill()
    process.communicate(timeout=20)
    assert gone(processes)


def test_a_child_that_is_killed_is_an_error_and_takes_its_workers_along():
    process = command(
        *("--env", "CartPole-v1", "--methods", "engine", "--seconds", "60", "--rounds", "1"),
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
    tuned = profile.Profile(parallelism=Parallelism(n=96, N=3, M=1), fps=1.0)
    (row,) = plan()
    assert (row.n, row.M, row.origin) == (4096, 0, "default")
    profile.save(EnvConfig(id="CartPole-v1"), policy, tuned)
    (row,) = plan()
    assert (row.n, row.N, row.M, row.origin) == (96, 3, 1, "profile")
    (row,) = plan(num_envs=8)
    assert (row.n, row.N, row.M, row.origin) == (8, 3, 1, "chosen")
    limit, serial = plan(methods="physics-limit,engine-serial")
    assert (limit.N, len(limit.requests()), limit.origin) == (3, 3, "fixed")
    assert (serial.n, serial.N, serial.M) == (96, 1, 0)


def test_several_settings_become_rows_with_names_of_their_own():
    rows = plan(methods="engine,env-only", configs="8,2,0;16,1,1")
    assert [row.label for row in rows] == ["engine 8,2,0", "engine 16,1,1", "env-only"]
    assert [(row.n, row.N, row.M) for row in rows] == [(8, 2, 0), (16, 1, 1), (8, 1, 0)]
    with pytest.raises(ConfigError, match="twice"):
        plan(configs="8,2,0;8,2,0")
