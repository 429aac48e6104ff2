"""The points of every axis, and a real run of a moment."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench import fps, scaling
from bench.harness.measure import measure
from bench.methods.base import Request
from bench.scaling import ScalingArguments, make_cases, points_to
from fastcollect.control.parallelism import Parallelism
from fastcollect.support.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("most", "points"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (16, [1, 2, 4, 8, 16])]
)
def test_points_double_up_to_the_most(most, points):
    assert points_to(most) == points


def test_each_axis_varies_one_thing_and_a_shared_point_is_one_row(monkeypatch):
    monkeypatch.setattr(fps, "cpu_count", lambda: 6)
    monkeypatch.setattr(scaling, "_GPU", Path("/nowhere"))
    cases, axes = make_cases(ScalingArguments(env="CartPole-v1", n=8))
    rows = [case.row for case in cases]
    by_label = {row["label"]: row for row in rows}
    assert len(by_label) == len(rows)
    varied = {"N": "N", "n": "n", "M": "M", "policy": "policy", "learner": "method"}
    assert set(axes) == set(varied)
    for axis, points in axes.items():
        on_axis = [by_label[label] for label in points.values()]
        for key in varied.values():
            assert len({row[key] for row in on_axis}) == (len(points) if key == varied[axis] else 1)
    assert [by_label[label]["N"] for label in axes["N"].values()] == [1, 2, 4, 6]
    assert [by_label[label]["n"] for label in axes["n"].values()] == [1, 4, 16]
    assert [by_label[label]["M"] for label in axes["M"].values()] == [0, 1, 2, 4, 6]
    shared = set(axes["N"].values()) & set(axes["M"].values())
    assert {tuple(by_label[label][key] for key in "nNM") for label in shared} == {(8, 6, 0)}
    for case in cases:
        assert [case.row[key] for key in "nNM"] == list(vars(case.request.parallelism).values())


def test_a_gpu_adds_rows_with_model_workers_on_it(monkeypatch, tmp_path):
    monkeypatch.setattr(fps, "cpu_count", lambda: 2)
    monkeypatch.setattr(scaling, "_GPU", tmp_path)
    cases, axes = make_cases(ScalingArguments(env="CartPole-v1", n=8))
    rows = [case.request for case in cases]
    assert [name for name in axes["M"] if "GPU" in name] == ["1 GPU", "2 GPU"]
    assert list(axes["learner"]) == ["none", "CPU", "GPU", "GPU, M=1"]
    assert {row.parallelism.M for row in rows if row.method == "ours-learner-gpu"} == {0, 1}
    assert {row.parallelism.M for row in rows if row.method == "ours-gpu"} == {1, 2}


def test_a_learner_keeps_its_ratio_to_the_steps_that_are_counted():
    size = Parallelism(4, 1, 0)
    request = Request(method="ours-learner", env="HalfCheetah-v5", parallelism=size, policy="16,16")
    found = measure([request], 0.1, 2.0)
    # An update for 16 steps; what was begun before the clock, and K at a time, blurs it.
    assert found["updates"] == pytest.approx(found["rate"] * 2.1 / 16, rel=0.5)
    assert sum(found["shares"]["env_worker"].values()) == pytest.approx(1)


def test_wrong_values_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="NoSuch"):
        make_cases(ScalingArguments(env="NoSuch-v0"))
    with pytest.raises(ConfigError, match="num_envs"):
        make_cases(ScalingArguments(env="CartPole-v1", n=0))
    with pytest.raises(ConfigError, match="is a folder"):
        make_cases(ScalingArguments(json=tmp_path))


HURRIED = """
import runpy

from bench import fps

fps.WARM_UP = 0.05
runpy.run_module("bench.scaling", run_name="__main__", alter_sys=True)
"""
"""The command with a tenth of its warm-up, with all processors busy, before each of ten measurements."""


def test_a_real_run_writes_numbers_and_a_picture(tmp_path):
    file = tmp_path / "scaling.json"
    command = ["-c", HURRIED, "--env", "CartPole-v1", "--n", "4", "--seconds", "0.1", "--rounds", "1"]
    done = subprocess.run(
        [sys.executable, *command, "--json", str(file)], cwd=ROOT, capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(file.read_text())
    rows = {row["label"]: row for row in result["rows"]}
    assert "discrete actions" in rows[result["axes"].pop("learner")["CPU"]]["error"]
    for points in result["axes"].values():
        for label in points.values():
            assert rows[label]["fps"]["median"] > 0
            assert sum(rows[label]["shares"]["env_worker"].values()) == pytest.approx(1)
            latency = rows[label]["action_latency_seconds"]
            assert 0 < latency["median"] <= latency["p99"]
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scaling.json", "scaling.png"]
    assert "along M" in done.stdout
