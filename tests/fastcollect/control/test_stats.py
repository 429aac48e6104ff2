"""Counters add and subtract, and shares of time are shares."""

import dataclasses

import pytest

from fastcollect.control.stats import Stats
from fastcollect.memory.latency import BUCKETS, Latencies

NAMES = [field.name for field in dataclasses.fields(Stats)]


def latencies(first):
    return Latencies(tuple(range(first, first + BUCKETS)))


def stats(number, histogram):
    """Every field has a value of its own, so that one left out or mixed up shows."""
    numbers = {name: number(i) for i, name in enumerate(NAMES)}
    return Stats(**{**numbers, "action_latency": histogram})


LATER = stats(lambda i: 1000 + 7**i % 101, latencies(40))
EARLIER = stats(lambda i: 3 * i + 1, latencies(2))


def test_an_interval_is_the_difference_of_every_counter():
    interval = LATER - EARLIER
    for name in NAMES:
        assert getattr(interval, name) == getattr(LATER, name) - getattr(EARLIER, name)
    assert interval + EARLIER == LATER
    assert Stats() + LATER == LATER
    assert Stats() == LATER - LATER


def test_fps_is_what_was_handed_out_per_second():
    assert Stats(seconds=4.0, taken=100, env_steps=900).fps == 25
    assert Stats(taken=100).fps == 0


def test_shares_sum_to_one_for_each_kind():
    shares = LATER.shares()
    assert set(shares) == {"env_worker", "model_worker", "learner"}
    for kind in shares.values():
        assert sum(kind.values()) == pytest.approx(1, abs=1e-12)
        assert all(0 <= share <= 1 for share in kind.values())


def test_shares_are_of_the_right_counters():
    stats = Stats(
        seconds=10.0,
        stepping=6.0,
        waiting_actions=3.0,
        inferring_inline=2.0,
        waiting_learner=1.0,
        inferring=1.0,
        waiting_requests=3.0,
        waiting_blocks=2.5,
    )
    assert stats.shares() == {
        "env_worker": {
            "stepping": 0.5,
            "waiting_actions": 0.25,
            "inferring": pytest.approx(1 / 6),
            "waiting_learner": pytest.approx(1 / 12),
        },
        "model_worker": {"inferring": 0.25, "waiting": 0.75},
        "learner": {"waiting_blocks": 0.25, "elsewhere": 0.75},
    }


def test_without_model_workers_there_is_no_entry_and_without_time_there_are_zeros():
    nothing = Stats().shares()
    assert set(nothing) == {"env_worker", "learner"}
    assert not any(share for states in nothing.values() for share in states.values())
    assert set(Stats(seconds=1.0, stepping=0.5).shares()) == {"env_worker", "learner"}


def test_a_clock_that_ran_behind_gives_no_negative_share():
    shares = Stats(seconds=1.0, waiting_blocks=1.1).shares()
    assert shares["learner"] == {"waiting_blocks": 1.0, "elsewhere": 0.0}
