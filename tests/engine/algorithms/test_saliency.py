"""Saliency: absolute gradients, averaged over batches, against backpropagation by hand."""

import jax
import numpy as np
import pytest
from support import sac_reference as reference
from support.agents import (
    ACTIONS,
    BATCH,
    CONFIG,
    MEAN,
    SCALE,
    as_dict,
    assert_close_trees,
    in_float64,
    lived_in_state,
    make,
    random_masks,
    raw_batches,
    to_numpy,
)
from support.tiny_algorithm import TinyConfig

from engine.algorithms.base import masked
from engine.algorithms.saliency import mean_absolute_gradients

COUNT = 3
TINY = TinyConfig(hidden=(5, 4), batch_size=BATCH)


def sac_gradients(state, sample, key):
    numpy = to_numpy(state)
    noise = np.array(jax.random.normal(key, (2, BATCH, ACTIONS)), np.float64)
    targets = reference.targets(numpy, sample, noise[0])
    temperature = np.exp(numpy["temperature"]["log_temperature"])
    critic = reference.critic(numpy["critic"], sample, targets)[2]
    actor = reference.actor(numpy["actor"], numpy["critic"], temperature, sample["observation"], noise[1])[2]
    return {"actor": actor, "critic": critic}


def tiny_gradients(state, sample, key):
    """Of the mean squared error, and of minus the mean value, through the critic and the tanh."""

    def greedy(actor, observation):
        head, inputs = reference.layers(actor, observation)
        return np.tanh(head[:, :ACTIONS]), inputs

    def forward(critic, observation, action):
        value, inputs = reference.layers(critic, np.concatenate([observation, action], 1))
        return value[:, 0], inputs

    actor, critic = (in_float64(state.parameters[name]) for name in ("actor", "critic"))
    late = {name: in_float64(state.targets[name]) for name in ("actor", "critic")}
    following = sample["next_observation"]
    goal, _ = forward(late["critic"], following, greedy(late["actor"], following)[0])
    value, inputs = forward(critic, sample["observation"], sample["action"])
    error = value - (sample["reward"] + sample["bootstrap"] * goal)
    gradients = {"critic": reference.backward(critic, inputs, 2 * error[:, None] / BATCH)[0]}
    action, below = greedy(actor, sample["observation"])
    _, inputs = forward(critic, sample["observation"], action)
    slope = reference.backward(critic, inputs, np.full((BATCH, 1), -1 / BATCH))[1][:, -ACTIONS:]
    slope = np.concatenate([slope * (1 - action**2), np.zeros_like(action)], 1)
    return {"actor": reference.backward(actor, below, slope)[0], **gradients}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "by_hand", "reward_scale"),
    [(CONFIG, sac_gradients, CONFIG.reward_scale), (TINY, tiny_gradients, 1.0)],
    ids=["sac", "tiny"],
)
@pytest.mark.parametrize("density", [1.0, 0.6])
def test_saliency_is_the_mean_over_batches_of_absolute_gradients(config, by_hand, reward_scale, density):
    algorithm = make(config)
    state, batches = lived_in_state(algorithm), raw_batches(7, COUNT, 3)
    state = masked(state, {} if density == 1 else random_masks(state, density=density))
    got = mean_absolute_gradients(algorithm, state, batches)
    total = {"actor": {}, "critic": {}}
    for index, key in enumerate(jax.random.split(jax.random.key(state.seed), COUNT)):
        sample = reference.prepared(as_dict(batches, index), MEAN, SCALE, config.discount, reward_scale)
        for network, leaves in by_hand(state, sample, key).items():
            for name, gradient in leaves.items():
                total[network][name] = total[network].get(name, 0) + np.abs(gradient) / COUNT
    assert_close_trees(got, total)
    # Pruned weights have theirs too: what reviving them would be worth.
    for name, kept in state.masks["critic"].items():
        assert (np.asarray(got["critic"][name])[~np.asarray(kept)] > 0).any() == (density < 1) or kept.all()
