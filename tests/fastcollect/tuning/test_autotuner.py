import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastcollect import mlp_policy, random_policy
from fastcollect.control.config import CollectorConfig
from fastcollect.control.parallelism import Parallelism
from fastcollect.envs.registry import EnvConfig
from fastcollect.support.errors import ConfigError
from fastcollect.tuning import profile
from fastcollect.tuning.autotuner import Tuner, TunerConfig
from fastcollect.tuning.results import Outcome, Trial, candidate_grid, explain

ROOT = Path(__file__).resolve().parents[3]
CARTPOLE = CollectorConfig(env=EnvConfig(id="CartPole-v1"), policy=mlp_policy((8,)))
SHARES = {"env_worker": {"stepping": 0.9, "waiting_actions": 0.1, "inferring": 0.0, "waiting_learner": 0.0}}


def trial(n, workers, models, rung, score, *slices, error=None):
    return Trial(
        candidate=Parallelism(n, workers, models),
        rung=rung,
        slices=slices,
        score=score,
        shares=SHARES,
        error=error,
    )


@given(
    step=st.floats(1e-8, 1.0),
    length=st.integers(1, 256),
    cpus=st.integers(1, 128),
)
def test_the_grid_is_sane_on_any_machine(step, length, cpus):
    grid = candidate_grid(step, length, cpus)
    assert grid
    assert len(set(grid)) == len(grid)
    for c in grid:
        assert c.n >= 1
        assert 1 <= c.N <= cpus + 1
        assert 0 <= c.M <= c.N
        assert c.n == 1 or c.n * length * step <= 0.5  # no block older than half a second
    assert any(c.M == 0 and cpus == c.N for c in grid)


def test_the_winner_is_the_best_of_the_last_rung_and_ratios_never_cross_rungs():
    trials = (
        trial(8, 2, 0, 0, 1.0, 999.0),
        trial(16, 2, 1, 0, 0.5, 10.0),
        trial(32, 2, 0, 0, 9.0, error="too big"),
        trial(64, 2, 0, 0, 0.8, 20.0),
        trial(8, 2, 0, 1, 1.1, 10.0, 30.0, 14.0),
        trial(64, 2, 0, 1, 0.99, 12.0, 12.0),
    )
    outcome = Outcome(trials=trials, untried=0, seconds=1.0)
    assert outcome.best is trials[4]
    assert outcome.best.fps == 14.0
    assert outcome.best.spread == pytest.approx(20 / 14)
    assert [(c.n, t.rung) for c, t in outcome.last().items()] == [(8, 1), (64, 1), (16, 0), (32, 0)]
    assert outcome.ratio(Parallelism(64, 2, 0)) == pytest.approx(0.9)
    assert outcome.ratio(Parallelism(16, 2, 1)) == pytest.approx(0.5)
    text = "\n".join(explain(outcome))
    assert "stepping 90%" in text
    assert "the simulation is the limit" in text
    assert "best with M=1: 0.50 x the winner (n=16 N=2 M=1)" in text


def test_a_run_on_real_processes_keeps_its_budget_and_picks_a_measured_candidate():
    seen = []
    config = TunerConfig(collector=CARTPOLE, budget=10.0, trial_seconds=0.2)
    outcome = Tuner(config, lambda *args: seen.append(args[:2])).run()
    good = [t for t in outcome.trials if t.error is None]
    assert {t.candidate for t in good} <= {candidate for candidate, _ in seen}
    last = max(t.rung for t in good)
    assert last >= 1
    assert outcome.best.score == max(t.score for t in good if t.rung == last)
    assert all(t.fps > 0 and t.start_seconds > 0 and t.rss > 2**20 and t.slices for t in good)
    # After the budget nothing new is started.
    assert outcome.seconds < 10.0 + 20.0


def test_a_learners_load_is_imitated():
    config = TunerConfig(collector=CARTPOLE, learner_load=0.9, trial_seconds=1.0)
    (loaded,) = Tuner(config).race([Parallelism(64, 1, 0)], 1.0).trials
    assert loaded.shares["learner"]["elsewhere"] > 0.5


def test_a_race_scores_each_candidate_against_the_middle_one_of_its_round():
    config = TunerConfig(collector=CARTPOLE, trial_seconds=0.1)
    racers = [Parallelism(1, 1, 0), Parallelism(64, 1, 0), Parallelism(256, 1, 0)]
    trials = Tuner(config).race(racers, 2.0).trials
    assert [t.candidate for t in trials] == racers
    speeds = np.array([t.slices for t in trials])  # (candidates, rounds): every one as often as the others
    assert speeds.shape[1] > 3
    assert len(np.unique(speeds)) == speeds.size
    ratios = speeds / np.sort(speeds, axis=0)[1]
    np.testing.assert_allclose([t.score for t in trials], np.median(ratios, axis=1), rtol=1e-12)


def test_a_memory_limit_excludes_what_exceeds_it():
    config = TunerConfig(collector=CARTPOLE, budget=1.0, memory_limit=10 / 2**10, trial_seconds=0.1)
    with pytest.raises(ConfigError, match=r"memory_limit.*every candidate"):
        Tuner(config).run()


def test_wrong_values_are_all_named():
    with pytest.raises(ConfigError) as raised:
        TunerConfig(collector=CARTPOLE, budget=0, learner_load=1.5, memory_limit=-1)
    assert all(
        word in str(raised.value) for word in ("budget is 0", "learner_load is 1.5", "memory_limit is -1")
    )


def test_profiles_are_kept_for_each_environment_and_policy(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    env, fast = EnvConfig(id="reach-v3"), EnvConfig(id="reach-v3", kwargs={"physics": "fast"})
    best = Parallelism(n=64, N=2, M=0)
    assert profile.load(env, random_policy()) is None
    file = profile.save(env, random_policy(), best, fps=1.5)
    assert file.is_relative_to(tmp_path)
    assert profile.load(env, random_policy()) == best
    assert profile.load(fast, random_policy()) is None
    assert profile.load(env, mlp_policy((8,))) is None
    for hostile in (
        "",
        "{",
        "[]",
        '{"best": {"n": -1, "N": 1, "M": 0, "fps": 1}}',
        '{"best": 3}',
        "\x00" * 100,
        '{"best": {}}',
    ):
        file.write_text(hostile)
        assert profile.load(env, random_policy()) is None


def command(*arguments, cwd, **kwargs):
    environment = {**os.environ, "XDG_CACHE_HOME": str(cwd / "cache")}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "tune_throughput.py"), *arguments],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **kwargs,
    )


def test_the_command_writes_what_it_promises(tmp_path):
    process = command(
        *("--env", "CartPole-v1", "--policy", "8", "--budget", "5", "--json", "out.json"), cwd=tmp_path
    )
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["env"] == "CartPole-v1"
    assert set(result["best"]) == {"n", "N", "M", "fps"}
    assert result["best"]["fps"] > 0
    assert all({"n", "N", "M", "fps"} <= set(t) for t in result["trials"])
    assert result["machine"]["versions"]["numpy"]
    assert f"n={result['best']['n']} N={result['best']['N']} M={result['best']['M']}" in out
    (folder,) = (tmp_path / "runs" / "tune").iterdir()
    assert json.loads((folder / "result.json").read_text()) == result
    assert (folder / "search.png").read_bytes().startswith(b"\x89PNG")
    assert "search.png" in (folder / "README.md").read_text()
    (saved,) = (tmp_path / "cache" / "fastcollect" / "profiles").iterdir()
    assert json.loads(saved.read_text())["best"]["n"] == result["best"]["n"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--env", "reech-v3"), ("reech-v3", "reach-v3")),
        (
            ("--env", "CartPole-v1", "--budget", "0", "--learner-load", "2"),
            ("budget is 0", "learner_load is 2"),
        ),
        (("--env", "CartPole-v1", "--policy", "sixteen"), ("'sixteen'", "256,256")),
        (("--env", "CartPole-v1", "--json", "no/such/folder/x.json"), ("no/such/folder",)),
        (("--env", "Blackjack-v1"), ("Tuple", "Box")),
        (("--env", "CartPole-v1", "--memory-limit", "nan"), ("memory_limit is nan",)),
        (("--env", "CartPole-v1", "--budget", "inf"), ("budget is inf",)),
        (("--env", "CartPole-v1", "--runs", "/dev/null/runs"), ("/dev/null",)),
        (("--env", "reach-v3", "--env-kwargs", "physics=warp"), ("warp", "exact", "fast")),
        (("--env", "CartPole-v1", "--env-kwargs", "nonsense"), ("nonsense", "name=value")),
        ((), ("env",)),
    ],
)
def test_bad_input_is_one_clear_error_and_leaves_nothing_behind(arguments, words, tmp_path):
    process = command(*arguments, cwd=tmp_path)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2, err
    assert all(word in err for word in words), err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("signum", (signal.SIGINT, signal.SIGTERM))
def test_an_interrupted_search_leaves_no_process(signum, tmp_path):
    process = command("--env", "CartPole-v1", "--budget", "60", cwd=tmp_path, start_new_session=True)
    time.sleep(4)
    os.kill(process.pid, signum)
    process.communicate(timeout=30)
    assert process.returncode == 128 + signum
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    assert list(tmp_path.iterdir()) == []
