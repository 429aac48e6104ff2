import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def command(module, *arguments):
    return subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=100
    )


SHORT = ("--steps", "30000", "--n", "32", "--N", "1", "--M", "1", "--checkpoints", "3")


def test_a_short_soak_reads_the_memory_of_every_kind_of_process(tmp_path):
    file = tmp_path / "soak.json"
    done = command("bench.soak", *SHORT, "--json", str(file))
    assert done.returncode == 0, done.stderr
    result = json.loads(file.read_text())
    assert len(result["rows"]) == 3
    assert result["rows"][-1]["steps"] >= 30000
    for kind in ("collector", "launcher", "env_worker", "model_worker"):
        assert all(row[kind] > 1 for row in result["rows"])
        assert result["growth"][kind] == pytest.approx(result["rows"][-1][kind] / result["rows"][0][kind] - 1)
    # An env worker never holds what JAX needs, a model worker does.
    assert result["rows"][-1]["env_worker"] < 100 < result["rows"][-1]["model_worker"]


def test_the_tuners_pick_is_compared_with_the_whole_grid(tmp_path):
    file = tmp_path / "tuning.json"
    short = ("--budget", "3", "--trial-seconds", "0.05", "--final-seconds", "1")
    done = command("bench.tuning", "--env", "CartPole-v1", "--policy", "random", *short, "--json", str(file))
    assert done.returncode == 0, done.stderr
    result = json.loads(file.read_text())
    assert len(result["sweep"]) >= 20
    assert result["tuner"]["pick"] in result["final"]
    assert 0 < result["pick_over_best"] <= 1.0


def test_bad_input_exits_with_2():
    done = command("bench.soak", "--steps", "1", "--checkpoints", "1")
    assert done.returncode == 2
    assert "checkpoints" in done.stderr
