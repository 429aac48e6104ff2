"""Soft actor-critic written out by hand: everything in here is NumPy and float64.

A state is a dict of dicts: "actor", "critic", "target_critic" and "temperature" hold weights by name, "masks"
those of the prunable networks, "memory" network -> (count, first moments, second moments) of Adam.
"""

import math

import numpy as np

from engine.networks import LOG_STD_MAX, LOG_STD_MIN

PREFIXES = ("q0/", "q1/")


def normal(x):
    """(x less its mean over the units, over the root of its variance and 1e-6; that root)."""
    deviation = np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return (x - x.mean(-1, keepdims=True)) / deviation, deviation


def layers(network, x, prefix="", normalise=False):
    """(output, the input of every layer)."""
    inputs, depth = [], sum(name.startswith(prefix + "kernel_") for name in network)
    for i in range(depth):
        inputs.append(x)
        x = x @ network[f"{prefix}kernel_{i}"] + network[f"{prefix}bias_{i}"]
        if i < depth - 1:
            x = np.maximum(normal(x)[0] if normalise else x, 0)
    return x, inputs


def backward(network, inputs, slope, prefix="", normalise=False):
    """(gradients, slope of the inputs) from the slope of the outputs."""
    gradients = {}
    for i in reversed(range(len(inputs))):
        gradients[f"{prefix}kernel_{i}"] = inputs[i].T @ slope
        gradients[f"{prefix}bias_{i}"] = slope.sum(0)
        slope = slope @ network[f"{prefix}kernel_{i}"].T
        slope = slope * (inputs[i] > 0) if i else slope
        if i and normalise:
            before = inputs[i - 1] @ network[f"{prefix}kernel_{i - 1}"] + network[f"{prefix}bias_{i - 1}"]
            z, deviation = normal(before)
            share = (slope * z).mean(1, keepdims=True)
            slope = (slope - slope.mean(1, keepdims=True) - z * share) / deviation
    return gradients, slope


def squashed(head, noise):
    """(action, log probability, deviation): a normal's density over the slope of tanh, 1 / cosh^2."""
    mean, log_std = np.split(head, 2, -1)
    std = np.exp(np.clip(log_std, LOG_STD_MIN, LOG_STD_MAX))
    raw = mean + std * noise
    normal = np.exp(-(noise**2) / 2) / (std * math.sqrt(2 * math.pi))
    log_cosh = np.logaddexp(raw, -raw) - math.log(2)
    return np.tanh(raw), (np.log(normal) + 2 * log_cosh).sum(-1), std


def prepared(batch, mean, scale, discount, reward_scale):
    """The sample of a raw batch, (batch, ...), summing rewards one by one."""
    sample = {name: (batch[name] - mean) * scale for name in ("observation", "next_observation")}
    rewards, bootstrap = [], []
    for row, steps, terminated in zip(batch["rewards"], batch["steps"], batch["terminated"], strict=True):
        rewards.append(sum(discount**k * reward_scale * row[k] for k in range(int(steps))))
        bootstrap.append(0.0 if terminated else discount**steps)
    sample |= {"reward": np.array(rewards), "bootstrap": np.array(bootstrap)}
    return {**sample, "action": batch["action"]}


def targets(state, sample, noise, normalise=False):
    """(batch,) rewards plus the soft value of the lower target critic."""
    action, log_prob, _ = squashed(layers(state["actor"], sample["next_observation"])[0], noise)
    x = np.concatenate([sample["next_observation"], action], 1)
    value = np.minimum(*(layers(state["target_critic"], x, p, normalise)[0][:, 0] for p in PREFIXES))
    temperature = np.exp(state["temperature"]["log_temperature"])
    return sample["reward"] + sample["bootstrap"] * (value - temperature * log_prob)


def critic(critic, sample, targets, normalise=False):
    """(loss, mean value, gradients)."""
    x = np.concatenate([sample["observation"], sample["action"]], 1)
    loss, values, gradients = 0.0, [], {}
    for prefix in PREFIXES:
        q, inputs = layers(critic, x, prefix, normalise)
        error = q[:, 0] - targets
        loss += (error**2).mean()
        values.append(q.mean())
        gradients |= backward(critic, inputs, 2 * error[:, None] / len(x), prefix, normalise)[0]
    return loss, np.mean(values), gradients


def actor(actor, critic, temperature, observation, noise, prefixes=PREFIXES, normalise=False):
    """(loss, mean log probability, gradients); prefixes: of the critics of which the lowest counts."""
    size = len(observation)
    head, inputs = layers(actor, observation)
    action, log_prob, std = squashed(head, noise)
    x = np.concatenate([observation, action], 1)
    passes = [layers(critic, x, prefix, normalise) for prefix in prefixes]
    q = np.concatenate([out for out, _ in passes], 1)
    slope_action = np.zeros_like(action)
    for i, (prefix, (_, kept)) in enumerate(zip(prefixes, passes, strict=True)):
        lowest = (q.argmin(1) == i)[:, None]
        slope_input = backward(critic, kept, -1.0 / size * lowest, prefix, normalise)[1]
        slope_action += slope_input[:, observation.shape[1] :]
    # d log pi / d raw = 2 tanh(raw); d log pi / d log std = -1, beside what the action brings.
    slope_mean = temperature / size * 2 * action + slope_action * (1 - action**2)
    log_std = head[:, action.shape[1] :]
    slope_log_std = slope_mean * std * noise - temperature / size
    slope_log_std *= (log_std > LOG_STD_MIN) & (log_std < LOG_STD_MAX)
    gradients, _ = backward(actor, inputs, np.concatenate([slope_mean, slope_log_std], 1))
    return (temperature * log_prob - q.min(1)).mean(), log_prob.mean(), gradients


def norm(tree):
    """The Euclidean norm of all leaves together."""
    return math.sqrt(sum((leaf**2).sum() for leaf in tree.values()))


def adam(parameters, gradients, memory, rate):
    """(parameters, memory) after one step; memory is (count, first moments, second moments)."""
    count, first, second = memory[0] + 1, {}, {}
    moved = {}
    for name, g in gradients.items():
        first[name] = 0.9 * memory[1][name] + 0.1 * g
        second[name] = 0.999 * memory[2][name] + 0.001 * g**2
        unbiased = first[name] / (1 - 0.9**count), second[name] / (1 - 0.999**count)
        moved[name] = parameters[name] - rate * unbiased[0] / (np.sqrt(unbiased[1]) + 1e-8)
    return moved, (count, first, second)


def update(config, state, sample, noise):
    """(state, metrics, norms): one whole update; norms: network -> those of (all, kept) gradients.

    Where actor and temperature rest, "actor_loss" and "entropy" are 0, and else as often as large as the
    actor moves rarely.
    """
    norms, memory = {}, dict(state["memory"])

    def clipped(network, gradients):
        every = norm(gradients)
        gradients = {name: g * state["masks"][network].get(name, 1) for name, g in gradients.items()}
        norms[network] = every, norm(gradients)
        limit = config.max_gradient_norm
        factor = 1 if limit is None else min(1, limit / norms[network][1])
        return {name: g * factor for name, g in gradients.items()}

    normalise = config.critic_layer_norm
    goal = targets(state, sample, noise[0], normalise)
    loss_q, value, gradients = critic(state["critic"], sample, goal, normalise)
    new_critic, memory["critic"] = adam(
        state["critic"], clipped("critic", gradients), memory["critic"], config.critic_learning_rate
    )
    temperature = np.exp(state["temperature"]["log_temperature"])
    new_actor, warmth, loss_pi, log_prob = state["actor"], state["temperature"], 0.0, 0.0
    if (state["updates"] + 1) % config.actor_period == 0:
        judges = PREFIXES[:1] if config.actor_critics == "first" else PREFIXES
        loss_pi, log_prob, gradients = actor(
            state["actor"], new_critic, temperature, sample["observation"], noise[1], judges, normalise
        )
        new_actor, memory["actor"] = adam(
            state["actor"], clipped("actor", gradients), memory["actor"], config.actor_learning_rate
        )
        wanted = -float(sample["action"].shape[1]) if config.target_entropy is None else config.target_entropy
        # What the entropy has above the target makes the temperature fall.
        slope = {"log_temperature": temperature * (-log_prob - wanted)}
        warmth, memory["temperature"] = adam(
            state["temperature"], slope, memory["temperature"], config.temperature_learning_rate
        )
    tau = config.target_rate
    late = {name: (1 - tau) * old + tau * new_critic[name] for name, old in state["target_critic"].items()}
    after = {"actor": new_actor, "critic": new_critic, "target_critic": late, "temperature": warmth}
    metrics = {
        "critic_loss": loss_q,
        "actor_loss": config.actor_period * loss_pi,
        "q_mean": value,
        "entropy": -config.actor_period * log_prob,
        "temperature": temperature,
    }
    return {**state, **after, "memory": memory, "updates": state["updates"] + 1}, metrics, norms
