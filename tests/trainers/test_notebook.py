"""Training from Python: no command line, no signal handlers off the main thread."""

import signal
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest
from support.training import ROOT, artifact, assert_same, environment, one_launcher, tiny_config
from support.training import train as train_in

import trainers
from fastcollect.support.errors import ConfigError
from trainers import configure, load, train
from trainers.config.training import TrainConfig

pytestmark = pytest.mark.usefixtures("one_launcher")
__all__ = ["one_launcher"]


def in_a_thread(function):
    """What it returns, called in a thread of its own."""
    found = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join(100)
    return found[0]


def test_a_run_in_a_thread_is_the_run_of_the_command_and_leaves_signals_alone(tmp_path):
    config, handlers = tiny_config(), [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    run = in_a_thread(lambda: train(config, folder=tmp_path / "thread", quiet=True))
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    train_in(tmp_path / "here", config)
    assert_same(artifact(run.path), artifact(tmp_path / "here"))
    assert run.summary["env_steps"] == config.env_steps == run.evaluations[-1]["env_steps"]
    assert run.metrics[-1]["updates"] == run.summary["updates"]


def test_a_run_that_is_loaded_acts_as_the_one_that_was_trained(tmp_path):
    run = train(tiny_config(), folder=tmp_path / "run", quiet=True)
    again = load(tmp_path / "run")
    assert again.config == run.config
    assert again.summary == run.summary
    observations = np.random.default_rng(0).normal(size=(5, *run.policy.spec.observation_shape))
    actions = again.policy(observations)
    # The mean of the tanh-Gaussian, by hand: layers, tanh, and the box of actions.
    weights = artifact(run.path, "policy")
    x = observations.astype(run.policy.spec.observation_dtype).astype(np.float64)
    x = np.maximum(x @ weights["parameters/kernel_0"] + weights["parameters/bias_0"], 0)
    head = x @ weights["parameters/kernel_1"] + weights["parameters/bias_1"]
    low, high = weights["low"], weights["high"]
    mean = np.tanh(head[:, : head.shape[1] // 2])
    np.testing.assert_allclose(actions, (low + high) / 2 + (high - low) / 2 * mean, rtol=1e-4, atol=1e-6)
    # Bit for bit at equal shapes: BLAS sums one row in another order than several.
    for each in (observations, observations[0]):
        np.testing.assert_array_equal(run.policy(each), again.policy(each))
    np.testing.assert_allclose(run.policy(observations[0]), actions[0], rtol=1e-6)
    with pytest.raises(ValueError, match="observations of shape"):
        run.policy(observations[:, :1])


def test_a_finished_run_is_not_trained_again_and_an_unfinished_one_not_loaded(tmp_path):
    first = train(tiny_config(), folder=tmp_path / "run", quiet=True)
    before = {file: file.stat().st_mtime_ns for file in (first.path / "artifacts").iterdir()}
    assert train(tiny_config(), folder=tmp_path / "run", quiet=True).summary == first.summary
    assert {file: file.stat().st_mtime_ns for file in (first.path / "artifacts").iterdir()} == before
    (first.path / "summary.json").unlink()
    with pytest.raises(ConfigError, match="not finished"):
        load(first.path)


def test_a_configuration_has_the_tasks_own_settings_and_says_what_is_wrong():
    config = configure("push-v3", env_steps=60_000, algorithm={"discount": 0.9})
    assert (config.env, config.env_steps, config.env_kwargs) == ("push-v3", 60_000, ("horizon=200",))
    assert (config.algorithm.n_step, config.algorithm.discount) == (3, 0.9)
    assert configure("HalfCheetah-v5") == TrainConfig(env="HalfCheetah-v5")
    assert configure("reach-v3").algorithm.discount == 0.9
    with pytest.raises(ConfigError) as caught:
        configure("reach-v3", env_stps=1, seed="x")
    assert len(caught.value.problems) == 2
    with pytest.raises(ConfigError, match=r"algorithm.discount is 2.*the call"):
        configure("reach-v3", algorithm={"discount": 2.0})
    with pytest.raises(ConfigError, match="algo is 'no'"):
        configure("reach-v3", "no")


def test_the_package_names_what_it_has_and_loads_it_late():
    assert all(getattr(trainers, name) for name in trainers.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        trainers.nothing  # noqa: B018
    code = "import sys, trainers; assert 'jax' not in sys.modules; print(sorted(trainers.__all__))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_program_without_arguments_or_main_guard_trains(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(
            """
            import threading
            from trainers import load, train
            from support.training import tiny_config

            runs = []
            thread = threading.Thread(target=lambda: runs.append(train(tiny_config(), folder="run")))
            thread.start()
            thread.join()
            print(load("run").summary["updates"], runs[0].summary["updates"])
            """
        )
    )
    done = subprocess.run(
        [sys.executable, str(program), "--stage", "nonsense"],
        cwd=tmp_path,
        env=environment(tmp_path / "cache"),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["32", "32"]
