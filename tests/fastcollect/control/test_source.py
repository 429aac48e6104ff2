"""Any source of blocks will do for a consumer, and sources with offsets share nothing."""

import inspect
from dataclasses import replace

import numpy as np
import pytest
from support.collectors import asynchronous, content, in_rounds, one_round, reproducible

from fastcollect import mlp_policy
from fastcollect.control.collector import Collector
from fastcollect.control.config import CollectorConfig
from fastcollect.control.serial import SerialCollector
from fastcollect.control.source import BlockSource
from fastcollect.envs.registry import EnvConfig
from fastcollect.support.errors import ConfigError
from fastcollect.workers.groups import env_seeds

KINDS = (Collector, SerialCollector)


@pytest.mark.parametrize("kind", KINDS)
def test_both_collectors_are_sources(kind):
    members = {
        name: member
        for name, member in vars(BlockSource).items()
        if callable(member) or isinstance(member, property)
        if not name.startswith("_") or name in ("__enter__", "__exit__")
    }
    assert len(members) == 12
    with kind(asynchronous()) as source:
        for name, member in members.items():
            if isinstance(member, property):
                assert not callable(getattr(source, name))
            else:
                expected = inspect.signature(member).replace(return_annotation=inspect.Signature.empty)
                got = inspect.signature(getattr(kind, name))
                assert list(got.parameters) == list(expected.parameters), name
                defaults = [[p.default for p in s.parameters.values()] for s in (got, expected)]
                assert defaults[0] == defaults[1], name


def consume(source: BlockSource, blocks):
    """What a learner does with any source: counts by environment, publishes, saves."""
    with source:
        steps = np.zeros(len(source.env_indices), np.int64)
        version = source.version
        assert source.spec.observation_shape == (3,)
        for _ in range(blocks):
            block = source.take(timeout=30)
            steps[block.env_index - source.env_indices.start] += len(block.reward)
            assert (block.extras["policy_version"] <= source.version).all()
        fields = source.policy.parameters
        assert source.publish({k: np.zeros(f.shape, f.dtype) for k, f in fields.items()}) == version + 1
        assert source.stats().taken == steps.sum()
        state = source.get_state()
    source.close()
    return steps, state


@pytest.mark.parametrize("config", [asynchronous(first_env=6), in_rounds(first_env=6)])
@pytest.mark.parametrize("kind", KINDS)
def test_one_consumer_takes_any_source(kind, config):
    steps, state = consume(kind(config), 3 * config.blocks_per_round)
    assert len(steps) == 8
    if config.rounds or kind is SerialCollector:
        assert set(steps.tolist()) == {3 * config.block_length}
    for other in KINDS:  # and any source goes on from it
        more, _ = consume(other(config, state=state), config.blocks_per_round)
        assert more.any()


@pytest.mark.parametrize(("kind", "models"), [(Collector, 0), (Collector, 1), (SerialCollector, 0)])
def test_two_sources_with_offsets_are_the_halves_of_one(kind, models):
    def config(workers, first_env=0):
        return replace(
            reproducible(
                EnvConfig(id="CartPole-v1"),
                mlp_policy((16,), extras=("log_prob", "policy_version")),
                workers=workers,
                models=models,
                block_length=9,
            ),
            first_env=first_env,
        )

    def rounds(source_config, of=kind, state=None):
        out = []
        with of(source_config, state=state) as source:
            for r in range(5):
                out.append([content(block) for block in one_round(source)])
                source.publish(source.policy.initial_parameters(100 + r))
            return out, source.get_state()

    whole, whole_state = rounds(config(2), SerialCollector)
    halves, states = zip(*(rounds(config(1, first)) for first in (0, 4)), strict=True)
    assert [first + second for first, second in zip(*halves, strict=True)] == whole
    groups = [key for key in whole_state if key.startswith("group/")]
    assert groups
    for key in groups:
        (state,) = (each for each in states if key in each)
        assert np.array_equal(state[key], whole_state[key])
    # What follows a state is the half's, too, and the other half's state is refused.
    following = rounds(config(2), SerialCollector, whole_state)[0]
    assert [r[2:] for r in following] == rounds(config(1, 4), state=states[1])[0]
    with pytest.raises(ConfigError, match="first_env is 4 here, 0 in the saved state"):
        kind(config(1, 4), state=states[0])


@pytest.mark.parametrize("kind", KINDS)
def test_an_offset_moves_seeds_noise_and_indices(kind):
    config = asynchronous(first_env=100, num_envs=2)
    seen = {}
    with kind(config) as source:
        assert source.env_indices == range(100, 104)
        while len(seen) < 4:
            block = source.take(timeout=30)
            if block.first_step == 0:
                seen |= dict(zip(block.env_index.tolist(), block.observation[0, :, 0].tolist(), strict=True))
    assert [seen[env] for env in range(100, 104)] == env_seeds(0, 100, 4, 0).tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_options_by_environment_are_indexed_globally(kind):
    env = EnvConfig(id="reach-v3", kwargs={"goal_indices": [7, 7, 7, 11, 12], "goal_visible": True})
    config = CollectorConfig(env=env, num_envs=2, num_env_workers=1, block_length=1)
    goals = {}
    for first in (0, 3):
        with kind(replace(config, first_env=first)) as source:
            goals[first] = source.take(timeout=60).observation[0, :, -3:]
    assert np.array_equal(goals[0][0], goals[0][1])
    assert len(np.unique(np.concatenate([goals[0], goals[3]]), axis=0)) == 3
    with pytest.raises(
        ConfigError, match=r"goal_indices has 5 entries, environment 5 needs one: it is .* 4 to 5"
    ):
        kind(replace(config, first_env=4))


@pytest.mark.parametrize("first_env", (-1, 1.5, 2**31))
def test_an_offset_is_checked(first_env):
    with pytest.raises(ConfigError, match=r"first_env is .*; allowed: 0 to"):
        asynchronous(first_env=first_env)


def test_a_consumer_learns_of_more_environments_before_their_first_block():
    config = asynchronous(first_env=10, num_env_workers=1)
    with Collector(config) as source:
        assert source.env_indices == range(10, 14)
        source.resize(num_env_workers=3)
        indices = set()
        while len(indices) < 12:
            block = source.take(timeout=30)
            assert set(block.env_index.tolist()) <= set(source.env_indices)
            indices |= set(block.env_index.tolist())
        source.resize(num_env_workers=1)
        assert source.env_indices == range(10, 22)  # blocks of those that leave are still to come


def test_a_resize_beyond_the_options_by_environment_is_refused():
    env = EnvConfig(id="gym:Pendulum-v1", kwargs={"per_env_kwargs": [{"g": 9.0 + i} for i in range(5)]})
    with Collector(CollectorConfig(env=env, num_envs=2, num_env_workers=2)) as source:
        with pytest.raises(ConfigError, match="per_env_kwargs has 5 entries, environment 5 needs one"):
            source.resize(num_env_workers=3)
        source.take(timeout=30)
