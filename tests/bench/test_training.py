"""The comparison of whole trainings: equal work, honest curves, what it refuses."""

import contextlib
import json

import gymnasium
import numpy as np
import pytest

from bench import training
from bench.harness.measure import MeasurementError
from bench.methods import METHODS
from bench.methods.training import TrainingRequest, returns_of
from bench.training import TrainingArguments, check, compare
from fastcollect.support.errors import ConfigError

pytestmark = pytest.mark.slow


def request(**changes):
    small = {"batch": 8, "hidden": (8,), "every": 256, "start_steps": 128, "episodes": 2, "algo": "sac"}
    return TrainingRequest(**{"method": "ours-training", "env": "Pendulum-v1", "seed": 3, **small, **changes})


def test_a_test_is_of_whole_episodes_and_the_same_for_all():
    def act(observation):
        assert observation.shape == (3,)
        return np.zeros(1, np.float32)

    first = returns_of(request(), act)
    env, returns = gymnasium.make("Pendulum-v1"), []
    for seed in (1_000_003, 1_000_004):
        env.reset(seed=seed)
        total, ended = 0.0, False
        while not ended:
            _, reward, terminated, truncated, _ = env.step(np.zeros(1, np.float32))
            total, ended = total + reward, terminated or truncated
        returns.append(total)
    assert first == {"return_mean": np.mean(returns), "return_std": np.std(returns)}
    assert returns_of(request(), act) == first


@pytest.mark.parametrize("algo", ["sac", "td3"])
def test_ours_makes_an_update_for_each_step_after_those_at_random(algo):
    with contextlib.closing(METHODS["ours-training"].build(request(algo=algo))) as subject:
        assert subject.step() == 256
        assert subject.step() == 256
        subject.wait()
        facts = subject.facts()
    assert facts["env_steps"] == 512
    assert 0 <= 512 - 128 - facts["updates"] < 16  # what a dispatch has not been filled with waits
    assert np.isfinite(facts["return_mean"])


def test_every_seed_has_a_row_for_each_method_with_its_curve(tmp_path, monkeypatch):
    asked = []

    @contextlib.contextmanager
    def begun(requests):
        (each,) = requests
        asked.append(each)
        if each.method == "sb3-training":
            raise MeasurementError("not there")
        turns = iter(range(2, 99))

        def part(warm_up, seconds):
            steps = each.every * next(turns)
            speed = 30.0 if each.method == "ours-training" else 10.0
            found = {"rate": speed, "cpus_busy": 1, "num_envs": 1, "memory_mib": 1, "start_seconds": 1}
            return {**found, "env_steps": steps, "updates": steps - 5, "return_mean": 7.0, "return_std": 0.5}

        yield part

    monkeypatch.setattr(training, "started", begun)
    methods = ("ours-training", "sbx-training", "sb3-training")
    file = tmp_path / "training.json"
    sizes = {"steps": 40, "every": 10, "start_steps": 5}
    compare(TrainingArguments(methods=methods, seeds=(4, 9), json=file, **sizes))
    assert [(each.method, each.seed) for each in asked] == [(m, s) for s in (4, 9) for m in methods]
    rows = json.loads(file.read_text())["rows"]
    assert [(row["method"], row["seed"]) for row in rows] == [(m, s) for s in (4, 9) for m in methods]
    for row in rows:
        if row["method"] == "sb3-training":
            assert "not there" in row["error"]
        else:
            assert [point["env_steps"] for point in row["curve"]] == [20, 30, 40]
    assert rows[0]["ratios"] == {"sbx-training": 3.0}


def test_everything_wrong_is_said_at_once():
    wrong = {"methods": ("ours-host", "nobody"), "seeds": (), "every": 0, "steps": 1, "episodes": 0}
    with pytest.raises(ConfigError) as caught:
        check(TrainingArguments(**wrong, start_steps=0))
    text = "\n".join(caught.value.problems)
    for flag in ("ours-host", "nobody", "--seeds", "--every", "--steps", "--episodes", "--start-steps"):
        assert flag in text
