"""States that cannot be saved or do not fit, and workers that die while they save."""

import gc
import os
import signal
import time

import numpy as np
import pytest
from support.coded_env import CodedEnv, EchoPolicy, echo
from support.collectors import CODED, asynchronous, one_round, reproducible

from fastcollect import PolicyConfig
from fastcollect.control.collector import Collector
from fastcollect.control.serial import SerialCollector
from fastcollect.envs.base import StateUnsupportedError
from fastcollect.envs.registry import EnvConfig
from fastcollect.memory.segment import FieldSpec
from fastcollect.support.errors import ConfigError, StallError, WorkerError
from fastcollect.workers.groups import env_seeds


@pytest.mark.parametrize("kind", (Collector, SerialCollector))
def test_a_state_in_the_middle_of_a_round_is_refused(kind):
    with kind(reproducible()) as collector:
        with pytest.raises(RuntimeError, match=r"between two rounds.* 0 of 4 were taken"):
            collector.get_state()
        collector.take(timeout=30)
        with pytest.raises(RuntimeError, match=r"between two rounds.* 1 of 4 were taken"):
            collector.get_state()
        for _ in range(3):
            collector.take(timeout=30)
        collector.get_state()
    with pytest.raises(RuntimeError, match="closed"):
        collector.get_state()


def test_a_paused_collector_is_refused():
    with Collector(reproducible()) as collector:
        one_round(collector)
        collector.pause()
        with pytest.raises(RuntimeError, match="call resume first"):
            collector.get_state()
        collector.resume()
        collector.get_state()


@pytest.fixture(scope="module")
def coded_state():
    with SerialCollector(reproducible()) as collector:
        one_round(collector)
        return collector.get_state()


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"seed": 6}, ["seed is 6 here, 5 in the saved state"]),
        ({"block_length": 5}, ["block_length is 5 here, 4"]),
        ({"num_envs": 2}, ["total_envs is 4 here, 8", "group_sizes is [2 2] here, [2 2 2 2]"]),
        ({"group_size": 4}, ["group_sizes is [4 4] here, [2 2 2 2]"]),
        ({"env": EnvConfig(id="CartPole-v1"), "seed": 9}, ['env is \'["CartPole-v1"', "seed is 9"]),
        ({"env": EnvConfig(id="coded", entry_point=CODED.entry_point, kwargs={"fail_at": 9})}, ["fail_at"]),
        (
            {"policy": PolicyConfig(name="wide", inline=f"{__name__}:WideEcho", batched="")},
            ["published weights: parameter 'offset' has shape (1,), the policy has (2,)"],
        ),
    ],
)
@pytest.mark.parametrize("kind", (Collector, SerialCollector))
def test_a_state_that_does_not_fit_is_refused_with_every_mismatch(coded_state, kind, changes, names):
    gc.collect()
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ConfigError) as raised:
        kind(reproducible(**changes), state=coded_state)
    for name in names:
        assert name in str(raised.value)
    del raised
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == descriptors


class WideEcho(EchoPolicy):
    def __init__(self, spec):
        super().__init__(spec)
        self.parameters = {"offset": FieldSpec((2,), np.dtype(np.float32))}

    def initial_parameters(self, seed):
        return {"offset": np.zeros(2, np.float32)}


@pytest.mark.parametrize("kind", (Collector, SerialCollector))
def test_a_damaged_state_is_refused_by_name(coded_state, kind):
    without = {key: array for key, array in coded_state.items() if not key.startswith("group/4/")}
    with pytest.raises(ConfigError, match="no 'group/4/first_step'"):
        kind(reproducible(), state=without)
    narrow = {**coded_state, "group/2/observation": coded_state["group/2/observation"][:, :2]}
    del narrow["group/2/success_any"]
    with pytest.raises(ConfigError, match=r"environments 2 to 3 \(coded\)") as raised:
        kind(reproducible(), state=narrow)
    assert "observation is int64 of shape (2, 2) in the saved state" in str(raised.value)
    assert "success_any is missing" in str(raised.value)
    with pytest.raises(ConfigError, match=r"no 'life'(?s:.*)env is .*missing"):
        kind(reproducible(), state={})


def faulty(name):
    return reproducible(EnvConfig(id="faulty", entry_point=f"{__name__}:{name}"))


class Unsupported(CodedEnv):
    def get_state(self):
        raise StateUnsupportedError("it keeps its state to itself")


class HoldsObjects(CodedEnv):
    def get_state(self):
        return {"state": self._state.copy(), "names": np.array([{}, None], object)}


class Forgetful(CodedEnv):
    def set_state(self, state):
        raise StateUnsupportedError("it came out otherwise")


class Exploding(CodedEnv):
    def get_state(self):
        raise ZeroDivisionError("no state today")


class Suicidal(CodedEnv):
    def get_state(self):
        os.kill(os.getpid(), signal.SIGKILL)


class Hanging(CodedEnv):
    def get_state(self):
        time.sleep(3600)


@pytest.mark.parametrize(
    ("env", "text"), [("Unsupported", "keeps its state to itself"), ("HoldsObjects", r"objects.*'env/names'")]
)
@pytest.mark.parametrize("kind", (Collector, SerialCollector))
def test_an_environment_without_a_state_is_named_and_the_run_goes_on(kind, env, text):
    with kind(faulty(env)) as collector:
        for _ in range(2):
            one_round(collector)
            with pytest.raises(ConfigError, match=rf"^environments \d to \d \(faulty\): .*{text}"):
                collector.get_state()
        assert all(np.array_equal(b.action, echo(b.observation[:-1])) for b in one_round(collector))


@pytest.mark.parametrize("kind", (Collector, SerialCollector))
def test_an_environment_that_refuses_its_state_is_named(kind):
    with kind(faulty("Forgetful")) as collector:
        one_round(collector)
        state = collector.get_state()
    with pytest.raises(ConfigError, match=r"environments \d to \d \(faulty\): .*came out otherwise"):
        kind(faulty("Forgetful"), state=state)


def test_an_exception_while_saving_is_what_the_user_reads():
    with Collector(faulty("Exploding")) as collector:
        one_round(collector)
        with pytest.raises(WorkerError, match=r"env worker \d+ could not save(?s:.*)no state today"):
            collector.get_state()


@pytest.mark.parametrize("env", ("CodedEnv", "Suicidal"))
def test_a_worker_killed_before_or_while_saving_is_an_error_and_no_hang(env):
    with Collector(faulty(env)) as collector:
        one_round(collector)
        if env == "CodedEnv":
            os.kill(collector.pids()["env_worker"][1], signal.SIGKILL)
        with pytest.raises(WorkerError, match=r"env worker \d+ died of SIGKILL"):
            collector.get_state()


def test_a_worker_that_hangs_while_saving_is_a_stall():
    config = reproducible(EnvConfig(id="faulty", entry_point=f"{__name__}:Hanging"), stall_seconds=2.0)
    with Collector(config) as collector:
        one_round(collector)
        with pytest.raises(StallError, match=r"(?s)env worker.*in get_state"):
            collector.get_state()


def test_a_restored_worker_that_waits_for_the_others_is_no_stall():
    env = EnvConfig(id="slow", entry_point=f"{__name__}:SlowOnceRestored")
    with SerialCollector(reproducible(env)) as collector:
        one_round(collector)
        state = collector.get_state()
    with Collector(reproducible(env, stall_seconds=3.0), state=state) as collector:
        assert len(one_round(collector)) == 4


class SlowOnceRestored(CodedEnv):
    """The first group of the second worker takes longer for a block than what counts as a stall."""

    slow = False

    def set_state(self, state):
        super().set_state(state)
        self.slow = env_seeds(5, 4, 1, 0)[0] in self._state[:, 0]

    def step(self, action, out):
        time.sleep(0.9 * self.slow)
        super().step(action, out)


def test_saving_leaves_no_descriptor_and_no_memory_behind():
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    with Collector(reproducible()) as collector:
        one_round(collector)
        during = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            state = collector.get_state()
        assert len(os.listdir("/proc/self/fd")) == during
        files = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
        kept = [f for f in files if os.path.islink(f) and "fastcollect-state" in os.readlink(f)]
        assert len(kept) == 2
        assert not any(os.stat(f).st_size for f in kept)
    with Collector(reproducible(), state=state) as collector:
        one_round(collector)
    del collector
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("kind", (Collector, SerialCollector))
def test_states_of_the_two_modes_are_not_mixed(coded_state, kind):
    with SerialCollector(asynchronous()) as collector:
        state = collector.get_state()
    for config, other in ((reproducible(), state), (asynchronous(seed=5), coded_state)):
        here, saved = (c.schedule for c in (config, asynchronous() if config.rounds else reproducible()))
        with pytest.raises(ConfigError) as raised:
            kind(config, state=other)
        assert f"schedule is {here!r} here, {saved!r} in the saved state" in str(raised.value)
        assert f"reproducible is {config.rounds} here, {not config.rounds} in" in str(raised.value)
