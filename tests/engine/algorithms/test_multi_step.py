"""Multi-step targets through the replay, against the published recurrence in NumPy and float64."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support import sac_reference as reference
from support.agents import (
    ACTIONS,
    CONFIG,
    FLOOR,
    as_dict,
    assert_close_trees,
    in_float64,
    make,
    to_numpy,
)
from support.sac_reference import PREFIXES, layers, squashed
from support.transitions import Stream, drawn, observations, random_add, random_adds, replay_of, rewards

from engine.algorithms import base
from engine.normalizer import Moments

ROWS, N_STEP, SEED, UPDATE = 32, 4, 5, 40
GAMMA, SCALE, WARMTH = CONFIG.discount, 0.01, 3.0
"""Rewards are numbers up to some hundreds: they and the entropies weigh about the same."""
NORMALIZER = Moments(9, np.array([60.0, 50.0, 70.0]), 9 * (np.array([40.0, 30.0, 50.0]) ** 2))
MEAN, FACTOR = NORMALIZER.scaling(FLOOR)
LONG = dataclasses.replace(CONFIG, n_step=N_STEP, reward_scale=SCALE, initial_temperature=WARMTH)


ALGORITHMS = {each: make(dataclasses.replace(LONG, entropy_of_steps=each)) for each in (False, True)}
STATE = ALGORITHMS[True].init(1)
NUMPY = to_numpy(STATE)


@jax.jit
def compiled(algorithm, state, batches, noise):
    """(K, batch) targets of raw batches."""
    samples = algorithm.prepare(batches, MEAN, FACTOR)
    return jax.vmap(lambda sample: algorithm._targets(state, sample, noise))(samples)


def normalised(number):
    return (observations(number).astype(np.float64) - np.float64(MEAN)) * np.float64(FACTOR)


def policy(number, noise):
    """(action, its log probability) at the observation of this number."""
    action, log_prob, _ = squashed(layers(NUMPY["actor"], normalised(number)[None])[0], noise)
    return action, log_prob[0]


def value(number, action):
    """The lower target critic's."""
    x = np.concatenate([normalised(number)[None], action], 1)
    return min(layers(NUMPY["target_critic"], x, prefix)[0][0, 0] for prefix in PREFIXES)


def published(held, age, n, noise, on_the_way):
    """y of the transition of this age, of a list from the oldest on; noise: of a'_k for each k.

    on_the_way: whether -alpha log pi is added at every step; otherwise where the sum is bootstrapped from.
    """
    # G, N and R of the recurrence.
    total, alive, unreset, m, action, soft = 0.0, 1.0, 1.0, 0, None, 0.0
    for k in range(n):
        there = held[age + k] if age + k < len(held) else None  # beyond the newest, after R became 0
        if there is not None:
            total += unreset * alive * GAMMA**k * SCALE * float(rewards(there.number))
            alive *= max(1 - there.terminated, 1 - unreset)
            drawn_action, log_prob = policy(there.following, noise[k])
            entropy = unreset * alive * GAMMA ** (k + 1) * -WARMTH * log_prob
            total += entropy if on_the_way else 0
            if unreset * alive == 1:
                action, soft = drawn_action, 0 if on_the_way else entropy
        newest = age + k + 1 == len(held)
        if k < n - 1:
            # A step that none continues, be it by a time limit, a gap or as the newest, is a reset.
            unreset *= 1 - (newest or there is None or (there.ended and not there.terminated))
            m += int(unreset)
    return total + soft + GAMMA ** (m + 1) * value(held[age + m].following, action) if alive else total


def noise_of(steps, seed=7):
    """(2 + n - 1, batch, a) of an update, and for each row that of a'_k in the order of k.

    The one that is bootstrapped with has the first numbers, whichever k it is; those between the last ones.
    """
    noise = np.random.default_rng(seed).standard_normal((2 + N_STEP - 1, ROWS, ACTIONS), np.float32)
    in_turn = np.repeat(noise[:1].astype(np.float64), N_STEP, 0)
    for row, count in enumerate(steps):
        in_turn[: count - 1, row] = noise[2 : count + 1, row]
    return noise, in_turn[:, :, None]


def check(stream, replay, delay):
    """The targets of two updates in one dispatch, whose numbers lie around the delay."""
    for on_the_way, algorithm in ALGORITHMS.items():
        batches = replay.batches(SEED, UPDATE, 2, ROWS, N_STEP, delay, on_the_way)
        # The noise is that of the first update, for both.
        noise, _ = noise_of([])
        got = np.asarray(compiled(algorithm, STATE.replace(normalizer=None, env_steps=None), batches, noise))
        for k in range(2):
            _, in_turn = noise_of(np.asarray(batches.steps[k]))
            n = N_STEP if UPDATE + k >= delay else 1
            expected = [
                published(stream.held[env], age, n, in_turn[:, row], on_the_way)
                for row, (env, age) in enumerate(drawn(stream, SEED, UPDATE + k, ROWS))
            ]
            np.testing.assert_allclose(got[k], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("storage", "capacity", "longest", "examples"),
    # Each shape that the device writes is compiled.
    [("host", 24, 8, 20), pytest.param("device", 10, 2, 4, marks=pytest.mark.slow)],
)
def test_targets_through_the_replay_are_the_published_recurrence(storage, capacity, longest, examples):
    """Through terminations, time limits, gaps, wrap-around and drops; before, around and after the delay."""

    @settings(deadline=None, max_examples=examples, suppress_health_check=list(HealthCheck))
    @example(seed=0, ends=0.15, drops=2, delay=UPDATE + 1)
    @given(
        seed=st.integers(0, 2**32 - 1),
        ends=st.sampled_from([0, 0.15, 0.5]),
        drops=st.integers(0, 5),
        delay=st.integers(UPDATE - 1, UPDATE + 2),
    )
    def run(seed, ends, drops, delay):
        stream, rng = Stream(2, seed, ends), np.random.default_rng(seed)
        replay = replay_of(stream, capacity, storage)
        for _ in range(7):
            random_add(replay, stream, rng, longest)
            count = int(rng.integers(drops + 1))
            replay.shrink(count)
            stream.drop(count)
        if len(replay):
            check(stream, replay, delay)

    run()
    # One program before, around and after the delay; where batches lie may make another one.
    assert compiled._cache_size() <= len(ALGORITHMS) * 2


def test_a_single_step_has_nothing_between():
    plain, counted = (dataclasses.replace(CONFIG, entropy_of_steps=each) for each in (False, True))
    assert not counted.observations_between
    assert make(counted).config == make(plain).config
    assert ALGORITHMS[True].between == N_STEP - 1
    assert ALGORITHMS[False].between == 0


@pytest.mark.slow
def test_updates_and_gradients_follow_the_same_targets():
    """A step of gradient descent by hand, of the critic, from the targets that the recurrence gives."""
    stream = Stream(2, 3, 0.15)
    replay = replay_of(stream, 24)
    random_adds(replay, stream, 3, calls=5)
    algorithm, before = ALGORITHMS[True], base.copied(STATE.replace(normalizer=NORMALIZER))
    batches = replay.batches(SEED, UPDATE, 1, ROWS, N_STEP, 0, True)
    noise = jax.tree.map(lambda leaf: leaf[0], base.noises(algorithm, before, 1, batches.action.shape[1:]))
    sample = jax.tree.map(lambda leaf: leaf[0], algorithm.prepare(batches, MEAN, FACTOR))
    goal = np.asarray(compiled(algorithm, STATE, batches, noise))[0]
    loss, _, gradients = reference.critic(NUMPY["critic"], as_dict(sample), goal.astype(np.float64))
    assert_close_trees(in_float64(jax.jit(algorithm.gradients)(before, sample, noise)["critic"]), gradients)
    _, _, metrics = base.learn(algorithm, before, batches)
    np.testing.assert_allclose(metrics["critic_loss"], loss, rtol=1e-4)


def test_operations_count_a_pass_of_the_actor_for_each_observation_between():
    plain, counted = (ALGORITHMS[each].flops(STATE) for each in (False, True))
    more = counted["update"]["dense"] - plain["update"]["dense"]
    assert more == CONFIG.batch_size * (N_STEP - 1) * plain["forward"]["dense"]
