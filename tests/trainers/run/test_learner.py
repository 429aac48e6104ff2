"""The learner: what a block becomes, whose environments it knows, what is due."""

from fractions import Fraction

import jax
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support import tiny_env
from support.learners import ENVS, SPEC, filled, learner, some_block, stored
from support.training import assert_same, tiny_config

from engine.algorithms import base
from fastcollect.policies.mlp import MLPPolicy
from fastcollect.support.errors import ConfigError
from trainers.run.learner import Learner, make_algorithm


def test_a_block_is_stored_with_actions_in_the_unit_box():
    ends = ((3, 1.0, 1, False, False, -1), (9, 1.0, 1, False, False, -1))
    terminated = np.zeros((4, ENVS), bool)
    terminated[2, 1] = True  # row 9
    given = some_block(0, ends=ends, terminated=terminated)
    made = learner()
    made.learn_from(given)
    found = {name: np.swapaxes(value, 0, 1) for name, value in stored(made).items()}
    centre, half = (tiny_env.LOW + tiny_env.HIGH) / 2, (tiny_env.HIGH - tiny_env.LOW) / 2
    np.testing.assert_allclose(found["action"], (given.action - centre) / half, atol=1e-7)
    np.testing.assert_array_equal(found["observation"], given.observation[:-1])
    np.testing.assert_array_equal(found["reward"], given.reward.astype(np.float32))
    np.testing.assert_array_equal(found["terminated"], terminated)
    np.testing.assert_array_equal(found["ended"], given.truncated | terminated)
    state = made.replay.get_state()
    np.testing.assert_array_equal(state["newest"], given.observation[-1])
    assert (state["final_observation"] == -7).all()  # the true last observations
    assert len(state["final_observation"]) == 2
    batch = made.replay.batches(0, 0, 1, 500, 1)
    code = batch.observation[0, :, 0]
    for row, env in ((0, 3), (2, 1), (1, 0), (3, 2)):
        (same,) = np.nonzero(code == given.observation[row, env, 0])
        assert len(same)
        assert (batch.next_observation[0, same] == given.next_observation[row, env]).all()


def test_the_normaliser_counts_every_frame_once():
    made, frames = learner(), []
    for k in range(3):
        given = some_block(k, first_step=4 * k)
        frames.append(given.observation[:-1].reshape(-1, tiny_env.OBSERVATIONS))
        made.learn_from(given)
        assert made.state.normalizer.count == made.env_steps == 16 * (k + 1)
    seen = np.concatenate(frames).astype(np.float64)
    moments = made.state.normalizer
    np.testing.assert_allclose(moments.mean, seen.mean(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(moments.squares / moments.count, seen.var(0), rtol=1e-12)


@pytest.mark.parametrize(("first_step", "gap"), [(4, False), (0, True), (8, True)])
def test_what_does_not_follow_ends_what_came_before(first_step, gap):
    made = learner()
    made.learn_from(some_block(0))
    made.learn_from(some_block(1, first_step=first_step))
    ended = stored(made)["ended"]
    assert (ended[:, 3] == gap).all()
    assert not ended[:, [0, 1, 2, 4, 5, 6, 7]].any()


def test_a_replay_that_is_taken_over_is_not_continued():
    source = filled(updates=0, blocks=1)
    made = learner()
    made.set_replay(source.get_state(), "the source")
    made.learn_from(some_block(1, first_step=4))
    assert stored(made)["ended"][:, 3].all()
    assert made.env_steps == 16


# Environments that come later, or that another source has.


def test_a_learner_grows_when_environments_come_that_it_did_not_know():
    made = learner()
    for k in range(2):
        made.learn_from(some_block(k, first_step=4 * k))
    before = stored(made)
    made.learn_from(some_block(2, envs=range(4, 6)))
    made.learn_from(some_block(3, envs=range(8, 10)))  # and one that leaves some out
    made.learn_from(some_block(4, first_step=8))
    made.learn_from(some_block(5, first_step=4, envs=range(4, 6)))
    assert made.replay.written.tolist() == [12] * 4 + [8, 8, 0, 0, 4, 4]
    assert made.replay.added == made.env_steps == 4 * 12 + 2 * 8 + 2 * 4
    state = made.replay.get_state()
    np.testing.assert_array_equal(state["observation"][:48].reshape(4, 12, -1)[:, :8], before["observation"])
    given = np.swapaxes(some_block(3, envs=range(8, 10)).observation, 0, 1)
    np.testing.assert_array_equal(state["observation"][-8:], given[:, :-1].reshape(8, -1))
    assert not state["ended"].any()  # neither growth nor what came beside it broke a sequence
    made.update(4)
    again = learner()
    again.set_state(made.get_state(), "here")
    assert_same(again.get_state(), made.get_state())


def test_environments_of_which_the_replay_would_not_hold_a_block_each_are_refused():
    made = learner(replay__capacity=20, first_env=3)
    made.learn_from(some_block(0, envs=range(3, 7)))
    before = made.get_state()
    with pytest.raises(ConfigError, match=r"replay.capacity is 20; allowed: 6 environments .* = 24 and more"):
        made.learn_from(some_block(1, envs=range(7, 9)))
    assert_same(made.get_state(), before)
    made.learn_from(some_block(2, envs=range(7, 8)))  # five environments: four steps of each
    assert made.replay.written.tolist() == [4] * 5


def test_environments_are_counted_from_the_first_one_of_the_source():
    expected, made = filled(), learner(first_env=70)
    for k in range(3):
        made.learn_from(some_block(k, first_step=4 * k, envs=range(70, 74)))
    made.update(4)
    assert_same(made.get_state(), expected.get_state())
    made.learn_from(some_block(9, envs=range(74, 78)))
    assert made.replay.written.tolist() == [12] * 4 + [4] * 4


def test_environments_before_the_first_one_are_refused():
    made = learner(first_env=2)
    before = made.get_state()
    with pytest.raises(ValueError, match="environment 1; allowed: 2 and more"):
        made.learn_from(some_block(0, envs=range(1, 5)))
    assert_same(made.get_state(), before)


# What is due.


@settings(deadline=None, max_examples=300)
@given(
    st.integers(1, 10**5).map(lambda digits: Fraction(digits, 10**4)),
    st.integers(0, 10**7),
    st.integers(0, 10**5),
)
@example(Fraction(20058, 10**4), 10**7, 0)  # which floats get wrong
def test_what_is_due_is_the_floor_of_the_ratio(ratio, env_steps, start_steps):
    made = Learner.__new__(Learner)
    made.config = tiny_config(updates_per_step=float(ratio), start_steps=start_steps)
    made.state = base.AgentState(*[None] * 7, env_steps=np.int64(env_steps))
    expected = max(0, (env_steps - start_steps) * ratio // 1)
    for made.updates in {0, expected // 2, expected}:
        assert made.due() == expected - made.updates


def test_learning_rates_fall_on_a_line_from_the_first_update_to_the_last(monkeypatch):
    paces = []
    learn = base.learn
    monkeypatch.setattr(base, "learn", lambda *args: paces.append(args[3]) or learn(*args))
    made = filled(updates=0, final_learning_rate=0.2)  # 32 updates by the end
    for made.updates in (0, 8, 16, 32, 40):
        made.update(4)
    np.testing.assert_allclose(paces, [1, 0.8, 0.6, 0.2, 0.2], rtol=1e-6)


def test_an_actor_that_acts_at_random_ignores_what_it_sees():
    policy, made = MLPPolicy(SPEC, hidden=(8,)), learner()
    policy.load(made.algorithm.exploring(made.state))
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((4000, 2)).astype(np.float32)
    actions = np.zeros((2, 4000, 2), np.float32)
    for i, spread in enumerate((1.0, 1e4)):
        seen = (spread * rng.standard_normal((4000, tiny_env.OBSERVATIONS))).astype(np.float32)
        policy.act(seen, noise, actions[i], {})
    np.testing.assert_array_equal(*actions)
    unit = (actions[0] - [0, 1]) / 2
    assert np.abs(unit.mean(0)).max() < 0.03
    assert np.abs(unit.std(0) - 3**-0.5).max() < 0.02
    quarters = np.stack([np.histogram(unit[:, i], 4, (-1, 1))[0] for i in range(2)]) / len(unit)
    assert np.abs(quarters - 0.25).max() < 0.05


# Environments that it cannot learn.


def test_every_reason_to_refuse_an_environment_is_named():
    config = tiny_config(env="x")
    image_choice = tiny_env.spec(8, tiny_env.CHOICE, (4, 4, 3))
    with pytest.raises(ConfigError) as caught:
        make_algorithm(config, image_choice)
    discrete, image = caught.value.problems
    assert "x has 3 discrete actions" in discrete
    assert "(4, 4, 3)" in image
    with pytest.raises(ConfigError, match="x has unbounded actions"):
        make_algorithm(config, tiny_env.spec(8, tiny_env.FREE))
    structure = make_algorithm(config, SPEC).config
    assert (structure.observations, structure.actions) == (6, 2)


@pytest.mark.parametrize("storage", ["host", "device"])
def test_where_transitions_lie_makes_no_difference(storage):
    expected, made = filled(), filled(replay__storage=storage)
    assert_same(made.get_state(), expected.get_state())
    assert jax.tree.leaves(made.acting)[0].dtype == np.float32
