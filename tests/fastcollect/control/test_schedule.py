"""What the schedule "rounds" promises, reproducible or not, and what a death does to it."""

import collections
import os
import signal
import time

import numpy as np
import pytest
from support.coded_env import CodedEnv, EchoPolicy, echo
from support.collectors import in_rounds, one_round, reproducible

from fastcollect import PolicyConfig, mlp_policy
from fastcollect.control.collector import Collector
from fastcollect.control.config import CollectorConfig
from fastcollect.control.serial import SerialCollector
from fastcollect.envs.registry import EnvConfig
from fastcollect.memory.segment import FieldSpec
from fastcollect.support.errors import ConfigError, WorkerError
from fastcollect.workers.groups import env_seeds

OFFSET = {"offset": np.zeros(1, np.float32)}


def starts(blocks):
    return [int(block.env_index[0]) for block in blocks]


def test_reproducible_needs_rounds():
    env = EnvConfig(id="CartPole-v1")
    with pytest.raises(ConfigError, match=r"reproducible is True and schedule is 'asynchronous'; allowed"):
        CollectorConfig(env=env, reproducible=True)
    with pytest.raises(ConfigError, match=r"schedule is 'lock'; allowed: 'asynchronous', 'rounds'"):
        CollectorConfig(env=env, schedule="lock", reproducible=True)


@pytest.mark.parametrize(("kind", "models"), [(SerialCollector, 0), (Collector, 0), (Collector, 2)])
def test_blocks_come_in_order_and_weights_act_from_the_next_round_on(kind, models):
    with kind(in_rounds(models=models, ring_blocks=3)) as collector:
        for number in range(5):
            blocks = [collector.take(timeout=30)]
            assert collector.publish(OFFSET) == number + 2  # in the middle of a round
            blocks += [collector.take(timeout=30) for _ in range(3)]
            assert starts(blocks) == [0, 2, 4, 6]
            for block in blocks:
                assert block.number == number
                assert (block.extras["policy_version"] == number + 1).all()
                assert np.array_equal(block.action, echo(block.observation[:-1]))
            if kind is Collector:  # nobody runs ahead of a round that was not asked for
                time.sleep(0.1)
                assert collector.stats().env_steps == (number + 1) * 8 * 4


def test_model_workers_infer_padded_batches_with_the_jax_policy_in_rounds():
    policy = mlp_policy((24, 17), extras=("mean_action", "policy_version"))
    config = in_rounds(
        EnvConfig(id="gym:Pendulum-v1"),
        policy,
        num_envs=3,  # groups of two and one, six rows of eight
        models=1,
        group_size=None,
        min_groups=4,
        deadline=10.0,
        block_length=5,
    )
    with Collector(config) as collector:
        weights = [collector.policy.initial_parameters(config.seed)]
        for version in range(1, 4):
            blocks = one_round(collector)
            assert starts(blocks) == [0, 2, 3, 5]
            collector.policy.load(weights[-1])
            for block in blocks:
                assert (block.extras["policy_version"] == version).all()
                rows = block.observation[:-1].reshape(-1, 3)
                noise, action = np.zeros((len(rows), 1), np.float32), np.zeros((len(rows), 1), np.float32)
                mean = {"mean_action": np.zeros((len(rows), 1), np.float32)}
                collector.policy.act(rows, noise, action, mean)
                got = block.extras["mean_action"].reshape(-1, 1)
                np.testing.assert_allclose(got, mean["mean_action"], rtol=1e-4, atol=1e-5)
            weights.append(collector.policy.initial_parameters(100 + version))
            collector.publish(weights[-1])
        stats = collector.stats()
    assert (stats.batches, stats.batch_rows) == (3 * 5, 3 * 5 * 6)  # all four groups in one call, each step


class TellsRows(EchoPolicy):
    """Writes beside each action how many rows it was called with, and which of the twins it is."""

    batched = False

    def __init__(self, spec):
        super().__init__(spec)
        self.extras = {**self.extras, "call": FieldSpec((2,), np.dtype(np.int64))}

    def act(self, observation, noise, action, extras):
        super().act(observation, noise, action, extras)
        extras["call"][...] = len(observation), self.batched


class TellsRowsBatched(TellsRows):
    batched = True


@pytest.mark.parametrize(("config", "calls"), [(in_rounds, {(8, 1)}), (reproducible, {(2, 0), (1, 0)})])
def test_only_reproducible_model_workers_infer_group_by_group_with_the_numpy_policy(config, calls):
    paths = (f"{__name__}:{name}" for name in ("TellsRows", "TellsRowsBatched"))
    policy = PolicyConfig(name="tells", **dict(zip(("inline", "batched"), paths, strict=True)))
    shape = {"num_envs": 3, "models": 1, "group_size": None, "min_groups": 4, "deadline": 10.0}
    shape |= {"min_groups": 1} if config is reproducible else {}
    with Collector(config(policy=policy, **shape)) as collector:
        blocks = one_round(collector) + one_round(collector)
    assert {tuple(row) for b in blocks for row in b.extras["call"].reshape(-1, 2).tolist()} == calls


class Slow(CodedEnv):
    """So that a death falls into the middle of a block."""

    def step(self, action, out):
        time.sleep(0.01)
        super().step(action, out)


SLOW = EnvConfig(id="slow", entry_point=f"{__name__}:Slow")


class StuckSecondGroup(CodedEnv):
    """The second group of the first worker does not finish its first block, in its first life."""

    def __init__(self, seeds):
        super().__init__(seeds)
        self.stuck = int(seeds[0]) == env_seeds(5, 2, 1, 0)[0]

    def step(self, action, out):
        time.sleep(30 * (self.stuck and self._steps == 3))
        super().step(action, out)


class Watch:
    """Takes rounds and checks them: the order, each life's block numbers, every row."""

    def __init__(self, collector):
        self.collector, self.numbers = collector, collections.Counter()
        self.rows, self.seeds, self.rounds = 0, set(), 0

    def round(self):
        blocks = one_round(self.collector)
        self.rounds += 1
        assert starts(blocks) == [0, 2, 4, 6]
        for block in blocks:
            key = block.worker, block.group
            assert block.number == self.numbers[key]
            self.numbers[key] += 1
            assert (block.extras["policy_version"] == self.rounds).all()
            assert np.array_equal(block.action, echo(block.observation[:-1]))
            self.rows += len(block)
            self.seeds |= set(block.observation[..., 0].ravel().tolist())
        assert self.collector.publish(OFFSET) == self.rounds + 1
        return blocks

    def counted(self):
        """Counts in = counts out, where every round was taken: what is missing died unfinished."""
        stats = self.collector.stats()
        assert self.rows == stats.taken == self.rounds * 8 * 4
        assert stats.env_steps == stats.taken + stats.discarded
        return stats


@pytest.mark.parametrize("models", (0, 1))
@pytest.mark.parametrize("while_idle", (False, True))
def test_a_killed_env_worker_is_replaced_in_rounds(models, while_idle):
    with Collector(in_rounds(SLOW, models=models)) as collector:
        watch = Watch(collector)
        watch.round()
        if not while_idle:
            with pytest.raises(TimeoutError):
                collector.take(timeout=0.015)  # the round is begun
        os.kill(collector.pids()["env_worker"][0], signal.SIGKILL)
        for _ in range(4):
            last = watch.round()
        assert watch.counted().env_worker_deaths == 1
        first = {block.worker for block in last if block.env_index[0] < 4}
        assert len(first) == 1  # one replacement, for both groups
        assert first.isdisjoint(key[0] for key in watch.numbers if watch.numbers[key] == 5)
        # It plays other episodes, and nobody else's.
        assert set(last[0].observation[0, :, 0].tolist()) == set(env_seeds(5, 0, 2, 1).tolist())


@pytest.mark.parametrize("models", (0, 1))
@pytest.mark.parametrize("taken", (False, True))
def test_a_block_published_before_the_death_counts_for_its_round(models, taken):
    env = EnvConfig(id="uneven", entry_point=f"{__name__}:StuckSecondGroup")
    with Collector(in_rounds(env, models=models)) as collector:
        if taken:
            blocks = [collector.take(timeout=30)]
        else:
            until = time.monotonic() + 30
            while collector.stats().env_steps < (4 * 4 - 1) * 2:  # all but the last step of the stuck group
                assert time.monotonic() < until
                time.sleep(0.01)
            time.sleep(0.1)
            blocks = []
        os.kill(collector.pids()["env_worker"][0], signal.SIGKILL)
        blocks += [collector.take(timeout=30) for _ in range(4 - len(blocks))]
        assert starts(blocks) == [0, 2, 4, 6]
        assert blocks[0].worker < blocks[1].worker  # the dead one's, and its replacement's
        seeds = env_seeds(5, 0, 2, 0), env_seeds(5, 2, 2, 1)
        for block, expected in zip(blocks, seeds, strict=False):
            assert block.observation[0, :, 0].tolist() == expected.tolist()
        # The replacement's first group has waited for this round.
        collector.publish(OFFSET)
        following = one_round(collector)
        assert starts(following) == [0, 2, 4, 6]
        assert [block.number for block in following] == [0, 1, 1, 1]
        assert all((block.extras["policy_version"] == 2).all() for block in following)
        stats = collector.stats()
        assert stats.env_steps == stats.taken + stats.discarded == 2 * 8 * 4 + stats.discarded


def test_a_worker_that_is_killed_again_and_again_in_rounds():
    with Collector(in_rounds(SLOW, models=1)) as collector:
        watch = Watch(collector)
        for death in range(4):
            os.kill(collector.pids()["env_worker"][death % 2], signal.SIGKILL)
            watch.round()
        for _ in range(2):
            watch.round()
        assert watch.counted().env_worker_deaths == 4


def test_a_killed_model_worker_is_replaced_in_rounds():
    with Collector(in_rounds(SLOW, models=2)) as collector:
        watch = Watch(collector)
        for death in range(3):
            watch.round()
            os.kill(collector.pids()["model_worker"][death % 2], signal.SIGKILL)
            with pytest.raises(TimeoutError):
                collector.take(timeout=0.005)
        until = time.monotonic() + 30
        while collector.stats().model_worker_deaths < 3:
            watch.round()
            assert time.monotonic() < until
        stats = watch.counted()
        assert (stats.env_worker_deaths, stats.discarded) == (0, 0)
        assert set(watch.numbers.values()) == {watch.rounds}
        assert len(watch.seeds) == 8


def test_a_killed_env_worker_ends_a_reproducible_run():
    with Collector(reproducible()) as collector:
        one_round(collector)
        os.kill(collector.pids()["env_worker"][1], signal.SIGKILL)
        with pytest.raises(WorkerError, match=r"died of SIGKILL.*a reproducible run ends here"):
            one_round(collector)


@pytest.mark.parametrize("kind", (Collector, SerialCollector))
def test_a_state_in_rounds_is_weights_and_life_at_any_time(kind):
    with kind(in_rounds()) as collector:
        blocks = one_round(collector)
        collector.take(timeout=30)
        collector.publish({"offset": np.full(1, -0.0, np.float32)})
        state = collector.get_state()
    assert not any(key.startswith("group/") for key in state)
    with kind(in_rounds(), state=state) as collector:
        assert collector.version == 2  # what was staged acts at once: this is the next round
        again = one_round(collector)
        assert all((block.extras["policy_version"] == 2).all() for block in again)
        assert np.signbit(collector.get_state()["published/offset"])
    seeds = [{int(s) for b in each for s in b.observation[0, :, 0]} for each in (blocks, again)]
    assert seeds[0].isdisjoint(seeds[1])


def test_rounds_keep_their_number_of_workers():
    with (
        Collector(in_rounds()) as collector,
        pytest.raises(ConfigError, match="schedule 'rounds' keeps its number of workers"),
    ):
        collector.resize(num_env_workers=3)
