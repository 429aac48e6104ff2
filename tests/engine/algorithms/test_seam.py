"""A second algorithm behind the same protocol: it learns, keeps its masks, and is there by one line."""

import dataclasses

import jax
import numpy as np
import pytest
from support.agents import assert_pruned
from support.probe_envs import STATES, ends_at_once, greedy, learned, ring, two_steps
from support.specs import box_spec
from support.tiny_algorithm import TinyConfig, value

from engine import algorithms
from engine.algorithms.base import AgentState, Algorithm, Config
from trainers.run.training import acting_policy

CONFIG = TinyConfig(hidden=(16, 16), batch_size=64, discount=0.5)
SPEC = box_spec([-1.0], [1.0], (STATES,))
TOLERANCE = 0.05


def asked_for(protocol):
    return {name for name in {*vars(protocol), *protocol.__annotations__} if not name.startswith("_")}


@pytest.mark.parametrize("name", ["sac", "td3", "tiny"])
def test_whatever_is_registered_is_all_that_the_protocols_ask_for(monkeypatch, name):
    monkeypatch.setitem(algorithms.CONFIGS, "tiny", TinyConfig)
    config = algorithms.CONFIGS[name]()
    assert dataclasses.is_dataclass(config)
    assert config.__dataclass_params__.frozen
    assert hash(config) == hash(dataclasses.replace(config))
    learned = {"batch_size", "n_step", "n_step_delay", "observations_between"}
    assert asked_for(Config) == learned | {"network", "problems", "space_problems", "make"}
    assert all(hasattr(config, each) for each in asked_for(Config))
    assert config.problems() == config.space_problems(SPEC) == []
    algorithm = config.make(SPEC, 1e-4)
    assert all(hasattr(algorithm, each) for each in asked_for(Algorithm))
    state = algorithm.init(0)
    assert isinstance(state, AgentState)
    assert set(state.masks) == set(algorithm.prunable) <= set(state.parameters)
    assert set(state.targets) <= set(state.parameters) == set(state.optimizer)
    # Every algorithm of these spaces acts with weights of the shapes that its network has.
    acting = algorithm.acting(state, np.zeros(STATES, np.float32), np.ones(STATES, np.float32))
    shapes = {each: leaf.shape for each, leaf in acting.items()}
    policy = acting_policy(config.network).build(SPEC, batched=False)
    assert shapes == {each: field.shape for each, field in policy.parameters.items()}
    assert all(algorithm.period(each) >= 1 for each in state.parameters)
    assert {each: leaf.shape for each, leaf in algorithm.exploring(state).items()} == shapes
    seen = np.random.default_rng(0).normal(size=(7, STATES)).astype(np.float32)
    policy = acting_policy(config.network, deterministic=True).build(SPEC, batched=False)
    policy.load({each: np.asarray(leaf) for each, leaf in acting.items()})
    written = np.zeros((7, 1), np.float32)
    policy.act(seen, None, written, {})
    np.testing.assert_allclose(algorithm.mean_action(acting, seen), written, rtol=1e-5, atol=1e-6)
    operations = algorithm.flops(state)
    assert (
        operations["update"]["masked"] == operations["update"]["dense"] > operations["forward"]["dense"] > 0
    )


def test_its_actor_goes_where_the_reward_is():
    best = np.array([-0.6, -0.2, 0.2, 0.6])
    state, acting = learned(
        ends_at_once(lambda state, action: 1 - (action - best[state]) ** 2), CONFIG, calls=10
    )
    np.testing.assert_allclose(greedy(acting), best, atol=0.2)
    # How far it explores does not change.
    head = np.asarray(acting["bias_2"])[1:]
    np.testing.assert_allclose(head, np.log(CONFIG.exploration), rtol=1e-6)
    assert not np.asarray(acting["kernel_2"])[:, 1:].any()
    assert_pruned(state, {})


@pytest.mark.parametrize("n_step", [1, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("discount", [0.5, pytest.param(0.8, marks=pytest.mark.slow)])
def test_its_critic_learns_values_known_by_hand(n_step, discount):
    config = dataclasses.replace(CONFIG, n_step=n_step, discount=discount)
    cases = (
        (two_steps(1.0), [discount, 1.0]),
        (ring(0.5, "terminated"), [0.5 * (1 - discount**left) / (1 - discount) for left in (4, 3, 2, 1)]),
    )
    for probe, expected in cases:
        state, _ = learned(probe, config, calls=8)
        observation = np.eye(STATES, dtype=np.float32)[: len(expected)]
        for action in (-0.8, 0.0, 0.8):
            got = value(state.parameters["critic"], observation, np.full((len(expected), 1), action, "f4"))
            np.testing.assert_allclose(got, expected, atol=2 * TOLERANCE)


def test_it_learns_with_half_the_weights_and_keeps_the_others_at_zero():
    rng = np.random.default_rng(2)
    masks = {
        network: {name: rng.random(kept.shape) < 0.5 for name, kept in mask.items()}
        for network, mask in CONFIG.make(SPEC, 1e-4).init(0).masks.items()
    }
    best = np.array([-0.6, -0.2, 0.2, 0.6])
    probe = ends_at_once(lambda state, action: 1 - (action - best[state]) ** 2)
    state, acting = learned(probe, CONFIG, calls=10, masks=masks)
    assert_pruned(state, masks)
    assert jax.tree.all(jax.tree.map(lambda got, kept: bool((got == kept).all()), state.masks, masks))
    np.testing.assert_allclose(greedy(acting), best, atol=0.3)
