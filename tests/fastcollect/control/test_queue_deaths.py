"""Workers that are killed or stopped inside a faster-fifo queue, with its memory half written."""

import itertools
import os
import signal
import time

import pytest
from support.coded_collector import config
from support.coded_env import CodedEnv, EchoPolicy, echo, echo_policy
from support.processes import wait_until_gone

from fastcollect import PolicyConfig
from fastcollect.control.collector import Collector
from fastcollect.envs.registry import EnvConfig
from fastcollect.memory.tokens import Kind
from fastcollect.support.errors import StallError

_armed = False


def end_inside(operation, count, signum, kind=None):
    """Make this process signal itself inside the queue at its ``count``-th operation (of this kind)."""
    global _armed
    if _armed:
        return
    _armed = True
    from fastcollect.memory.tokens import fifo

    original, calls = getattr(fifo._Queue, operation), itertools.count(1)

    def operate(self, *arguments, **options):
        concerned = self._queue.qsize() if operation == "get" else arguments[0][0] == kind
        if concerned and next(calls) == count:
            self.acquire(wait=True)
            whole = self._header.copy()
            self._header[:] = 0xFF
            os.kill(os.getpid(), signum)
            self._header[:] = whole  # it was only stopped
            self.release()
        return original(self, *arguments, **options)

    setattr(fifo._Queue, operation, operate)


class DoomedEnv(CodedEnv):
    def __init__(self, seeds, **end):
        super().__init__(seeds)
        end_inside(**end)


def doomed_env(**end):
    end = {"signum": signal.SIGKILL, **end}
    return EnvConfig(id="doomed", entry_point=f"{__name__}:DoomedEnv", kwargs=end)


class DoomedPolicy(EchoPolicy):
    def __init__(self, spec, operation="put", signum=signal.SIGKILL):
        super().__init__(spec)
        end_inside(operation, 40, signum, Kind.ANSWER)


class DoomedReadingPolicy(DoomedPolicy):
    def __init__(self, spec):
        super().__init__(spec, operation="get")


class StoppingPolicy(DoomedPolicy):
    def __init__(self, spec):
        super().__init__(spec, signum=signal.SIGSTOP)


def doomed_policy(name):
    return PolicyConfig(name="doomed", inline=echo_policy().inline, batched=f"{__name__}:{name}")


def take(collector, numbers):
    """The next block, which must be the one after those of its group that came before."""
    block = collector.take(timeout=30)
    key = (block.worker, block.group)
    assert block.number == numbers.get(key, -1) + 1
    assert (block.action == echo(block.observation[:-1])).all()
    numbers[key] = block.number


def take_until(collector, done):
    numbers, until = {}, time.monotonic() + 60
    while not done(numbers):
        take(collector, numbers)
        assert time.monotonic() < until
    for _ in range(10):
        take(collector, numbers)
    return numbers


@pytest.mark.parametrize("models", (0, 1))
def test_every_block_that_a_worker_published_is_taken_though_it_died_as_it_told(models):
    """It dies as it tells of its third block, which waited for the first one to be freed."""
    env = doomed_env(operation="put", count=3, kind=Kind.PUBLISHED)
    limits = config(env=env, num_model_workers=models, group_size=4, tokens="faster-fifo", ring_blocks=2)
    with Collector(limits) as collector:

        def last_of_the_dead(numbers):
            """The last block of each worker that is gone and read out."""
            return [last for (worker, _), last in numbers.items() if worker not in collector._workers.env]

        numbers = take_until(collector, lambda numbers: len(last_of_the_dead(numbers)) > 3)
        assert set(last_of_the_dead(numbers)) == {2}


@pytest.mark.parametrize(
    "end",
    [{"operation": "put", "count": 40, "kind": Kind.REQUEST}, {"operation": "get", "count": 40}],
    ids=["as it asked", "as it read"],
)
def test_an_env_worker_killed_inside_a_queue_is_replaced(end):
    with Collector(config(env=doomed_env(**end), num_model_workers=1, tokens="faster-fifo")) as collector:
        take_until(collector, lambda _: collector.stats().env_worker_deaths > 2)


@pytest.mark.parametrize("policy", ("DoomedPolicy", "DoomedReadingPolicy"))
@pytest.mark.parametrize("models", (1, 2))
def test_a_model_worker_killed_inside_a_queue_is_replaced_and_no_request_is_lost(policy, models):
    limits = config(policy=doomed_policy(policy), num_model_workers=models, tokens="faster-fifo")
    with Collector(limits) as collector:
        take_until(collector, lambda _: collector.stats().model_worker_deaths > 2)
        stats = collector.stats()
        assert (stats.env_worker_deaths, stats.discarded) == (0, 0)


@pytest.mark.parametrize(
    "stopped",
    [
        {"env": doomed_env(operation="put", count=3, kind=Kind.PUBLISHED, signum=signal.SIGSTOP)},
        {"env": doomed_env(operation="get", count=3, signum=signal.SIGSTOP), "num_model_workers": 1},
        {"policy": doomed_policy("StoppingPolicy"), "num_model_workers": 1},
    ],
    ids=["env worker as it told", "env worker as it read", "model worker as it answered"],
)
def test_a_worker_stopped_inside_a_queue_is_a_stall(stopped):
    with Collector(config(**stopped, stall_seconds=2.0, tokens="faster-fifo")) as collector:
        with pytest.raises(StallError, match="env worker"):
            while True:
                collector.take()
        pids = [pid for pids in collector.pids().values() for pid in pids]
    wait_until_gone(pids)
