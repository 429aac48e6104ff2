"""The learner: what a block becomes, what is due, and that a saved one goes on as if nothing had happened."""

from fractions import Fraction

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tiny_env
from support.blocks import block
from support.training import assert_same, tiny_config

from engine.algorithms import sac
from fastcollect.policies.mlp import MLPPolicy
from fastcollect.support.errors import ConfigError
from trainers.run.learner import Learner, as_numpy, check_spec
from trainers.store.states import from_arrays, to_arrays

SPEC = tiny_env.spec(8)
ENVS = 4


def learner(masks=sac.DENSE, spec=SPEC, **changes):
    made = Learner(tiny_config(**changes), spec, masks)
    made.refresh_acting()
    return made


def some_block(seed, first_step=0, steps=4, **kwargs):
    rng = np.random.default_rng(seed)
    observation = rng.normal(size=(steps + 1, ENVS, tiny_env.OBSERVATIONS)).astype(np.float32)
    action = rng.uniform(tiny_env.LOW, tiny_env.HIGH, (steps, ENVS, 2)).astype(np.float32)
    reward = rng.normal(size=(steps, ENVS))
    return block(observation, action, first_step=first_step, reward=reward, **kwargs)


def filled(masks=sac.DENSE, blocks=3, updates=4, **changes):
    made = learner(masks, **changes)
    for k in range(blocks):
        made.learn_from(some_block(k, first_step=4 * k))
    if updates:
        made.update(updates)
    return made


def test_a_block_is_stored_with_actions_in_the_unit_box():
    ends = ((3, 1.0, 1, False, False, -1), (9, 1.0, 1, False, False, -1))
    terminated = np.zeros((4, ENVS), bool)
    terminated[2, 1] = True  # row 9
    given = some_block(0, ends=ends, terminated=terminated)
    made = learner()
    made.learn_from(given)
    state = made.replay.get_state()

    def stored(name):
        return np.swapaxes(state[name].reshape(ENVS, 4, *state[name].shape[1:]), 0, 1)

    centre, half = (tiny_env.LOW + tiny_env.HIGH) / 2, (tiny_env.HIGH - tiny_env.LOW) / 2
    np.testing.assert_allclose(stored("action"), (given.action - centre) / half, atol=1e-7)
    np.testing.assert_array_equal(stored("observation"), given.observation[:-1])
    np.testing.assert_array_equal(stored("next_observation"), given.next_observation)
    assert (stored("next_observation")[0, 3] == -7).all()  # the true last observation
    np.testing.assert_array_equal(stored("reward"), given.reward.astype(np.float32))
    np.testing.assert_array_equal(stored("terminated"), terminated)
    np.testing.assert_array_equal(stored("ended"), given.truncated | terminated)


def test_the_normaliser_counts_every_frame_once():
    made, frames = learner(), []
    for k in range(3):
        given = some_block(k, first_step=4 * k)
        frames.append(given.observation[:-1].reshape(-1, tiny_env.OBSERVATIONS))
        made.learn_from(given)
        assert made.moments.count == made.env_steps == 16 * (k + 1)
    seen = np.concatenate(frames).astype(np.float64)
    np.testing.assert_allclose(made.moments.mean, seen.mean(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(made.moments.squares / made.moments.count, seen.var(0), rtol=1e-12)


@pytest.mark.parametrize(("first_step", "gap"), [(4, False), (0, True), (8, True)])
def test_what_does_not_follow_ends_what_came_before(first_step, gap):
    made = learner()
    made.learn_from(some_block(0))
    made.learn_from(some_block(1, first_step=first_step))
    ended = made.replay.get_state()["ended"].reshape(ENVS, 8)
    assert (ended[:, 3] == gap).all()
    assert not ended[:, [0, 1, 2, 4, 5, 6, 7]].any()


def test_a_replay_that_is_taken_over_is_not_continued():
    source = filled(updates=0, blocks=1)
    made = learner()
    made.set_replay(source.get_state(), "the source")
    made.learn_from(some_block(1, first_step=4))
    assert made.replay.get_state()["ended"].reshape(ENVS, 8)[:, 3].all()
    assert made.env_steps == 16


@settings(deadline=None, max_examples=300)
@given(
    st.integers(1, 10**5).map(lambda digits: Fraction(digits, 10**4)),
    st.integers(0, 10**7),
    st.integers(0, 10**5),
)
def test_what_is_due_is_the_floor_of_the_ratio(ratio, env_steps, start_steps):
    made = Learner.__new__(Learner)
    made.config = tiny_config(updates_per_step=float(ratio), start_steps=start_steps)
    made.env_steps = env_steps
    expected = max(0, (env_steps - start_steps) * ratio // 1)
    for made.updates in {0, expected // 2, expected}:
        assert made.due() == expected - made.updates


def test_learning_rates_fall_on_a_line_from_the_first_update_to_the_last(monkeypatch):
    paces = []
    update_many = sac.update_many
    monkeypatch.setattr(sac, "update_many", lambda *args: paces.append(args[-1]) or update_many(*args))
    made = filled(updates=0, final_learning_rate=0.2)  # 32 updates by the end
    for made.updates in (0, 8, 16, 32, 40):
        made.update(4)
    np.testing.assert_allclose(paces, [1, 0.8, 0.6, 0.2, 0.2], rtol=1e-6)


def test_an_actor_that_acts_at_random_ignores_what_it_sees():
    policy = MLPPolicy(SPEC, hidden=(8,))
    policy.load(learner().random_actor())
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


# Snapshots and states.


def test_a_snapshot_outlives_later_updates():
    made = filled()
    snapshot = made.snapshot()
    before = to_arrays(snapshot)
    made.learn_from(some_block(9, first_step=12))
    made.update(4)
    assert_same(to_arrays(snapshot), before)
    after = to_arrays(made.snapshot())
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == before.keys() - {"sac/seed"}


def test_what_a_learner_starts_from_outlives_its_updates():
    snapshot = filled().snapshot()
    before = to_arrays(snapshot)
    made = filled(updates=0)
    made.start_from(snapshot)
    made.update(4)
    assert_same(to_arrays(snapshot), before)


def test_a_saved_learner_goes_on_as_if_nothing_had_happened():
    made = filled()
    made.learn_from(some_block(3, first_step=12))  # the normaliser is ahead of what acts
    acting = as_numpy(made.acting)
    state = {name: np.array(value) for name, value in made.get_state().items()}
    other = learner(seed=3)
    other.set_state(state, "here")
    assert_same(as_numpy(other.acting), acting)
    assert_same(other.get_state(), state)
    for each in (made, other):
        each.learn_from(some_block(4, first_step=16))
        each.update(4)
    assert_same(other.get_state(), made.get_state())
    assert not made.replay.get_state()["ended"].any()
    refreshed = learner()
    refreshed.start_from(from_arrays(state, refreshed.state, "here"))
    assert not np.array_equal(refreshed.acting["kernel_0"], acting["kernel_0"])


def test_a_state_of_another_shape_is_refused_leaf_by_leaf():
    state = filled(updates=0, blocks=1).get_state()
    with pytest.raises(ConfigError) as caught:
        learner(algorithm__hidden=(5,)).set_state(state, "checkpoint 7")
    problems = caught.value.problems
    assert all(problem.startswith("checkpoint 7: ") for problem in problems)
    (one,) = [p for p in problems if "sac/actor/kernel_0 " in p]
    assert "(6, 8)" in one
    assert "(6, 5)" in one
    assert any("sac/optimizer/critic/0/nu/q1/kernel_1" in problem for problem in problems)


def test_a_start_of_another_environment_is_refused_leaf_by_leaf():
    snapshot = filled(updates=0, blocks=1).snapshot()
    wider = learner(spec=tiny_env.spec(8, shape=(8,)))
    with pytest.raises(ConfigError) as caught:
        wider.start_from(snapshot)
    text = str(caught.value)
    for expected in ("actor/kernel_0", "(6, 8)", "(8, 8)", "critic/q1/kernel_0"):
        assert expected in text


def test_a_replay_of_other_environments_is_refused():
    state = filled(updates=0, blocks=1).get_state()
    with pytest.raises(ConfigError, match=r"anchor: the replay does not fit.* 4 .* 8"):
        learner(collect__n=4).set_replay(state, "anchor")
    with pytest.raises(ConfigError, match="anchor: the replay does not fit"):
        learner(replay__capacity=8).set_replay(state, "anchor")


def test_batches_for_saliency_depend_on_the_seed_and_change_nothing():
    made = filled()
    before = made.get_state()
    first = made.samples(5)
    assert_same(made.samples(5), first)
    assert_same(made.get_state(), before)
    assert {name: value.shape for name, value in first.items()} == {
        "observation": (5, 8, 6),
        "action": (5, 8, 2),
        "reward": (5, 8),
        "next_observation": (5, 8, 6),
        "bootstrap": (5, 8),
    }
    learned = made.replay.batches(3, 0, 5, 8, 0.97, 1)
    assert not np.array_equal(learned.observation, first["observation"])
    assert not np.array_equal(filled(seed=4, updates=0).samples(5)["observation"], first["observation"])


# Masks.


def masks_of(state, seed=0):
    rng = np.random.default_rng(seed)
    return {
        kind: {
            name: rng.random(leaf.shape) < 0.5
            for name, leaf in getattr(state, kind).items()
            if "kernel" in name
        }
        for kind in ("actor", "critic")
    }


def pruned_parts(state, masks):
    """(name, pruned entries of it) for every part that a mask holds for."""
    adam = {kind: state.optimizer[kind][0] for kind in masks}
    parts = {
        "actor": (state.actor, "actor"),
        "critic": (state.critic, "critic"),
        "target": (state.target_critic, "critic"),
        **{f"{kind} {name}": (getattr(adam[kind], name), kind) for kind in masks for name in ("mu", "nu")},
    }
    for name, (tree, kind) in parts.items():
        for leaf, kept in masks[kind].items():
            yield f"{name} {leaf}", np.asarray(tree[leaf])[~kept]


def test_masks_hold_from_the_start_and_after_updates():
    dense = filled(updates=4).snapshot()
    masks = masks_of(dense.state)
    assert all(entries.any() for _, entries in pruned_parts(dense.state, masks))
    made = filled(masks, updates=0)
    made.start_from(dense)
    for _ in range(2):
        for name, entries in pruned_parts(made.state, masks):
            assert not entries.any(), name
            assert not np.signbit(entries).any(), name
        made.check_masks()
        made.update(4)
    for leaf in ("bias_0", "bias_1"):
        assert np.asarray(made.state.actor[leaf]).all()


@pytest.mark.parametrize("part", ["actor", "critic", "target_critic", "mu", "nu"])
@pytest.mark.parametrize("value", [1e-38, np.nan])
def test_a_pruned_entry_that_is_not_zero_is_found(part, value):
    made = learner()
    masks = masks_of(made.state)
    made = learner(masks)
    made.start_from(made.snapshot())
    made.check_masks()
    leaf = "q1/kernel_0" if "critic" in part else "kernel_0"
    kind = "critic" if "critic" in part else "actor"
    spot = tuple(np.argwhere(~masks[kind][leaf])[0])
    if part in ("mu", "nu"):
        adam = made.state.optimizer["actor"]
        moments = getattr(adam[0], part)
        moments = {**moments, leaf: moments[leaf].at[spot].set(value)}
        optimizer = {**made.state.optimizer, "actor": (adam[0]._replace(**{part: moments}), *adam[1:])}
        made.state = made.state.replace(optimizer=optimizer)
    else:
        tree = getattr(made.state, part)
        made.state = made.state.replace(**{part: {**tree, leaf: tree[leaf].at[spot].set(value)}})
    with pytest.raises(AssertionError, match=rf"pruned entries of .*{part}.*{leaf}.* are not zero"):
        made.check_masks()


# Environments that it cannot learn.


def test_every_reason_to_refuse_an_environment_is_named():
    image_choice = tiny_env.spec(8, tiny_env.CHOICE, (4, 4, 3))
    with pytest.raises(ConfigError) as caught:
        check_spec("x", image_choice)
    discrete, image = caught.value.problems
    assert "x has 3 discrete actions" in discrete
    assert "(4, 4, 3)" in image
    with pytest.raises(ConfigError, match="unbounded actions"):
        check_spec("x", tiny_env.spec(8, tiny_env.FREE))
    assert check_spec("x", SPEC) == (6, 2)


@pytest.mark.parametrize("storage", ["host", "device"])
def test_where_transitions_lie_makes_no_difference(storage):
    expected, made = filled(), filled(replay__storage=storage)
    assert_same(made.get_state(), expected.get_state())
    assert jax.tree.leaves(made.acting)[0].dtype == np.float32
