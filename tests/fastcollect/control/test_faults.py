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
from pathlib import Path
from typing import get_args

import numpy as np
import psutil
import pytest
from support.coded_collector import config
from support.coded_env import CodedEnv, EchoPolicy, echo
from support.processes import wait_until_gone

from fastcollect import PolicyConfig
from fastcollect.control.collector import Collector
from fastcollect.envs.registry import EnvConfig
from fastcollect.memory.tokens import TokenChannel, exchange
from fastcollect.support.errors import StallError, WorkerError
from fastcollect.workers.groups import env_seeds

ROOT = Path(__file__).resolve().parents[3]


def everyone(collector):
    return [pid for pids in collector.pids().values() for pid in pids]


def shared_memory_files():
    return set(os.listdir("/dev/shm"))


@pytest.fixture(params=get_args(TokenChannel))
def channel(request):
    """What carries the tokens: nothing here depends on it."""
    return request.param


def test_closing_leaves_no_process_and_no_shared_memory_and_no_descriptor(channel):
    exchange(channel)(0).connect()  # faster_fifo keeps one descriptor for ever
    gc.collect()
    before = shared_memory_files()
    descriptors = len(os.listdir("/proc/self/fd"))
    for models in (0, 1):
        with Collector(config(tokens=channel, num_model_workers=models)) as collector:
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
def test_a_killed_env_worker_is_replaced_and_its_unfinished_rows_are_counted(models, signum, channel):
    with Collector(config(tokens=channel, num_model_workers=models, ring_blocks=4)) as collector:
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


def test_blocks_published_before_a_death_are_still_taken(channel):
    with Collector(config(tokens=channel, num_env_workers=1, ring_blocks=6)) as collector:
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


def test_an_env_worker_killed_while_it_starts_is_replaced(channel):
    env = EnvConfig(id="early", entry_point=f"{__name__}:DiesAtFirst")
    with Collector(config(tokens=channel, env=env)) as collector:
        assert collector.stats().env_worker_deaths == 1
        until = time.monotonic() + 30
        while collector.take(timeout=30).env_index[0] != 0:
            assert time.monotonic() < until


class DiesAtFirst(CodedEnv):
    """Ends its process as it is built, in the first life of the first environment."""

    def __init__(self, seeds):
        super().__init__(seeds)
        if env_seeds(0, 0, 1, 0)[0] in seeds:
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_model_worker_is_replaced_and_no_row_is_lost_or_mixed(channel):
    with Collector(config(tokens=channel, num_model_workers=2)) as collector:
        numbers = {}
        for death in range(3):
            os.kill(collector.pids()["model_worker"][death % 2], signal.SIGKILL)
            until = time.monotonic() + 30
            taken = 0
            # On a busy machine one env worker may wait long for its turn.
            while (
                collector.stats().model_worker_deaths <= death
                or taken < 40
                or len(numbers) < 4
                or min(numbers.values()) <= 2 * death + 1
            ):
                block = collector.take(timeout=30)
                key = (block.worker, block.group)
                assert block.number == numbers.get(key, -1) + 1
                numbers[key] = block.number
                assert np.array_equal(block.action, echo(block.observation[:-1]))
                assert np.array_equal(block.extras["seen"], block.observation[:-1])
                taken += 1
                assert time.monotonic() < until
        stats = collector.stats()
        assert (stats.model_worker_deaths, stats.env_worker_deaths, stats.discarded) == (3, 0, 0)


def test_a_stopped_worker_is_a_stall_with_everyones_stack_not_a_hang(channel):
    with Collector(
        config(tokens=channel, num_env_workers=1, num_model_workers=1, stall_seconds=2.0)
    ) as collector:
        collector.take(timeout=30)
        os.kill(collector.pids()["model_worker"][0], signal.SIGSTOP)
        # The env worker waits for its actions, or for a queue if the other was stopped inside it.
        with pytest.raises(StallError, match=r"(?s)env worker.*env_worker\.py.*(_wait|_send_request)"):
            while True:
                collector.take()
        pids = everyone(collector)
    wait_until_gone(pids)


def test_one_stuck_worker_among_healthy_ones_is_a_stall_too(channel):
    with Collector(config(tokens=channel, stall_seconds=2.0)) as collector:
        collector.take(timeout=30)
        os.kill(collector.pids()["env_worker"][1], signal.SIGSTOP)
        with pytest.raises(StallError, match="env worker"):
            while True:
                collector.take()
        pids = everyone(collector)
    wait_until_gone(pids)


def test_a_learner_that_stays_away_is_no_stall(channel):
    with Collector(config(tokens=channel, stall_seconds=1.0, num_model_workers=1)) as collector:
        for _ in range(3):
            collector.take()
            time.sleep(1.5)  # longer than the limit, with every ring full
        for _ in range(40):
            collector.take()


def test_more_workers_than_the_soft_limit_of_open_files_allows(channel):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 40, hard))
    try:
        with Collector(config(tokens=channel, num_envs=2, num_env_workers=24)) as collector:
            workers, until = set(), time.monotonic() + 60
            while len(workers) < 24:
                workers.add(collector.take(timeout=30).worker)
                assert time.monotonic() < until
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_launchers_death_is_one_clear_error(channel):
    with Collector(config(tokens=channel, num_model_workers=1)) as collector:
        collector.take(timeout=30)
        pids = everyone(collector)
        os.kill(collector.pids()["launcher"][0], signal.SIGKILL)
        with pytest.raises(RuntimeError, match="starts the workers is gone"):
            while True:
                collector.take(timeout=30)
    wait_until_gone(pids)


def test_an_environment_that_kills_its_worker_again_and_again_ends_the_run(channel):
    env = EnvConfig(id="suicide", entry_point=f"{__name__}:SuicidalEnv")
    with (
        pytest.raises(WorkerError, match=r"(?s)3 times in a row.*SIGKILL"),
        Collector(config(tokens=channel, env=env, num_env_workers=1)) as collector,
    ):
        while True:
            collector.take(timeout=30)


class SuicidalEnv(CodedEnv):
    def step(self, action, out):
        os.kill(os.getpid(), signal.SIGKILL)


class SlowEcho(EchoPolicy):
    """Takes long enough that workers are moved and killed while it infers."""

    def act(self, observation, noise, action, extras):
        time.sleep(0.004)
        super().act(observation, noise, action, extras)


def test_requests_survive_moves_between_model_workers_and_their_deaths(channel):
    path = f"{__name__}:SlowEcho"
    policy = PolicyConfig(name="slow", inline=path, batched=path)
    limits = config(
        tokens=channel,
        policy=policy,
        num_env_workers=4,
        num_model_workers=1,
        stall_seconds=15.0,
        block_length=3,
    )
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


SCRIPT = """
import sys, time
from fastcollect.control.collector import Collector
from fastcollect.control.config import CollectorConfig
from fastcollect.envs.base import EnvStepError
from fastcollect.envs.registry import EnvConfig
from support.coded_env import echo_policy

if __name__ == "__main__":
    env = EnvConfig(id="coded", entry_point="support.coded_env:CodedEnv")
    choice = {"num_envs": 4, "num_model_workers": 1, "tokens": sys.argv[1]}
    with Collector(CollectorConfig(env=env, policy=echo_policy(), **choice)) as collector:
        print(*[pid for pids in collector.pids().values() for pid in pids], flush=True)
        while True:
            collector.take()
"""


@pytest.mark.parametrize("signum", (signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
@pytest.mark.parametrize("whole_group", (False, True))
def test_the_death_of_the_parent_leaves_no_orphan(tmp_path, signum, whole_group, channel):
    script = tmp_path / "collect.py"
    script.write_text(textwrap.dedent(SCRIPT))
    before = shared_memory_files()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    parent = subprocess.Popen(
        [sys.executable, str(script), channel],
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


def test_a_paused_collector_hands_out_what_was_published_and_never_stalls(channel):
    with Collector(config(tokens=channel, stall_seconds=1.0)) as collector:
        time.sleep(0.5)
        collector.pause()
        stopped = [psutil.Process(pid).status() for pid in collector.pids()["env_worker"]]
        assert stopped == [psutil.STATUS_STOPPED] * 2
        waiting = collector.stats().env_steps // 20
        blocks = 0
        with pytest.raises(TimeoutError):
            while True:
                collector.take(timeout=1.5)
                blocks += 1
        assert waiting - 2 <= blocks <= waiting


def test_slow_environments_are_no_stall_while_they_step(channel):
    path = EnvConfig(id="slow", entry_point=f"{__name__}:SlowEnv")
    with Collector(config(tokens=channel, env=path, stall_seconds=1.0, block_length=12)) as collector:
        assert len(collector.take(timeout=30)) == 48  # a block takes longer than the limit


class SlowEnv(CodedEnv):
    def step(self, action, out):
        time.sleep(0.15)
        super().step(action, out)
