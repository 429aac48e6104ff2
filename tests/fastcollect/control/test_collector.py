"""Invariants 1 and 2: every row belongs to one environment and one episode; counts in = counts out."""

import collections
import itertools
import time

import numpy as np
import pytest
from support import coded_env
from support.coded_env import echo, echo_policy, episode_length

from fastcollect import PolicyConfig, mlp_policy
from fastcollect.control.collector import Collector
from fastcollect.control.config import CollectorConfig
from fastcollect.control.serial import SerialCollector
from fastcollect.envs.registry import EnvConfig
from fastcollect.policies.mlp import MLPPolicy
from fastcollect.support.errors import ConfigError
from fastcollect.workers.groups import env_seeds

CODED = EnvConfig(id="coded", entry_point="support.coded_env:CodedEnv")


def coded_config(**changes):
    defaults = {"env": CODED, "policy": echo_policy(), "check": True, "stall_seconds": 30.0}
    return CollectorConfig(**{**defaults, **changes})


class Checker:
    """Follows every environment step by step; any lost, repeated, torn or mixed row fails."""

    def __init__(self):
        self.expected = {}  # env index -> (seed, episode, step) that comes next
        self.rows = 0
        self.returns = collections.defaultdict(float)
        self.first_success = {}

    def feed(self, block, seed_of):
        steps, envs = block.reward.shape
        ends = dict(zip(block.episodes.row.tolist(), range(len(block.episodes)), strict=True))
        assert np.array_equal(block.extras["seen"], block.observation[:-1])
        assert np.array_equal(block.action, echo(block.observation[:-1]))
        assert (block.extras["policy_version"] >= 1).all()
        for t, i in itertools.product(range(steps), range(envs)):
            self._row(block, t, i, seed_of(int(block.env_index[i])), ends)
        assert not ends
        for i, env in enumerate(block.env_index.tolist()):
            assert tuple(block.observation[-1, i].tolist()) == self.expected[env]
        self.rows += steps * envs

    def _row(self, block, t, i, seed, ends):
        env = int(block.env_index[i])
        state = self.expected.setdefault(env, (seed, 0, 0))
        assert tuple(block.observation[t, i].tolist()) == state
        _, episode, step = state
        reward, success = coded_env.reward(*state), coded_env.success(*state)
        assert block.reward[t, i] == reward
        assert block.success[t, i] == success
        self.returns[env] += reward
        if success:
            self.first_success.setdefault(env, step)
        assert tuple(block.next_observation[t, i].tolist()) == (seed, episode, step + 1)
        done = step + 1 == episode_length(seed, episode)
        assert block.truncated[t, i] == (done and coded_env.truncates(seed, episode))
        assert block.terminated[t, i] == (done and not coded_env.truncates(seed, episode))
        self.expected[env] = (seed, episode + 1, 0) if done else (seed, episode, step + 1)
        if done:
            self._end(block, t, i, env, step, success, ends)

    def _end(self, block, t, i, env, step, success, ends):
        k = ends.pop(t * block.reward.shape[1] + i)
        episodes = block.episodes
        assert episodes.length[k] == step + 1
        assert episodes.episode_return[k] == pytest.approx(self.returns.pop(env), abs=1e-9)
        assert episodes.success_last[k] == success
        first = self.first_success.pop(env, None)
        assert episodes.success_any[k] == (first is not None)
        assert episodes.success_first[k] == (-1 if first is None else first)


def seed_table(config):
    total = config.num_envs * config.num_env_workers
    seeds = env_seeds(config.seed, 0, total, 0)
    assert len(set(seeds.tolist())) == total
    return lambda env: int(seeds[env])


@pytest.mark.parametrize("num_workers", (1, 2, 3))
@pytest.mark.parametrize("num_models", (0, 1, 2))
def test_every_row_is_whole_and_counted_once(num_workers, num_models):
    for num_envs, (length, blocks) in zip((1, 2, 3, 4), ((3, 2), (1, 1), (4, 3), (7, 1)), strict=True):
        config = coded_config(
            num_envs=num_envs,
            num_env_workers=num_workers,
            num_model_workers=num_models,
            block_length=length,
            ring_blocks=blocks,
            seed=11,
        )
        checker, numbers = Checker(), collections.defaultdict(int)
        groups = len(config.groups) * num_workers
        with Collector(config) as collector:
            while min([numbers[k] for k in numbers] or [0]) < 2 * blocks + 2 or len(numbers) < groups:
                block = collector.take(timeout=30)
                assert block.number == numbers[block.worker, block.group]
                assert block.first_step == block.number * length
                numbers[block.worker, block.group] += 1
                checker.feed(block, seed_table(config))
            stats = collector.stats()
        assert checker.rows == stats.taken
        waiting = stats.env_steps - stats.taken
        most = num_envs * num_workers * length * (blocks + 1)
        assert 0 <= waiting <= most
        assert stats.discarded == 0


@pytest.mark.parametrize("num_models", (0, 1))
def test_a_full_ring_makes_workers_wait_and_loses_nothing(num_models):
    config = coded_config(num_envs=4, num_model_workers=num_models, block_length=3, ring_blocks=2)
    checker = Checker()
    with Collector(config) as collector:
        # Nobody takes: each group fills its ring, and stops there.
        full, until = 2 * 4 * 3 * 2, time.monotonic() + 20
        while collector.stats().env_steps < full:
            assert time.monotonic() < until
            time.sleep(0.05)
        time.sleep(0.5)
        assert collector.stats().env_steps == full
        for _ in range(60):
            checker.feed(collector.take(timeout=30), seed_table(config))
        assert collector.stats().waiting_learner > 0.2
        assert checker.rows == collector.stats().taken


def test_a_block_is_the_receivers_own():
    config = coded_config(num_envs=2, num_env_workers=1, block_length=2, ring_blocks=1)
    with Collector(config) as collector:
        blocks = [collector.take(timeout=30) for _ in range(6)]
    checker = Checker()
    for block in blocks:  # read after the ring was overwritten and after its memory is gone
        checker.feed(block, seed_table(config))


def test_the_serial_twin_hands_out_the_same_rows():
    config = coded_config(num_envs=3, num_env_workers=2, block_length=4)
    checker = Checker()
    with SerialCollector(config) as collector:
        for _ in range(30):
            checker.feed(collector.take(), seed_table(config))
        assert collector.stats().taken == collector.stats().env_steps == checker.rows


@pytest.mark.parametrize("num_models", (0, 2))
def test_published_weights_reach_every_worker_and_their_version_is_recorded(num_models):
    config = coded_config(num_envs=2, num_model_workers=num_models, block_length=2)
    with Collector(config) as collector:
        assert collector.version == 1
        assert collector.publish({"offset": np.zeros(1, np.float32)}) == 2
        seen = collections.defaultdict(set)
        for _ in range(60):
            block = collector.take(timeout=30)
            seen[block.worker, block.group] |= set(block.extras["policy_version"].ravel().tolist())
        assert all(versions <= {1, 2} and 2 in versions for versions in seen.values())
        with pytest.raises(ValueError, match="offset"):
            collector.publish({"offset": np.zeros(2, np.float32)})


def test_resize_while_running_loses_no_row():
    config = coded_config(num_envs=4, num_env_workers=1, num_model_workers=1, block_length=3)
    total = CollectorConfig(env=CODED, num_envs=4, num_env_workers=3)
    checker = Checker()
    with Collector(config) as collector:

        def take(count):
            for _ in range(count):
                checker.feed(collector.take(timeout=30), seed_table(total))

        take(10)
        collector.resize(num_env_workers=3, num_model_workers=2)
        until = time.monotonic() + 30
        while len(checker.expected) < 12:  # the new ones take a moment to start
            take(1)
            assert time.monotonic() < until
        take(60)
        assert len(collector.pids()["model_worker"]) == 2
        collector.resize(num_env_workers=1, num_model_workers=1)
        take(60)
        while len(collector.pids()["env_worker"]) > 1:
            take(1)
        take(10)
        stats = collector.stats()
        assert checker.rows == stats.taken
        assert stats.discarded == stats.env_worker_deaths == stats.model_worker_deaths == 0
        with pytest.raises(ConfigError, match=r"\(N\) is 0"):
            collector.resize(num_env_workers=0)
        with pytest.raises(ConfigError, match=r"\(M\) is 0"):
            collector.resize(num_model_workers=0)


@pytest.mark.parametrize("num_models", (0, 1))
def test_a_paused_collector_stands_still_and_goes_on(num_models):
    config = coded_config(num_envs=4, num_model_workers=num_models, block_length=3, stall_seconds=1.0)
    checker = Checker()
    with Collector(config) as collector:
        checker.feed(collector.take(timeout=30), seed_table(config))
        collector.pause()
        done = collector.stats().env_steps
        time.sleep(1.2)  # longer than what counts as a stall
        assert collector.stats().env_steps == done
        collector.resume()
        for _ in range(40):
            checker.feed(collector.take(timeout=30), seed_table(config))


def all_rounds(config, collector_type, rounds, total_groups):
    """All blocks of some rounds as bytes, with weights published on the way."""
    out = []
    with collector_type(config) as collector:
        for r in range(rounds):
            for _ in range(total_groups):
                block = collector.take(timeout=60)
                arrays = [block.env_index, block.observation, block.action, block.reward, block.terminated]
                arrays += [block.next_observation, block.episodes.length, *block.extras.values()]
                out.append(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays))
            parameters = collector.policy.initial_parameters(100 + r)
            collector.publish(parameters)
    return out


@pytest.mark.parametrize("num_envs", (3, 8))
def test_reproducible_serial_equals_parallel_with_uneven_groups_and_float64_observations(num_envs):
    def config(**changes):
        return CollectorConfig(
            env=EnvConfig(id="HalfCheetah-v5"),
            policy=PolicyConfig(name="exact", inline=f"{__name__}:Exact", batched=f"{__name__}:Exact"),
            num_envs=num_envs,
            num_env_workers=2,
            num_model_workers=1,
            block_length=4,
            schedule="rounds",
            reproducible=True,
            **changes,
        )

    assert all_rounds(config(), Collector, 3, 4) == all_rounds(config(), SerialCollector, 3, 4)


class Exact(MLPPolicy):
    """Looks at more digits of its observation than float32 has."""

    def __init__(self, spec):
        super().__init__(spec, hidden=(64, 64))

    def act(self, observation, noise, action, extras):
        super().act(observation, noise, action, extras)
        action[:, 0] = np.sin(1e9 * observation[:, 0])


def test_reproducible_collectors_give_the_same_bits_whatever_n_N_M_serial_or_parallel():
    def config(num_envs, workers, models):
        return CollectorConfig(
            env=EnvConfig(id="CartPole-v1"),
            policy=mlp_policy(hidden=(32, 32), extras=("log_prob", "policy_version")),
            num_envs=num_envs,
            num_env_workers=workers,
            num_model_workers=models,
            block_length=9,
            group_size=4,
            schedule="rounds",
            reproducible=True,
            seed=5,
        )

    reference = all_rounds(config(16, 1, 0), SerialCollector, 6, 4)
    assert len(set(reference)) == len(reference)
    for num_envs, workers, models in ((16, 1, 0), (8, 2, 0), (4, 4, 1), (8, 2, 2), (16, 1, 1)):
        assert all_rounds(config(num_envs, workers, models), Collector, 6, 4) == reference
