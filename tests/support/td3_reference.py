"""Algorithm 1 of Fujimoto, van Hoof and Meger 2018 written out by hand: everything is NumPy and float64.

A state is as in ``support.sac_reference``, with a target of the actor and without a temperature.
"""

import numpy as np
from support.sac_reference import PREFIXES, adam, backward, critic, layers, norm


def targets(config, state, sample, noise):
    """(batch,) rewards plus the lower target critic's value of the target actor's action, smoothed."""
    smoothing = np.clip(config.policy_noise * noise, -config.noise_clip, config.noise_clip)
    action = np.tanh(layers(state["target_actor"], sample["next_observation"])[0])
    x = np.concatenate([sample["next_observation"], np.clip(action + smoothing, -1, 1)], 1)
    value = np.minimum(
        *(layers(state["target_critic"], x, p, config.critic_layer_norm)[0][:, 0] for p in PREFIXES)
    )
    return sample["reward"] + sample["bootstrap"] * value


def actor(actor, critic, observation, normalise=False):
    """(loss, gradients) of minus the mean of the first critic's values."""
    mean, inputs = layers(actor, observation)
    action = np.tanh(mean)
    q, kept = layers(critic, np.concatenate([observation, action], 1), PREFIXES[0], normalise)
    slope = backward(critic, kept, np.full_like(q, -1 / len(q)), PREFIXES[0], normalise)[1]
    slope = slope[:, observation.shape[1] :]
    return -q.mean(), backward(actor, inputs, slope * (1 - action**2))[0]


def update(config, state, sample, noise):
    """(state, metrics): one whole update, the actor's and the targets' only where the count says so."""
    memory, after = dict(state["memory"]), dict(state)

    def step(network, gradients, rate):
        gradients = {name: g * state["masks"][network].get(name, 1) for name, g in gradients.items()}
        limit = config.max_gradient_norm
        factor = 1 if limit is None else min(1, limit / norm(gradients))
        gradients = {name: g * factor for name, g in gradients.items()}
        after[network], memory[network] = adam(state[network], gradients, memory[network], rate)

    goal = targets(config, state, sample, noise)
    normalise = config.critic_layer_norm
    loss_q, value, gradients = critic(state["critic"], sample, goal, normalise)
    step("critic", gradients, config.critic_learning_rate)
    metrics = {"critic_loss": loss_q, "q_mean": value, "actor_loss": 0.0}
    if (state["updates"] + 1) % config.actor_period == 0:
        loss_pi, gradients = actor(state["actor"], after["critic"], sample["observation"], normalise)
        step("actor", gradients, config.actor_learning_rate)
        metrics["actor_loss"] = config.actor_period * loss_pi
        tau = config.target_rate
        for network in ("actor", "critic"):
            late = state[f"target_{network}"]
            after[f"target_{network}"] = {k: (1 - tau) * v + tau * after[network][k] for k, v in late.items()}
    return {**after, "memory": memory, "updates": state["updates"] + 1}, metrics
