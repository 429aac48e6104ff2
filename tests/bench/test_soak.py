"""Whether memory is read of the right processes, and who the tuner's pick is compared with."""

import json
import statistics
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.soak import memory
from bench.tuning import pick_over
from fastcollect.control.parallelism import Parallelism
from fastcollect.tuning.results import Trial

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
    assert [row["steps"] // 10_000 for row in result["rows"]] == [1, 2, 3]
    first, _, last = result["rows"]
    for kind in ("collector", "launcher", "env_worker", "model_worker"):
        assert all(row[kind] > 5 for row in result["rows"])  # no Python process is smaller
        assert result["growth"][kind] == pytest.approx(last[kind] / first[kind] - 1)
        assert f"{last[kind]:.1f}" in done.stdout
    # An env worker never holds what JAX needs, a model worker does.
    assert last["env_worker"] < 100 < last["model_worker"]
    assert "bench.soak" in result["command"]
    assert result["machine"]["cpu"]


def test_memory_is_that_of_the_largest_process_of_each_kind():
    sleepers = [subprocess.Popen([sys.executable, "-c", GROWN, str(mib)], stdout=-1) for mib in (1, 64)]
    try:
        for each in sleepers:
            each.stdout.readline()
        pids = {"small": [sleepers[0].pid], "both": [each.pid for each in sleepers], "none": []}
        found = memory(SimpleNamespace(pids=lambda: pids))
    finally:
        for each in sleepers:
            each.kill()
            each.wait()
    assert set(found) == {"collector", "small", "both"}
    assert 48 < found["both"] - found["small"] < 80


GROWN = "import sys, time; held = b'x' * (int(sys.argv[1]) << 20); print(flush=True); time.sleep(100)"


def test_the_pick_is_compared_with_every_finalist_by_what_they_scored_side_by_side():
    pick, better, worse = (Parallelism(n, 1, 0) for n in (64, 128, 256))
    scores = {pick: 0.9, better: 1.2, worse: 0.6}
    final = {each: Trial(candidate=each, rung=0, score=score) for each, score in scores.items()}
    assert pick_over(final, pick) == {pick: 1.0, better: pytest.approx(0.75), worse: pytest.approx(1.5)}


HALVED = """
import sys
from bench import tuning
from bench.harness.command import main
from fastcollect.tuning import autotuner

whole = autotuner.candidate_grid
autotuner.candidate_grid = lambda *args: whole(*args)[::2]
if __name__ == "__main__":
    main(tuning.TuningArguments, tuning.compare, tuning.__doc__)
"""
"""The command with every second candidate of the grid."""


def test_the_tuners_pick_is_compared_with_the_whole_grid(tmp_path):
    file = tmp_path / "tuning.json"
    short = ("--budget", "3", "--trial-seconds", "0.05", "--final-seconds", "1")
    flags = ("--env", "CartPole-v1", "--policy", "random", *short, "--json", str(file))
    done = subprocess.run(
        [sys.executable, "-c", HALVED, *flags], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(file.read_text())
    final, pick, sweep = result["final"], result["tuner"]["pick"], result["sweep"]
    assert len(sweep) >= 20
    # The sweep's four best, by score within its one rung, and the pick, which may be one of them.
    best = sorted(sweep, key=lambda name: sweep[name]["score"], reverse=True)[:4]
    assert set(final) == {pick, *best}
    assert final[pick]["pick_over_this"] == 1.0
    # Each one's turns are kept; what is said of the pick is said of the finalist it compares worst with.
    assert all(each["fps"] == statistics.median(each["slices"]) for each in final.values())
    over = {name: each["pick_over_this"] for name, each in final.items()}
    assert result["pick_over_best"] == min(over.values())
    assert f"reaches {min(over.values()):.3f} of the best" in done.stdout
    for name, ratio in over.items():
        assert f"{name}: {final[name]['fps']:,.0f} steps/s" in done.stdout
        assert f"pick / this = {ratio:.3f}" in done.stdout


@pytest.mark.parametrize(
    ("module", "flags", "named"),
    [
        (
            "soak",
            "--steps 1 --checkpoints 1 --n 0 --json /",
            ("--checkpoints is 1", "num_envs (n) is 0", "--json"),
        ),
        ("soak", "--steps 3 --checkpoints 4", ("--checkpoints is 4",)),
        ("tuning", "--policy 3,a --final-seconds 0 --json /", ("policy", "--final-seconds is 0.0", "--json")),
        ("tuning", "--budget 0 --trial-seconds 0", ("budget is 0.0", "trial_seconds is 0.0")),
    ],
)
def test_wrong_values_are_named_together(module, flags, named):
    done = command(f"bench.{module}", *flags.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == len(named)
    assert all(each in done.stderr for each in named)
