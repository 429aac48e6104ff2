"""Invariant 7, the collector's part: going on from a saved state equals never having stopped."""

import os
import signal

import numpy as np
import pytest
from support.coded_env import EchoPolicy, echo_policy
from support.collectors import CODED, asynchronous, content, one_round, reproducible

from fastcollect import PolicyConfig, mlp_policy
from fastcollect.control.collector import Collector
from fastcollect.control.serial import SerialCollector
from fastcollect.envs.registry import EnvConfig
from fastcollect.workers.groups import env_seeds

SHAPES = ((8, 1, 0, SerialCollector), (2, 4, 0, Collector), (4, 2, 1, Collector), (8, 1, 2, Collector))
"""n, N, M and class of collectors that give the same bits."""
FEW = (SHAPES[0], SHAPES[2])  # where building environments takes long


def train(collector, rounds):
    """Some rounds, with weights staged after each as a learner would; one list of contents for each."""
    out = []
    for r in rounds:
        out.append([content(block) for block in one_round(collector)])
        collector.publish(collector.policy.initial_parameters(100 + r))
    return out


def same_state(a, b):
    return a.keys() == b.keys() and all(
        (a[k].dtype, a[k].shape, a[k].tobytes()) == (b[k].dtype, b[k].shape, b[k].tobytes()) for k in a
    )


MLP = mlp_policy(hidden=(16,), extras=("log_prob", "policy_version"))


@pytest.mark.parametrize(
    ("env", "policy", "length", "before", "shapes", "group_size"),
    [
        (CODED, echo_policy(), 4, 5, SHAPES, 2),
        (EnvConfig(id="CartPole-v1"), MLP, 9, 6, SHAPES, 2),
        (EnvConfig(id="gym:Pendulum-v1"), MLP, 30, 5, FEW, 2),  # an episode has 200 steps
        (EnvConfig(id="reach-v3"), MLP, 90, 4, FEW, 4),  # 500
    ],
    ids=("coded", "cartpole", "pendulum", "reach"),
)
def test_what_follows_a_saved_state_equals_the_uninterrupted_run(
    env, policy, length, before, shapes, group_size, tmp_path
):
    def config(num_envs, workers, models):
        changes = {"block_length": length, "group_size": group_size}
        return reproducible(env, policy, num_envs, workers, models, **changes)

    later = range(before, before + 3)
    with SerialCollector(config(8, 1, 0)) as collector:
        train(collector, range(before))
        expected_state = collector.get_state()
        expected = train(collector, later)
    num_envs, workers, models, kind = shapes[-1]
    with kind(config(num_envs, workers, models)) as collector:
        train(collector, range(before))
        assert same_state(collector.get_state(), expected_state)
        assert train(collector, later) == expected  # asking changed nothing
    np.savez(tmp_path / "state.npz", **expected_state)
    for num_envs, workers, models, kind in shapes:
        with (
            np.load(tmp_path / "state.npz", allow_pickle=False) as saved,
            kind(config(num_envs, workers, models), state=saved) as collector,
        ):
            assert same_state(collector.get_state(), expected_state)
            assert train(collector, later) == expected


@pytest.mark.parametrize("kind", (Collector, SerialCollector))
def test_uneven_groups_and_a_state_of_a_restored_collector(kind):
    config = reproducible(num_envs=3, models=1, group_size=None)
    assert config.groups == (2, 1)
    with SerialCollector(config) as collector:
        expected = train(collector, range(9))
    state, got = None, []
    for start in range(0, 9, 3):
        with kind(config, state=state) as collector:
            got += train(collector, range(start, start + 3))
            state = collector.get_state()
    assert got == expected


@pytest.mark.parametrize("kind", (Collector, SerialCollector))
def test_staged_weights_act_in_the_first_round_and_can_be_replaced_before_it(kind):
    config = reproducible(EnvConfig(id="CartPole-v1"), MLP)
    with kind(config) as collector:
        one_round(collector)
        unstaged = collector.get_state()
        weights = collector.policy.initial_parameters(7)
        assert collector.publish(weights) == 2
        staged = collector.get_state()
        assert collector.version == 1
        expected = [content(block) for block in one_round(collector)]
    for state, publishes in ((staged, False), (unstaged, True)):
        with kind(config, state=state) as collector:
            assert collector.version == 1
            if publishes:
                assert collector.publish(weights) == 2
            blocks = one_round(collector)
            assert collector.version == 2
            assert all((block.extras["policy_version"] == 2).all() for block in blocks)
            assert [content(block) for block in blocks] == expected
    with kind(config, state=unstaged) as collector:
        assert all((block.extras["policy_version"] == 1).all() for block in one_round(collector))


def test_weights_without_parameters_are_staged_too():
    policy = PolicyConfig(name="bare", inline=f"{__name__}:BareEcho", batched="")
    config = reproducible(policy=policy)
    with SerialCollector(config) as collector:
        train(collector, range(3))
        state, expected = collector.get_state(), train(collector, range(2))
    with Collector(config, state=state) as collector:
        assert train(collector, range(2)) == expected


class BareEcho(EchoPolicy):
    def __init__(self, spec):
        super().__init__(spec)
        self.parameters = {}

    def initial_parameters(self, seed):
        return {}

    def load(self, parameters):
        self._offset = 0


@pytest.mark.parametrize("kind", (Collector, SerialCollector))
def test_episodes_that_span_the_save_keep_return_length_and_success(kind):
    config = reproducible()
    with SerialCollector(config) as collector:
        rounds = [one_round(collector) for _ in range(4)]
    with kind(config) as collector:
        for _ in range(3):
            one_round(collector)
        state = collector.get_state()
    with kind(config, state=state) as collector:
        restored = one_round(collector)
    spanning = earlier = 0
    for block, expected in zip(restored, rounds[3], strict=True):
        assert content(block) == content(expected)
        episodes = block.episodes
        # An episode is longer than its rows in this block, by the steps before the save.
        before = episodes.length - (episodes.row // block.reward.shape[1] + 1)
        spanning += (before > 0).sum()
        earlier += ((episodes.success_first >= 0) & (episodes.success_first < before)).sum()
    assert spanning
    assert earlier


def first_rows(collector):
    """{environment: (seed, noise of its first step)} of everyone's first block."""
    found = {}
    while len(found) < collector.config.total_envs:
        block = collector.take(timeout=60)
        if block.first_step == 0:
            for i, env in enumerate(block.env_index.tolist()):
                found[env] = int(block.observation[0, i, 0]), block.extras["drawn"][0, i].tobytes()
    return found


@pytest.mark.parametrize("kind", (Collector, SerialCollector))
def test_otherwise_a_new_life_begins_with_the_same_weights(kind):
    state, lives = None, []
    for life, (num_envs, workers) in enumerate(((4, 2), (4, 2), (3, 3))):
        with kind(asynchronous(num_envs=num_envs, num_env_workers=workers), state=state) as collector:
            assert collector.version == life + 1
            lives.append(first_rows(collector))
            collector.take(timeout=60)
            sign = (-1) ** life  # of the zero that the environment wants
            assert collector.publish({"offset": np.full(1, sign * 0.0, np.float32)}) == life + 2
            state = collector.get_state()
            assert np.signbit(state["published/offset"]) == (sign < 0)
        for env, (seed, _) in lives[-1].items():
            assert seed == env_seeds(0, env, 1, life)[0]
    seen = [value for life in lives for row in life.values() for value in row]
    assert len(set(seen)) == len(seen) == 2 * (8 + 8 + 9)


def test_a_life_that_began_after_a_death_counts():
    with Collector(asynchronous(num_model_workers=1)) as collector:
        first = collector.take(timeout=60).worker
        for pid in collector.pids()["env_worker"]:
            os.kill(pid, signal.SIGKILL)
        while collector.take(timeout=60).worker <= first + 1:
            pass
        state = collector.get_state()
    assert state["life"] == 1
    assert not any(key.startswith("group/") for key in state)
    with Collector(asynchronous(), state=state) as collector:
        seeds = [seed for _, (seed, _) in sorted(first_rows(collector).items())]
    assert seeds == env_seeds(0, 0, 8, 2).tolist()
