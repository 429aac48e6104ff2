"""What a worker raises, and what is refused before any starts, is what the user reads."""

import gc
import os
from dataclasses import replace

import numpy as np
import psutil
import pytest
from support.coded_collector import coded, config
from support.coded_env import CodedEnv, EchoPolicy, echo, echo_policy
from threadpoolctl import threadpool_info

from fastcollect import PolicyConfig
from fastcollect.control.collector import Collector
from fastcollect.control.config import CollectorConfig
from fastcollect.control.serial import SerialCollector
from fastcollect.envs.base import EnvStepError
from fastcollect.envs.registry import EnvConfig
from fastcollect.support.errors import ConfigError, WorkerError
from fastcollect.workers.groups import env_seeds


def shared_memory_files():
    return set(os.listdir("/dev/shm"))


@pytest.mark.parametrize("models", (0, 1))
def test_an_exception_in_an_environment_is_what_the_user_reads(models):
    children = set(psutil.Process().children(recursive=True))
    with (
        pytest.raises(WorkerError) as raised,
        Collector(config(env=coded(fail_at=7), num_model_workers=models)) as collector,
    ):
        while True:
            collector.take(timeout=30)
    text = str(raised.value)
    assert "ZeroDivisionError: the simulator exploded" in text
    assert "coded_env.py" in text
    first_line = text.splitlines()[0]
    assert "env worker" in first_line
    assert "step 7" in first_line
    assert any(f"environment {env}," in first_line for env in (1, 3, 5, 7))
    assert set(psutil.Process().children(recursive=True)) <= children


class NaNPolicy:
    """Gives NaN to the second row after a while."""

    def __init__(self, spec):
        self.parameters, self.extras, self.noise = {}, {}, None
        self._calls = 0

    def initial_parameters(self, seed):
        return {}

    def load(self, parameters):
        pass

    def act(self, observation, noise, action, extras):
        self._calls += 1
        action[...] = echo(observation)
        if self._calls > 5:
            action[1, 2] = np.nan


class RaisingPolicy(NaNPolicy):
    def act(self, observation, noise, action, extras):
        raise FloatingPointError("the network exploded")


@pytest.mark.parametrize("models", (0, 1))
def test_nan_actions_are_named(models):
    path = f"{__name__}:NaNPolicy"
    policy = PolicyConfig(name="nan", inline=path, batched=path)
    with (
        pytest.raises(ConfigError, match=r"^env worker \d+, environment \d+, step \d+:.*nan.*finite numbers"),
        Collector(config(policy=policy, num_model_workers=models, num_env_workers=1)) as collector,
    ):
        while True:
            collector.take(timeout=30)


def test_an_exception_in_a_batched_policy_is_what_the_user_reads():
    path = f"{__name__}:RaisingPolicy"
    policy = PolicyConfig(name="raising", inline=f"{__name__}:NaNPolicy", batched=path)
    with (
        pytest.raises(WorkerError, match=r"(?s)model worker 0.*FloatingPointError: the network exploded"),
        Collector(config(policy=policy, num_model_workers=1)),
    ):
        pass


@pytest.mark.parametrize(
    ("inline", "batched", "text"),
    [
        ("no_such_module:Policy", "no_such_module:Policy", "no_such_module:Policy"),
        ("support.coded_env:Missing", "support.coded_env:Missing", "Missing"),
        ("nonsense", "nonsense", "package.module:name"),
    ],
)
def test_a_policy_that_cannot_be_imported_is_named(inline, batched, text):
    policy = PolicyConfig(name="broken", inline=inline, batched=batched)
    with pytest.raises(ConfigError, match=text):
        Collector(config(policy=policy))


def test_a_batched_policy_that_cannot_be_imported_is_named():
    good = echo_policy()
    policy = PolicyConfig(name="half", inline=good.inline, batched="no_such_module:Policy")
    with pytest.raises(ConfigError, match="no_such_module:Policy"):
        Collector(config(policy=policy, num_model_workers=1))


class BrokenPipeEnv(CodedEnv):
    def step(self, action, out):
        raise BrokenPipeError("the environment's own subprocess is gone")


class ExitingEnv(CodedEnv):
    def step(self, action, out):
        os._exit(2)


@pytest.mark.parametrize(
    ("env", "text"),
    [
        ("BrokenPipeEnv", r"step 0:(?s:.*)own subprocess is gone"),
        ("ExitingEnv", r"environments 0 to 3.* code 2"),
    ],
)
def test_an_environment_that_ends_its_worker_is_told_from_the_engine(env, text):
    config_ = config(env=EnvConfig(id="odd", entry_point=f"{__name__}:{env}"), num_env_workers=1)
    with pytest.raises(WorkerError, match=text), Collector(config_) as collector:
        while True:
            collector.take(timeout=30)


def test_a_serial_collector_frees_what_it_took_also_when_it_cannot_start():
    def descriptors():
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    def threads():
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    before, pools = descriptors(), threads()
    with SerialCollector(config(num_env_workers=4)) as collector:
        collector.take()
    with pytest.raises(RuntimeError, match="closed"):
        collector.take()
    with pytest.raises(RuntimeError, match="cannot start"):
        SerialCollector(config(env=EnvConfig(id="odd", entry_point=f"{__name__}:UnbuildableEnv")))
    del collector
    assert descriptors() == before
    assert threads() == pools


class UnbuildableEnv(CodedEnv):
    def __init__(self, seeds):
        super().__init__(seeds)
        if len(seeds) > 1:
            raise RuntimeError("cannot start")


class FailingResetEnv(CodedEnv):
    def reset(self, observation):
        super().reset(observation)
        if len(self._state) > 1 and env_seeds(0, 7, 1, 0)[0] in self._state[:, 0]:
            raise EnvStepError(
                int(np.flatnonzero(self._state[:, 0] == env_seeds(0, 7, 1, 0)[0])[0]), "no start"
            )


@pytest.mark.parametrize("models", (0, 1))
def test_a_failing_reset_names_the_environment_of_the_whole_run(models):
    env = EnvConfig(id="failing", entry_point=f"{__name__}:FailingResetEnv")
    with pytest.raises(WorkerError, match=r"environment 7, step 0"):
        Collector(config(env=env, num_model_workers=models))


class ShapeShifter(CodedEnv):
    """Emits other observations in the second worker, as other kwargs might make it."""

    def __init__(self, seeds):
        super().__init__(seeds)
        if env_seeds(0, 4, 1, 0)[0] in seeds:
            self.spec = replace(self.spec, observation_dtype=np.dtype(np.float64))


def test_environments_that_differ_between_workers_are_refused():
    env = EnvConfig(id="shifting", entry_point=f"{__name__}:ShapeShifter")
    with pytest.raises(ConfigError, match=r"same spaces.*environment 4"):
        Collector(config(env=env))


class OtherExtras(EchoPolicy):
    def __init__(self, spec):
        super().__init__(spec)
        del self.extras["drawn"]


def test_a_batched_policy_that_declares_other_extras_is_refused():
    policy = replace(echo_policy(), batched=f"{__name__}:OtherExtras")
    with pytest.raises(ConfigError, match=r"extras of the batched policy"):
        Collector(config(policy=policy, num_model_workers=1))


@pytest.mark.parametrize("models", (0, 1))
def test_an_exception_in_a_policy_names_the_worker(models):
    path = f"{__name__}:LateRaisingPolicy"
    policy = PolicyConfig(name="late", inline=path, batched=path)
    who = (
        r"^env worker \d+, environments \d+ to \d+, step \d+: in the policy:"
        if models == 0
        else "^model worker 0"
    )
    with (
        pytest.raises(WorkerError, match=rf"{who}(?s:.*)FloatingPointError: late"),
        Collector(config(policy=policy, num_model_workers=models)) as collector,
    ):
        while True:
            collector.take(timeout=30)


class LateRaisingPolicy(NaNPolicy):
    def act(self, observation, noise, action, extras):
        self._calls += 1
        action[...] = echo(observation)
        if self._calls > 5:
            raise FloatingPointError("late")


def test_too_few_kwargs_for_the_environments_of_all_workers():
    env = EnvConfig(id="gym:Pendulum-v1", kwargs={"per_env_kwargs": [{"g": 9.0 + i} for i in range(7)]})
    with pytest.raises(ConfigError, match=r"7 entries, environment 7 needs one"):
        Collector(config(env=env))


@pytest.mark.parametrize("workers", (2.5, True, "3"))
def test_resize_refuses_what_is_no_number_of_workers(workers):
    with Collector(config()) as collector:
        with pytest.raises(ConfigError, match=r"\(N\) is"):
            collector.resize(num_env_workers=workers)
        collector.resize(num_env_workers=3)
        collector.take()


def test_too_little_memory_says_how_much_is_needed(monkeypatch):
    monkeypatch.setattr("fastcollect.control.config.memory_available", lambda: 10_000)
    before = shared_memory_files()
    text = r"^0\.\d\d GiB of shared memory are needed, 0\.00 GiB are available: 0\.\d\d for the rings of 2"
    with pytest.raises(ConfigError, match=text):
        Collector(config(num_envs=4000))
    assert shared_memory_files() == before


def test_every_wrong_number_is_named_at_once():
    with pytest.raises(ConfigError) as raised:
        CollectorConfig(env=coded(), num_envs=0, num_env_workers=0, num_model_workers=-1, deadline=0)
    text = str(raised.value)
    for part in ("(n) is 0", "(N) is 0", "(M) is -1", "deadline is 0", "allowed: 1 to 65536"):
        assert part in text
    with pytest.raises(ConfigError, match=r"divisor of num_envs.*\[1, 2, 3, 6\]"):
        CollectorConfig(env=coded(), num_envs=6, group_size=4)
