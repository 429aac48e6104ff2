"""Soft actor-critic against gradients, Adam and targets written out by hand in NumPy and float64."""

import dataclasses
import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from engine.algorithms import sac
from engine.networks import LOG_STD_MAX, LOG_STD_MIN, fold_normalizer, mlp, q_values, tanh_gaussian
from engine.sparse import masks
from engine.sparse.saliency import mean_absolute_gradients

OBSERVATIONS, ACTIONS, HIDDEN, BATCH = 3, 2, (5, 4), 7
PREFIXES = ("q0/", "q1/")
CONFIG = sac.SACConfig(
    hidden=HIDDEN,
    initial_temperature=0.2,
    batch_size=BATCH,
    actor_learning_rate=3e-3,
    critic_learning_rate=5e-3,
    temperature_learning_rate=2e-3,
    target_rate=0.1,
    reward_scale=0.5,
)
CLIPPED = dataclasses.replace(CONFIG, max_gradient_norm=0.05, target_entropy=-0.7)

# Nothing here runs for long: compiling costs the most.
fast_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def update(config, state, mask, batch, pace=1.0):
    return sac.update(config, state, mask, batch, sac.noises(state, 1, batch.action.shape)[0], pace)


jitted_update = fast_jit(update, static_argnames="config")
# Float32 sums of a dozen terms and two Adam divisions: relative 1e-6 or so, with a margin.
close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)


# The reference: everything below is NumPy, float64.


def layers(network, x, prefix=""):
    """(output, the input of every layer)."""
    inputs, depth = [], sum(name.startswith(prefix + "kernel_") for name in network)
    for i in range(depth):
        inputs.append(x)
        x = x @ network[f"{prefix}kernel_{i}"] + network[f"{prefix}bias_{i}"]
        x = np.maximum(x, 0) if i < depth - 1 else x
    return x, inputs


def backward(network, inputs, slope, prefix=""):
    """(gradients, slope of the inputs) from the slope of the outputs."""
    gradients = {}
    for i in reversed(range(len(inputs))):
        gradients[f"{prefix}kernel_{i}"] = inputs[i].T @ slope
        gradients[f"{prefix}bias_{i}"] = slope.sum(0)
        slope = slope @ network[f"{prefix}kernel_{i}"].T
        slope = slope * (inputs[i] > 0) if i else slope
    return gradients, slope


def squashed(head, noise):
    """(action, log probability, deviation): a normal's density over the slope of tanh, 1 / cosh^2."""
    mean, log_std = np.split(head, 2, -1)
    std = np.exp(np.clip(log_std, LOG_STD_MIN, LOG_STD_MAX))
    raw = mean + std * noise
    normal = np.exp(-(noise**2) / 2) / (std * math.sqrt(2 * math.pi))
    log_cosh = np.logaddexp(raw, -raw) - math.log(2)
    return np.tanh(raw), (np.log(normal) + 2 * log_cosh).sum(-1), std


def reference_targets(state, batch, noise):
    action, log_prob, _ = squashed(layers(state["actor"], batch["next_observation"])[0], noise)
    x = np.concatenate([batch["next_observation"], action], 1)
    value = np.minimum(*(layers(state["target_critic"], x, p)[0][:, 0] for p in PREFIXES))
    return batch["reward"] + batch["bootstrap"] * (value - np.exp(state["log_temperature"]) * log_prob)


def reference_critic(critic, batch, targets):
    """(loss, mean value, gradients)."""
    x = np.concatenate([batch["observation"], batch["action"]], 1)
    loss, values, gradients = 0.0, [], {}
    for prefix in PREFIXES:
        q, inputs = layers(critic, x, prefix)
        error = q[:, 0] - targets
        loss += (error**2).mean()
        values.append(q.mean())
        gradients |= backward(critic, inputs, 2 * error[:, None] / len(x), prefix)[0]
    return loss, np.mean(values), gradients


def reference_actor(actor, critic, temperature, observation, noise):
    """(loss, mean log probability, gradients)."""
    size = len(observation)
    head, inputs = layers(actor, observation)
    action, log_prob, std = squashed(head, noise)
    x = np.concatenate([observation, action], 1)
    passes = [layers(critic, x, prefix) for prefix in PREFIXES]
    q = np.concatenate([out for out, _ in passes], 1)
    slope_action = np.zeros_like(action)
    for i, (prefix, (_, kept)) in enumerate(zip(PREFIXES, passes, strict=True)):
        lowest = (q.argmin(1) == i)[:, None]
        slope_action += backward(critic, kept, -1.0 / size * lowest, prefix)[1][:, observation.shape[1] :]
    # d log pi / d raw = 2 tanh(raw); d log pi / d log std = -1, beside what the action brings.
    slope_mean = temperature / size * 2 * action + slope_action * (1 - action**2)
    log_std = head[:, action.shape[1] :]
    slope_log_std = slope_mean * std * noise - temperature / size
    slope_log_std *= (log_std > LOG_STD_MIN) & (log_std < LOG_STD_MAX)
    gradients, _ = backward(actor, inputs, np.concatenate([slope_mean, slope_log_std], 1))
    return (temperature * log_prob - q.min(1)).mean(), log_prob.mean(), gradients


def norm(tree):
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


def reference_update(config, state, mask, batch):
    """The whole update of a state of NumPy dicts; also (dense, masked) norms of the gradients, unclipped."""
    noise = noise_of(state)
    norms, memory = {}, dict(state["memory"])

    def prepare(kind, gradients):
        dense = norm(gradients)
        gradients = {name: g * mask[kind].get(name, 1) for name, g in gradients.items()}
        norms[kind] = dense, norm(gradients)
        limit = config.max_gradient_norm
        factor = 1 if limit is None else min(1, limit / norms[kind][1])
        return {name: g * factor for name, g in gradients.items()}

    targets = reference_targets(state, batch, noise[0])
    loss_q, value, gradients = reference_critic(state["critic"], batch, targets)
    critic, memory["critic"] = adam(
        state["critic"], prepare("critic", gradients), memory["critic"], config.critic_learning_rate
    )
    temperature = np.exp(state["log_temperature"])
    loss_pi, log_prob, gradients = reference_actor(
        state["actor"], critic, temperature, batch["observation"], noise[1]
    )
    actor, memory["actor"] = adam(
        state["actor"], prepare("actor", gradients), memory["actor"], config.actor_learning_rate
    )
    wanted = -float(ACTIONS) if config.target_entropy is None else config.target_entropy
    # What the entropy has above the target makes the temperature fall.
    slope = temperature * (-log_prob - wanted)
    warm, memory["temperature"] = adam(
        {"": state["log_temperature"]}, {"": slope}, memory["temperature"], config.temperature_learning_rate
    )
    tau = config.target_rate
    after = {
        "actor": actor,
        "critic": critic,
        "target_critic": {
            name: (1 - tau) * target + tau * critic[name] for name, target in state["target_critic"].items()
        },
        "log_temperature": warm[""],
        "memory": memory,
        "seed": state["seed"],
        "updates": state["updates"] + 1,
    }
    metrics = {
        "critic_loss": loss_q,
        "actor_loss": loss_pi,
        "q_mean": value,
        "entropy": -log_prob,
        "temperature": temperature,
    }
    return after, metrics, norms


# Between the two.


def noise_of(state):
    """(2, batch, actions): for the actions of the targets, and for those of the actor's loss."""
    return np.array(_noise(np.uint32(state["seed"]), np.int32(state["updates"])), np.float64)


@fast_jit
def _noise(seed, updates):
    key = jax.random.fold_in(jax.random.key(seed), updates)
    return jax.random.normal(key, (2, BATCH, ACTIONS))


def in_float64(tree):
    return jax.tree.map(lambda leaf: np.array(leaf, np.float64), dict(tree))


def to_numpy(state):
    def memory(kind):
        get = partial(optax.tree_utils.tree_get, state.optimizer[kind])
        moments = (get("mu"), get("nu"))
        if kind == "temperature":
            moments = ({"": moments[0]}, {"": moments[1]})
        return int(get("count")), *(in_float64(m) for m in moments)

    return {
        "actor": in_float64(state.actor),
        "critic": in_float64(state.critic),
        "target_critic": in_float64(state.target_critic),
        "log_temperature": np.float64(state.log_temperature),
        "memory": {kind: memory(kind) for kind in ("actor", "critic", "temperature")},
        "seed": int(state.seed),
        "updates": int(state.updates),
    }


def lived_in_state(config=CONFIG, seed=3):
    """A state as after many updates: no weight, bias or moment is zero, and the targets lag behind.

    Of two critics each is the lower one for about half of random inputs.
    """
    rng = np.random.default_rng(seed)
    state = jax.eval_shape(lambda: sac.init(config, seed, OBSERVATIONS, ACTIONS))

    def normal(tree, deviation):
        return {k: np.float32(deviation) * rng.standard_normal(v.shape, np.float32) for k, v in tree.items()}

    def memory(kind):
        parameters = getattr(state, kind)
        return optax.tree_utils.tree_set(
            state.optimizer[kind],
            count=np.int32(rng.integers(5, 50)),
            mu=normal(parameters, 1e-2),
            nu={name: leaf**2 for name, leaf in normal(parameters, 3e-2).items()},
        )

    critic = normal(state.critic, 0.6)
    target_critic = {name: critic[name] + late for name, late in normal(critic, 0.2).items()}
    inputs = rng.normal(size=(100, OBSERVATIONS + ACTIONS))
    for network in (critic, target_critic):
        values = [layers(network, inputs, prefix)[0] for prefix in PREFIXES]
        network["q1/bias_2"] += np.float32(np.median(values[0] - values[1]))
    state = sac.SACState(
        actor=normal(state.actor, 0.6),
        critic=critic,
        target_critic=target_critic,
        log_temperature=np.float32(math.log(0.2)),
        optimizer={
            "actor": memory("actor"),
            "critic": memory("critic"),
            "temperature": optax.tree_utils.tree_set(
                state.optimizer["temperature"], count=np.int32(9), mu=np.float32(0.01), nu=np.float32(0.002)
            ),
        },
        seed=np.uint32(seed),
        updates=np.int32(17),
    )
    return jax.tree.map(jnp.array, state)


def random_batch(seed, *lead):
    rng = np.random.default_rng(seed)
    lead = (*lead, BATCH)
    done = rng.random(lead) < 0.3
    return sac.Batch(
        observation=rng.standard_normal((*lead, OBSERVATIONS), np.float32),
        action=np.tanh(rng.standard_normal((*lead, ACTIONS), np.float32)),
        reward=rng.standard_normal(lead, np.float32),
        next_observation=rng.standard_normal((*lead, OBSERVATIONS), np.float32),
        bootstrap=np.where(done, 0, 0.9).astype(np.float32),
    )


def as_dict(batch):
    return {f.name: np.array(getattr(batch, f.name), np.float64) for f in dataclasses.fields(batch)}


def random_masks(state, seed=0, density=0.5):
    rng = np.random.default_rng(seed)
    return {
        kind: {k: rng.random(v.shape) < density for k, v in getattr(state, kind).items() if "kernel" in k}
        for kind in ("actor", "critic")
    }


def assert_equal_trees(got, expected):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        assert np.array_equal(np.asarray(a), np.asarray(b))


def assert_close_trees(got, expected, **tolerance):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        close(a, b, **tolerance)


def assert_pruned(state, mask):
    """Weights, targets and both moments are zero where the masks are False, bit for bit."""
    get = optax.tree_utils.tree_get
    for kind in ("actor", "critic"):
        trees = [getattr(state, kind), *(get(state.optimizer[kind], moment) for moment in ("mu", "nu"))]
        if kind == "critic":
            trees.append(state.target_critic)
        for tree, (name, kept) in itertools.product(trees, mask[kind].items()):
            pruned = np.asarray(tree[name])[~kept]
            assert pruned.tobytes() == bytes(pruned.nbytes), (kind, name)


# The pieces.


def test_log_probability_is_exact_where_tanh_saturates():
    mean, log_std = np.meshgrid([-30.0, -9, -0.5, 0, 4, 30], [-25.0, -5, 0, 1.9, 3])
    head = np.stack([mean.ravel(), log_std.ravel()], 1)
    noise = np.random.default_rng(0).standard_normal((len(head), 1)).astype(np.float32)
    action, log_prob, mean_action = tanh_gaussian(jnp.float32(head), noise)
    log_std = np.clip(head[:, 1:], LOG_STD_MIN, LOG_STD_MAX)
    raw = head[:, :1] + np.exp(log_std) * noise
    # 1 - tanh^2 = 1 / cosh^2
    log_cosh = np.logaddexp(raw, -raw) - math.log(2)
    expected = -(noise.astype(np.float64) ** 2) / 2 - log_std - math.log(2 * math.pi) / 2 + 2 * log_cosh
    np.testing.assert_allclose(log_prob, expected[:, 0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(action, np.tanh(raw), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mean_action, np.tanh(head[:, :1]), rtol=1e-5, atol=1e-6)
    slope = jax.grad(lambda h: tanh_gaussian(h, noise)[1].sum())(jnp.float32(head))
    assert np.isfinite(slope).all()


def test_probabilities_of_actions_integrate_to_one():
    edges = np.linspace(-9, 9, 200_001)
    head = np.tile(np.float32([0.3, -0.4]), (len(edges), 1))
    action, log_prob, _ = tanh_gaussian(jnp.asarray(head), jnp.float32(edges)[:, None])
    assert np.trapezoid(np.exp(np.float64(log_prob)), np.float64(action)[:, 0]) == pytest.approx(1, abs=1e-4)


def test_critic_targets_are_reward_plus_soft_value_of_the_lower_target_critic():
    state, batch = lived_in_state(), random_batch(1)
    noise = np.random.default_rng(2).standard_normal((BATCH, ACTIONS))
    got = fast_jit(sac.critic_targets)(state, batch, np.float32(noise))
    assert got.shape == (BATCH,)
    close(got, reference_targets(to_numpy(state), as_dict(batch), np.float64(np.float32(noise))))
    terminal = np.asarray(batch.bootstrap) == 0
    assert terminal.any()
    assert np.array_equal(np.asarray(got)[terminal], batch.reward[terminal])


def test_critic_loss_and_gradients():
    state, batch = lived_in_state(), random_batch(3)
    targets = np.random.default_rng(4).standard_normal(BATCH).astype(np.float32)
    (loss, value), gradients = fast_jit(jax.value_and_grad(sac.critic_loss, has_aux=True))(
        state.critic, batch, targets
    )
    expected = reference_critic(to_numpy(state)["critic"], as_dict(batch), targets.astype(np.float64))
    close(loss, expected[0])
    close(value, expected[1])
    assert_close_trees(gradients, expected[2])


def test_actor_loss_and_gradients():
    state, batch = lived_in_state(), random_batch(5)
    # One deviation is clipped from above, so that its gradient stops.
    state.actor["bias_2"] += np.float32([0, 0, 2.5, 0])
    noise = np.random.default_rng(6).standard_normal((BATCH, ACTIONS)).astype(np.float32)
    (loss, log_prob), gradients = fast_jit(jax.value_and_grad(sac.actor_loss, has_aux=True))(
        state.actor, state.critic, jnp.float32(0.3), batch.observation, noise
    )
    numpy = to_numpy(state)
    expected = reference_actor(
        numpy["actor"], numpy["critic"], 0.3, as_dict(batch)["observation"], noise.astype(np.float64)
    )
    close(loss, expected[0])
    close(log_prob, expected[1])
    assert_close_trees(gradients, expected[2])
    action = tanh_gaussian(mlp(state.actor, batch.observation), noise)[0]
    assert 0 < np.argmin(q_values(state.critic, batch.observation, action), 0).sum() < BATCH


def test_saliency_is_the_mean_over_batches_of_absolute_gradients_on_normalised_batches():
    state, batches = lived_in_state(), random_batch(7, 3)
    mean, scale = np.float32([0.3, -0.2, 0.1]), np.float32([2.0, 0.5, 1.5])
    got = mean_absolute_gradients(CONFIG, state, batches, mean, scale)
    numpy, keys = to_numpy(state), jax.random.split(jax.random.key(state.seed), 3)
    total = {"actor": {}, "critic": {}}
    for index, key in enumerate(keys):
        batch = {name: value[index] for name, value in as_dict(batches).items()}
        for name in ("observation", "next_observation"):
            batch[name] = (batch[name] - mean) * scale
        batch["reward"] = batch["reward"] * CONFIG.reward_scale
        noise = np.array(jax.random.normal(key, (2, BATCH, ACTIONS)), np.float64)
        targets = reference_targets(numpy, batch, noise[0])
        temperature = np.exp(numpy["log_temperature"])
        gradients = {
            "critic": reference_critic(numpy["critic"], batch, targets)[2],
            "actor": reference_actor(
                numpy["actor"], numpy["critic"], temperature, batch["observation"], noise[1]
            )[2],
        }
        for kind, leaves in gradients.items():
            for name, gradient in leaves.items():
                total[kind][name] = total[kind].get(name, 0) + np.abs(gradient) / 3
    assert_close_trees(got, total)


@pytest.mark.parametrize(("log_prob", "sign"), [(-3.0, 1), (3.0, -1)])
def test_temperature_falls_when_entropy_is_above_its_target(log_prob, sign):
    loss, slope = jax.value_and_grad(sac.temperature_loss)(jnp.float32(math.log(0.2)), log_prob, -2.0)
    assert loss == pytest.approx(0.2 * (-log_prob + 2.0), rel=1e-5)
    assert slope == pytest.approx(float(loss), rel=1e-5)
    assert np.sign(slope) == sign


# Whole updates.


@pytest.mark.parametrize(
    ("config", "masked", "pace"),
    [
        pytest.param(CONFIG, (), 1.0, id="dense"),
        pytest.param(CONFIG, ("actor", "critic"), 0.3, id="masked, slower"),
        pytest.param(CLIPPED, ("actor",), 1.0, id="actor masked, clipped"),
        pytest.param(CLIPPED, ("actor", "critic"), 1.0, id="masked, clipped"),
    ],
)
def test_updates_equal_backpropagation_and_adam_by_hand(config, masked, pace):
    rates = ("actor_learning_rate", "critic_learning_rate", "temperature_learning_rate")
    slower = dataclasses.replace(config, **{name: pace * getattr(config, name) for name in rates})
    state = lived_in_state(config)
    mask = {kind: random if kind in masked else {} for kind, random in random_masks(state).items()}
    state = sac.apply_masks(state, mask)
    expected = to_numpy(state)
    for step in range(4):
        batch = random_batch(10 + step)
        before = expected
        state, metrics = jitted_update(config, state, mask, batch, pace)
        expected, expected_metrics, norms = reference_update(slower, before, mask, as_dict(batch))
        if config.max_gradient_norm is not None:
            assert min(kept for _, kept in norms.values()) > 2 * config.max_gradient_norm
        got = to_numpy(state)
        assert (got["seed"], got["updates"]) == (3, 18 + step)
        assert_close_trees(got, expected)
        assert_close_trees({k: np.float64(v) for k, v in metrics.items()}, expected_metrics)
        # The tolerance would not hide an update that was left out.
        for kind in ("actor", "critic", "target_critic"):
            moved = {k: expected[kind][k] - before[kind][k] for k in before[kind]}
            assert norm(moved) > 5e-4
        # Nor does it add up: the reference follows from what was computed in float32.
        expected = got


def test_first_update_of_fresh_weights_equals_the_reference():
    state = sac.init(CONFIG, 8, OBSERVATIONS, ACTIONS)
    batch = random_batch(20)
    expected, metrics, _ = reference_update(CONFIG, to_numpy(state), sac.DENSE, as_dict(batch))
    state, got = jitted_update(CONFIG, state, sac.DENSE, batch)
    assert_close_trees(to_numpy(state), expected)
    assert_close_trees({k: np.float64(v) for k, v in got.items()}, metrics)


def test_init_is_a_function_of_the_seed_and_starts_the_targets_at_the_critics():
    first, again, other = (sac.init(CONFIG, seed, OBSERVATIONS, ACTIONS) for seed in (4, 4, 5))
    assert_equal_trees(first, again)
    assert not np.array_equal(first.actor["kernel_0"], other.actor["kernel_0"])
    assert_equal_trees(first.critic, first.target_critic)
    assert not np.array_equal(first.critic["q0/kernel_0"], first.critic["q1/kernel_0"])
    assert first.log_temperature == pytest.approx(math.log(CONFIG.initial_temperature))
    assert (first.seed, first.updates) == (4, 0)
    shapes = {name: leaf.shape for name, leaf in first.actor.items()}
    kernels = {"kernel_0": (3, 5), "kernel_1": (5, 4), "kernel_2": (4, 4)}
    assert shapes == kernels | {"bias_0": (5,), "bias_1": (4,), "bias_2": (4,)}


def test_init_takes_every_seed_of_32_bits():
    state = sac.init(CONFIG, 2**32 - 1, OBSERVATIONS, ACTIONS)
    assert int(state.seed) == 2**32 - 1


MEAN = np.float32([5, -3, 0.5])
SCALE = np.float32([0.5, 2, 10])


def raw(batches):
    """The batches whose normalised and scaled form these are, near enough."""
    return batches.replace(
        observation=batches.observation / SCALE + MEAN,
        next_observation=batches.next_observation / SCALE + MEAN,
        reward=batches.reward / np.float32(CONFIG.reward_scale),
    )


def test_many_updates_equal_single_ones_on_normalised_batches():
    state = lived_in_state(CLIPPED)
    mask = random_masks(state)
    state = sac.apply_masks(state, mask)
    batches = raw(random_batch(30, 5))
    single, collected = state, []
    for k in range(5):
        batch = jax.tree.map(lambda leaf, k=k: leaf[k], batches)
        batch = batch.replace(
            observation=(batch.observation - MEAN) * SCALE,
            next_observation=(batch.next_observation - MEAN) * SCALE,
            reward=batch.reward * np.float32(CLIPPED.reward_scale),
        )
        single, metrics = jitted_update(CLIPPED, single, mask, batch, 0.4)
        collected.append(metrics)
    got, _, metrics = sac.update_many(CLIPPED, state, mask, batches, MEAN, SCALE, 0.4)
    assert_close_trees(got, single, rtol=1e-5)
    means = {name: np.mean([float(m[name]) for m in collected]) for name in collected[0]}
    assert_close_trees({k: np.float64(v) for k, v in metrics.items()}, means, rtol=1e-5)


def test_a_state_that_was_saved_and_restored_goes_on_bit_for_bit():
    batches = raw(random_batch(32, 5))
    state = lived_in_state(CLIPPED)
    mask = random_masks(state)
    state, _, _ = sac.update_many(CLIPPED, sac.apply_masks(state, mask), mask, batches, MEAN, SCALE)
    saved = jax.tree.map(np.array, state)
    whole = sac.update_many(CLIPPED, state, mask, batches, MEAN, SCALE)
    restored = jax.tree.map(jnp.array, saved)
    assert_equal_trees(sac.update_many(CLIPPED, restored, mask, batches, MEAN, SCALE), whole)


def test_acting_parameters_do_on_raw_observations_what_the_actor_does_on_normalised_ones():
    state = lived_in_state(CLIPPED)
    mask = random_masks(state)
    batches = raw(random_batch(33, 5))
    state, acting, _ = sac.update_many(CLIPPED, sac.apply_masks(state, mask), mask, batches, MEAN, SCALE)
    observation = batches.observation[0]
    expected = mlp(state.actor, (observation - MEAN) * SCALE)
    np.testing.assert_allclose(mlp(acting, observation), expected, rtol=1e-4, atol=1e-5)
    for name, kept in mask["actor"].items():
        assert (np.asarray(acting[name])[~kept] == 0).all()
    assert {name: leaf.shape for name, leaf in acting.items()} == {
        name: leaf.shape for name, leaf in state.actor.items()
    }


def test_an_input_that_never_moved_folds_without_noise():
    actor = lived_in_state().actor
    observation = np.random.default_rng(40).normal(size=(50, OBSERVATIONS)).astype(np.float32)
    observation[:, 1] = 0.6
    mean, scale = observation.mean(0), np.float32([1, 1e3, 1])
    mean[1] = observation[0, 1]
    acting = fold_normalizer(actor, mean, scale)
    expected = mlp(actor, (observation - mean) * scale)
    # The fold subtracts 600 from 600 in float32: 600 * 6e-8 in each input of a unit.
    np.testing.assert_allclose(mlp(acting, observation), expected, atol=1e-3)


def test_acting_parameters_outlive_the_next_call_and_arguments_are_left_alone():
    state = lived_in_state(CLIPPED)
    mask = random_masks(state)
    batches, mean, scale = raw(random_batch(34, 5)), MEAN.copy(), SCALE.copy()
    given = jax.tree.map(np.array, (mask, batches, mean, scale))
    state, acting, metrics = sac.update_many(CLIPPED, state, mask, batches, mean, scale)
    kept = jax.tree.map(np.array, (acting, metrics))
    for _ in range(3):
        state, _, _ = sac.update_many(CLIPPED, state, mask, batches, mean, scale)
    assert_equal_trees((acting, metrics), kept)
    assert not np.array_equal(state.actor["bias_1"], acting["bias_1"])
    assert_equal_trees((mask, batches, mean, scale), given)


def test_a_population_of_states_is_updated_by_vmap():
    states = [lived_in_state(seed=seed) for seed in (1, 2, 3)]
    members = [random_masks(state, seed) for seed, state in enumerate(states)]
    batches = [random_batch(seed) for seed in (50, 51, 52)]
    stack = partial(jax.tree.map, lambda *leaves: jnp.stack(leaves))
    together, _ = fast_jit(jax.vmap(partial(update, CONFIG)))(
        stack(*states), stack(*members), stack(*batches)
    )
    for i, (state, mask, batch) in enumerate(zip(states, members, batches, strict=True)):
        alone, _ = jitted_update(CONFIG, state, mask, batch)
        assert_close_trees(jax.tree.map(lambda leaf, i=i: leaf[i], together), alone, rtol=1e-5)


# Masks.


def test_applying_masks_zeroes_weights_targets_and_moments_and_nothing_else():
    state = lived_in_state(CLIPPED)
    mask = random_masks(state)
    got = sac.apply_masks(state, mask)
    assert_pruned(got, mask)
    before, after = to_numpy(state), to_numpy(got)
    for kind, name in (("actor", "actor"), ("critic", "critic"), ("critic", "target_critic")):
        for leaf, value in after[name].items():
            kept = mask[kind].get(leaf, np.ones(value.shape, bool))
            assert np.array_equal(value[kept], before[name][leaf][kept])
    for kind in ("actor", "critic"):
        assert after["memory"][kind][0] == before["memory"][kind][0] > 0
        for got_moment, moment in zip(after["memory"][kind][1:], before["memory"][kind][1:], strict=True):
            for leaf, value in got_moment.items():
                kept = mask[kind].get(leaf, np.ones(value.shape, bool))
                assert np.array_equal(value[kept], moment[leaf][kept])
    for field in ("log_temperature", "seed", "updates"):
        assert_equal_trees(getattr(got, field), getattr(state, field))
    assert_equal_trees(got.optimizer["temperature"], state.optimizer["temperature"])


@pytest.mark.parametrize("density", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("config", [CONFIG, CLIPPED], ids=["plain", "clipped"])
def test_pruned_weights_stay_exactly_zero_after_every_update(config, density):
    state = lived_in_state(config)
    mask = random_masks(state, seed=1, density=density)
    # A leaf of its own: one critic's layer is cut off altogether.
    mask["critic"]["q1/kernel_1"][...] = False
    state = sac.apply_masks(state, mask)
    start = to_numpy(state)
    for step in range(25):
        state, metrics = jitted_update(config, state, mask, random_batch(60 + step))
        assert_pruned(state, mask)
        assert np.isfinite(list(metrics.values())).all()
    # What is kept does move: biases always, weights where there are any.
    after = to_numpy(state)
    for kind in ("actor", "critic"):
        assert (after[kind]["bias_2" if kind == "actor" else "q0/bias_2"] != 0).all()
        moved = {k: after[kind][k] - start[kind][k] for k in mask[kind]}
        assert (norm(moved) > 1e-3) == any(kept.any() for kept in mask[kind].values())


def test_pruned_weights_stay_exactly_zero_through_many_updates_in_one_call():
    state = lived_in_state(CLIPPED)
    mask = random_masks(state, seed=2, density=0.3)
    state = sac.apply_masks(state, mask)
    for call in range(8):
        state, _, _ = sac.update_many(CLIPPED, state, mask, raw(random_batch(90 + call, 5)), MEAN, SCALE)
        assert_pruned(state, mask)
    assert state.updates == 17 + 40


def test_an_update_heals_pruned_entries_that_were_not_zero():
    state = lived_in_state()
    mask = random_masks(state)
    got, _ = jitted_update(CONFIG, state, mask, random_batch(61))
    assert_pruned(got, mask)


def test_the_clipped_norm_counts_kept_gradients_only():
    config = dataclasses.replace(CONFIG, max_gradient_norm=50.0)
    state = lived_in_state(config)
    # The first input is pruned away, and its gradients would be by far the largest.
    mask = {kind: masks.full(getattr(state, kind)) for kind in ("actor", "critic")}
    for network, prefix in (("actor", ""), ("critic", "q0/"), ("critic", "q1/")):
        mask[network][f"{prefix}kernel_0"][0] = False
    batch = random_batch(62)
    batch.observation[:, 0] *= 1000
    state = sac.apply_masks(state, mask)
    expected, _, norms = reference_update(config, to_numpy(state), mask, as_dict(batch))
    for dense, kept in norms.values():
        assert kept < 40
        assert dense > 60
    got, _ = jitted_update(config, state, mask, batch)
    assert_close_trees(to_numpy(got), expected)
    # Nothing was clipped.
    plain, _, _ = reference_update(CONFIG, to_numpy(state), mask, as_dict(batch))
    assert_close_trees(to_numpy(got), plain)


def test_masks_that_keep_everything_and_empty_masks_change_nothing():
    state = lived_in_state()
    keep_all = {kind: masks.full(getattr(state, kind)) for kind in ("actor", "critic")}
    assert_equal_trees(sac.apply_masks(state, sac.DENSE), state)
    assert_equal_trees(sac.apply_masks(state, keep_all), state)
    dense = kept = state
    for step in range(3):
        batch = random_batch(70 + step)
        dense, _ = jitted_update(CONFIG, dense, sac.DENSE, batch)
        kept, _ = jitted_update(CONFIG, kept, keep_all, batch)
    assert_close_trees(kept, dense, rtol=1e-6, atol=1e-7)


def test_a_masked_run_equals_the_smaller_network_that_the_mask_leaves():
    """Cut whole hidden units: the update is that of networks built without them."""
    state = lived_in_state()
    mask = {kind: masks.full(getattr(state, kind)) for kind in ("actor", "critic")}
    gone = {"": [1, 3], "q0/": [0], "q1/": [2, 4]}
    for prefix, units in gone.items():
        network = mask["actor" if prefix == "" else "critic"]
        network[f"{prefix}kernel_0"][:, units] = False
        network[f"{prefix}kernel_1"][units] = False
    state = sac.apply_masks(state, mask)

    def smaller(tree):
        """Without the units; their biases feed nothing."""
        out = {}
        for name, leaf in tree.items():
            prefix, _, own = name.rpartition("/")
            units = gone[prefix + "/" if prefix else ""]
            axis = {"kernel_0": 1, "bias_0": 0, "kernel_1": 0}.get(own)
            out[name] = leaf if axis is None else np.delete(leaf, units, axis)
        return out

    def small_state(numpy):
        memory = {
            kind: (count, smaller(first), smaller(second))
            if kind != "temperature"
            else (count, first, second)
            for kind, (count, first, second) in numpy["memory"].items()
        }
        cut = {name: smaller(numpy[name]) for name in ("actor", "critic", "target_critic")}
        return {**numpy, **cut, "memory": memory}

    expected = small_state(to_numpy(state))
    for step in range(5):
        batch = random_batch(80 + step)
        state, _ = jitted_update(CONFIG, state, mask, batch)
        expected, _, _ = reference_update(CONFIG, expected, sac.DENSE, as_dict(batch))
    assert_close_trees(small_state(to_numpy(state)), expected, atol=1e-5)
