"""A histogram's quantiles against those of the durations themselves."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastcollect import PolicyConfig
from fastcollect.control.collector import Collector
from fastcollect.control.config import CollectorConfig
from fastcollect.envs.registry import EnvConfig
from fastcollect.memory.latency import BUCKETS, Latencies, bucket

_STEP = 2 ** (1 / 8)


def histogram(durations):
    counts = [0] * BUCKETS
    for each in durations:
        counts[bucket(each)] += 1
    return Latencies(tuple(counts))


@given(st.lists(st.floats(1e-6, 20), min_size=1, max_size=50), st.sampled_from([0.01, 0.5, 0.99, 1.0]))
def test_quantiles_are_within_a_bucket_of_the_exact_ones(durations, q):
    exact = sorted(durations)[max(0, math.ceil(q * len(durations) - 1e-9) - 1)]
    assert exact / _STEP * 0.999 <= histogram(durations).quantile(q) <= exact * _STEP * 1.001


@pytest.mark.parametrize("seconds", (-1.0, 0.0, 1e-9, 1e9))
def test_durations_out_of_range_count_at_the_ends(seconds):
    assert bucket(seconds) == (BUCKETS - 1 if seconds > 1 else 0)


def test_intervals_and_sums():
    first, both = histogram([1e-3, 2e-3]), histogram([1e-3, 2e-3, 5.0])
    assert (both - first).total() == 1
    assert (both - first).quantile(0.5) == pytest.approx(5.0, rel=0.1)
    assert both - first + first == both
    assert Latencies().total() == 0
    assert math.isnan(Latencies().quantile(0.5))


@pytest.mark.parametrize("models", (0, 1))
def test_every_step_of_a_group_counts_and_none_is_faster_than_its_policy(models):
    path = "support.coded_env:SleepyPolicy"
    config = CollectorConfig(
        env=EnvConfig(id="coded", entry_point="support.coded_env:CodedEnv"),
        policy=PolicyConfig(name="sleepy", inline=path, batched=path),
        num_envs=4,
        num_env_workers=1,
        num_model_workers=models,
        block_length=4,
    )
    with Collector(config) as collector:
        for _ in range(8):
            collector.take()
        stats = collector.stats()
    groups = len(config.groups)
    assert stats.action_latency.total() == pytest.approx(stats.env_steps / 4 * groups, abs=groups)
    assert stats.action_latency.quantile(0.01) >= 0.003 / _STEP
    assert np.isfinite(stats.action_latency.quantile(0.99))
