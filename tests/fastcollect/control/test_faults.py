"""Invariant 8: the death of any process hangs nothing, loses no published block and leaves nothing behind."""

import contextlib
import gc
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from support.coded_env import CodedEnv, EchoPolicy, echo, echo_policy
from support.processes import wait_until_gone
from threadpoolctl import threadpool_info

from fastcollect.control.collector import Collector
from fastcollect.control.config import CollectorConfig
from fastcollect.control.serial import SerialCollector
from fastcollect.envs.base import EnvStepError
from fastcollect.envs.registry import EnvConfig
from fastcollect.policies import PolicyConfig
from fastcollect.support.errors import ConfigError, StallError, WorkerError
from fastcollect.workers.groups import env_seeds

ROOT = Path(__file__).resolve().parents[3]


def coded(**kwargs):
    return EnvConfig(id="coded", entry_point="support.coded_env:CodedEnv", kwargs=kwargs)


def config(**changes):
    defaults = {"env": coded(), "policy": echo_policy(), "num_envs": 4, "block_length": 5, "check": True}
    return CollectorConfig(**{**defaults, "stall_seconds": 30.0, **changes})


def everyone(collector):
    return [pid for pids in collector.pids().values() for pid in pids]


def shared_memory_files():
    return set(os.listdir("/dev/shm"))


def test_closing_leaves_no_process_and_no_shared_memory_and_no_descriptor():
    before = shared_memory_files()
    descriptors = len(os.listdir("/proc/self/fd"))
    for models in (0, 1):
        with Collector(config(num_model_workers=models)) as collector:
            collector.take(timeout=30)
            pids = everyone(collector)
            assert len(pids) == 3 + models
        wait_until_gone(pids)
        with pytest.raises(RuntimeError, match="closed"):
            collector.take()
        del collector  # a mapping holds a descriptor of its own
    gc.collect()
    assert shared_memory_files() == before
    assert len(os.listdir("/proc/self/fd")) == descriptors


@pytest.mark.parametrize("models", (0, 1))
@pytest.mark.parametrize("signum", (signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV))
def test_a_killed_env_worker_is_replaced_and_its_unfinished_rows_are_counted(models, signum):
    with Collector(config(num_model_workers=models, ring_blocks=4)) as collector:
        lives, last = {}, {}
        first_pids = collector.pids()["env_worker"]

        def take():
            block = collector.take(timeout=30)
            key = (block.worker, block.group)
            assert block.number == lives.get(key, -1) + 1  # every published block, in order
            lives[key] = block.number
            assert np.array_equal(block.action, echo(block.observation[:-1]))
            last[block.env_index[0]] = block
            return block

        while len({worker for worker, _ in lives}) < 2:
            take()
        os.kill(first_pids[0], signum)
        original, until = {worker for worker, _ in lives}, time.monotonic() + 30
        while take().worker in original:
            assert time.monotonic() < until
        stats = collector.stats()
        assert stats.env_worker_deaths == 1
        pids = collector.pids()["env_worker"]
        assert len(pids) == 2
        assert first_pids[0] not in pids
        # Counts in = counts out, with what died unfinished named as such and nothing else missing.
        collector_rows = stats.taken + stats.discarded
        assert 0 <= stats.discarded < 4 * 5 * 2
        assert stats.env_steps >= collector_rows
        # The replacement does not play the dead worker's episodes again.
        old = set(env_seeds(0, 0, 8, 0).tolist())
        assert set(last[0].observation[0, :, 0].tolist()).isdisjoint(old)


def test_blocks_published_before_a_death_are_still_taken():
    with Collector(config(num_env_workers=1, ring_blocks=6)) as collector:
        worker = collector.take(timeout=30).worker
        until = time.monotonic() + 20
        while collector.stats().env_steps < 7 * 4 * 5:  # the ring is full: six blocks wait
            assert time.monotonic() < until
            time.sleep(0.05)
        os.kill(collector.pids()["env_worker"][0], signal.SIGKILL)
        time.sleep(0.3)
        blocks = [collector.take(timeout=30) for _ in range(12)]
        assert [b.number for b in blocks if b.worker == worker] == [1, 2, 3, 4, 5, 6]
        assert [b.number for b in blocks if b.worker != worker] == [0, 1, 2, 3, 4, 5]
        assert collector.stats().discarded == 0


def test_a_killed_model_worker_is_replaced_and_no_row_is_lost_or_mixed():
    with Collector(config(num_model_workers=2)) as collector:
        numbers = {}
        for death in range(3):
            os.kill(collector.pids()["model_worker"][death % 2], signal.SIGKILL)
            until = time.monotonic() + 30
            taken = 0
            while collector.stats().model_worker_deaths <= death or taken < 40:
                block = collector.take(timeout=30)
                key = (block.worker, block.group)
                assert block.number == numbers.get(key, -1) + 1
                numbers[key] = block.number
                assert np.array_equal(block.action, echo(block.observation[:-1]))
                assert np.array_equal(block.extras["seen"], block.observation[:-1])
                taken += 1
                assert time.monotonic() < until
        assert len(numbers) == 4
        assert min(numbers.values()) > 5
        stats = collector.stats()
        assert (stats.model_worker_deaths, stats.env_worker_deaths, stats.discarded) == (3, 0, 0)


def test_a_stopped_worker_is_a_stall_with_everyones_stack_not_a_hang():
    with Collector(config(num_env_workers=1, num_model_workers=1, stall_seconds=2.0)) as collector:
        collector.take(timeout=30)
        os.kill(collector.pids()["model_worker"][0], signal.SIGSTOP)
        with pytest.raises(StallError, match=r"(?s)env worker.*env_worker\.py.*_wait"):
            while True:
                collector.take()
        pids = everyone(collector)
    wait_until_gone(pids)


def test_one_stuck_worker_among_healthy_ones_is_a_stall_too():
    with Collector(config(stall_seconds=2.0)) as collector:
        collector.take(timeout=30)
        os.kill(collector.pids()["env_worker"][1], signal.SIGSTOP)
        with pytest.raises(StallError, match="env worker"):
            while True:
                collector.take()
        pids = everyone(collector)
    wait_until_gone(pids)


def test_a_learner_that_stays_away_is_no_stall():
    with Collector(config(stall_seconds=1.0, num_model_workers=1)) as collector:
        for _ in range(3):
            collector.take()
            time.sleep(1.5)  # longer than the limit, with every ring full
        for _ in range(40):
            collector.take()


def test_more_workers_than_the_soft_limit_of_open_files_allows():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 40, hard))
    try:
        with Collector(config(num_envs=2, num_env_workers=24)) as collector:
            workers, until = set(), time.monotonic() + 60
            while len(workers) < 24:
                workers.add(collector.take(timeout=30).worker)
                assert time.monotonic() < until
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_launchers_death_is_one_clear_error():
    with Collector(config(num_model_workers=1)) as collector:
        collector.take(timeout=30)
        pids = everyone(collector)
        os.kill(collector.pids()["launcher"][0], signal.SIGKILL)
        with pytest.raises(RuntimeError, match="starts the workers is gone"):
            while True:
                collector.take(timeout=30)
    wait_until_gone(pids)


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


def test_an_environment_that_kills_its_worker_again_and_again_ends_the_run():
    env = EnvConfig(id="suicide", entry_point=f"{__name__}:SuicidalEnv")
    with (
        pytest.raises(WorkerError, match=r"(?s)3 times in a row.*SIGKILL"),
        Collector(config(env=env, num_env_workers=1)) as collector,
    ):
        while True:
            collector.take(timeout=30)


class SuicidalEnv(CodedEnv):
    def step(self, action, out):
        os.kill(os.getpid(), signal.SIGKILL)


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


class SlowEcho(EchoPolicy):
    """Takes long enough that workers are moved and killed while it infers."""

    def act(self, observation, noise, action, extras):
        time.sleep(0.004)
        super().act(observation, noise, action, extras)


def test_requests_survive_moves_between_model_workers_and_their_deaths():
    path = f"{__name__}:SlowEcho"
    policy = PolicyConfig(name="slow", inline=path, batched=path)
    limits = config(policy=policy, num_env_workers=4, num_model_workers=1, stall_seconds=15.0, block_length=3)
    rng = np.random.default_rng(0)
    with Collector(limits) as collector:
        numbers = {}
        for _ in range(12):
            models = int(rng.integers(1, 3))
            collector.resize(num_model_workers=models)
            if rng.random() < 0.5:
                os.kill(collector.pids()["model_worker"][0], signal.SIGKILL)
            for _ in range(24):
                block = collector.take(timeout=30)
                key = (block.worker, block.group)
                assert block.number == numbers.get(key, -1) + 1
                numbers[key] = block.number
                assert np.array_equal(block.action, echo(block.observation[:-1]))
        stats = collector.stats()
        assert len(numbers) == 8
        assert (stats.env_worker_deaths, stats.discarded) == (0, 0)
        assert stats.model_worker_deaths >= 1


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


SCRIPT = """
import sys, time
from fastcollect.control.collector import Collector
from fastcollect.control.config import CollectorConfig
from fastcollect.envs.base import EnvStepError
from fastcollect.envs.registry import EnvConfig
from support.coded_env import echo_policy

if __name__ == "__main__":
    env = EnvConfig(id="coded", entry_point="support.coded_env:CodedEnv")
    config = CollectorConfig(env=env, policy=echo_policy(), num_envs=4, num_model_workers=1)
    with Collector(config) as collector:
        print(*[pid for pids in collector.pids().values() for pid in pids], flush=True)
        while True:
            collector.take()
"""


@pytest.mark.parametrize("signum", (signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
@pytest.mark.parametrize("whole_group", (False, True))
def test_the_death_of_the_parent_leaves_no_orphan(tmp_path, signum, whole_group):
    script = tmp_path / "collect.py"
    script.write_text(textwrap.dedent(SCRIPT))
    before = shared_memory_files()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,
        text=True,
    )
    try:
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == 4
        time.sleep(0.3)
        (os.killpg if whole_group else os.kill)(parent.pid, signum)
        parent.wait(timeout=20)
        assert parent.returncode != 0
        wait_until_gone(pids)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(parent.pid, signal.SIGKILL)
        parent.stdout.close()
        parent.wait()
    assert shared_memory_files() == before


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


def test_a_paused_collector_hands_out_what_was_published_and_never_stalls():
    with Collector(config(stall_seconds=1.0)) as collector:
        time.sleep(0.5)
        collector.pause()
        waiting = collector.stats().env_steps // 20
        blocks = 0
        with pytest.raises(TimeoutError):
            while True:
                collector.take(timeout=1.5)
                blocks += 1
        assert waiting - 2 <= blocks <= waiting


def test_slow_environments_are_no_stall_while_they_step():
    path = EnvConfig(id="slow", entry_point=f"{__name__}:SlowEnv")
    with Collector(config(env=path, stall_seconds=1.0, block_length=12)) as collector:
        assert len(collector.take(timeout=30)) == 48  # a block takes longer than the limit


class SlowEnv(CodedEnv):
    def step(self, action, out):
        time.sleep(0.15)
        super().step(action, out)


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
