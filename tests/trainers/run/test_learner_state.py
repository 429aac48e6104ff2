"""A learner's state: what outlives its updates, how a saved one goes on, what is refused, its masks."""

import numpy as np
import pytest
from support import tiny_env
from support.learners import filled, learner, some_block
from support.training import assert_same

from engine.algorithms import base
from fastcollect.support.errors import ConfigError
from trainers.run.learner import Start, as_numpy
from trainers.store.layout import from_arrays, to_arrays


@pytest.mark.slow
def test_a_copied_state_outlives_later_updates():
    made = filled()
    kept = base.copied(made.state)
    before = to_arrays(kept)
    made.learn_from(some_block(9, first_step=12))
    made.update(4)
    assert_same(to_arrays(kept), before)
    after = to_arrays(made.state)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {name for name in before if name != "seed" and not name.startswith("masks/")}


def test_what_a_learner_starts_from_outlives_its_updates():
    state = base.copied(filled().state)
    before = to_arrays(state)
    masks, same = masks_of(state), masks_of(state)
    made = filled(updates=0)
    made.start_from(Start(masks, state))
    made.update(4)
    assert_same(to_arrays(state), before)
    for kind in masks:
        assert_same(masks[kind], same[kind])


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
    refreshed.start_from(Start(state=from_arrays(state, refreshed.state, "here")))
    assert not np.array_equal(refreshed.acting["kernel_0"], acting["kernel_0"])


def test_a_state_of_another_shape_is_refused_leaf_by_leaf():
    state = filled(updates=0, blocks=1).get_state()
    with pytest.raises(ConfigError) as caught:
        learner(algorithm__hidden=(5,)).set_state(state, "checkpoint 7")
    problems = caught.value.problems
    assert all(problem.startswith("checkpoint 7: ") for problem in problems)
    (one,) = [p for p in problems if "parameters/actor/kernel_0 " in p]
    assert "(6, 8)" in one
    assert "(6, 5)" in one
    assert any("optimizer/critic/nu/q1/kernel_1" in problem for problem in problems)


def test_a_start_of_another_environment_is_refused_leaf_by_leaf():
    state = base.copied(filled(updates=0, blocks=1).state)
    wider = learner(spec=tiny_env.spec(8, shape=(8,)))
    with pytest.raises(ConfigError) as caught:
        wider.start_from(Start(state=state))
    text = str(caught.value)
    for expected in ("actor/kernel_0", "(6, 8)", "(8, 8)", "critic/q1/kernel_0"):
        assert expected in text


def test_a_replay_of_more_environments_is_refused_and_of_fewer_or_more_steps_is_held():
    state = filled(updates=0, blocks=2).get_state()
    with pytest.raises(ConfigError, match=r"anchor: the replay does not fit.* 4 .* 2"):
        learner(collect__n=1).set_replay(state, "anchor")
    wider, shorter = learner(collect__n=4), learner(replay__capacity=20)
    wider.set_replay(state, "anchor")
    assert wider.replay.written.tolist() == [8] * 4 + [0] * 4
    shorter.set_replay(state, "anchor")
    newest = state["replay/reward"].reshape(4, 8)[:, 3:]
    np.testing.assert_array_equal(shorter.replay.get_state()["reward"].reshape(4, 5), newest)


def test_batches_for_saliency_depend_on_the_seed_and_change_nothing():
    made = filled()
    before = made.get_state()
    first = made.samples(5)
    assert_same(made.samples(5), first)
    assert_same(made.get_state(), before)
    assert {name: value.shape for name, value in first.items()} == {
        "observation": (5, 8, 6),
        "action": (5, 8, 2),
        "rewards": (5, 8, 1),
        "steps": (5, 8),
        "next_observation": (5, 8, 6),
        "terminated": (5, 8),
    }
    learned = made.replay.batches(3, 0, 5, 8, 1)
    assert not np.array_equal(learned.observation, first["observation"])
    assert not np.array_equal(filled(seed=4, updates=0).samples(5)["observation"], first["observation"])


def test_batches_for_saliency_are_those_of_updates_after_the_delay():
    window = {"algorithm__n_step": 3, "algorithm__entropy_of_steps": True, "algorithm__n_step_delay": 10**6}
    made = filled(updates=0, **window)
    found = made.samples(5)
    assert (found["between"].shape, found["rewards"].shape) == ((5, 8, 2, 6), (5, 8, 3))
    assert set(np.unique(found["steps"])) == {1, 2, 3}  # shorter ones at the newest steps
    # Of the updates themselves, both of one dispatch that the delay ends in.
    around = made._batches(10**6 - 1, 2)
    assert np.unique(around.steps[0]).tolist() == [1]
    assert around.steps[1].max() == 3


# Masks.


def masks_of(state, seed=0):
    rng = np.random.default_rng(seed)
    return {
        kind: {name: rng.random(leaf.shape) < 0.5 for name, leaf in tree.items() if "kernel" in name}
        for kind, tree in state.parameters.items()
        if kind in state.masks
    }


def pruned_parts(state, masks):
    """(name, pruned entries of it) for every part that a mask holds for."""
    arrays = to_arrays(state)
    places = {
        "actor": ("parameters/actor", "optimizer/actor/mu", "optimizer/actor/nu"),
        "critic": (
            *("parameters/critic", "targets/critic"),
            *("optimizer/critic/mu", "optimizer/critic/nu"),
        ),
    }
    for kind, parts in places.items():
        for part in parts:
            for leaf, kept in masks[kind].items():
                yield f"{part}/{leaf}", arrays[f"{part}/{leaf}"][~kept]


def test_masks_hold_from_the_start_and_after_updates():
    dense = base.copied(filled(updates=4).state)
    masks = masks_of(dense)
    assert all(entries.any() for _, entries in pruned_parts(dense, masks))
    made = filled(masks, updates=0)
    made.start_from(Start(masks, dense))
    for _ in range(2):
        for name, entries in pruned_parts(made.state, masks):
            assert not entries.any(), name
            assert not np.signbit(entries).any(), name
        made.check_masks()
        made.update(4)
    for leaf in ("bias_0", "bias_1"):
        assert np.asarray(made.state.parameters["actor"][leaf]).all()


def test_a_start_without_masks_keeps_everything_whatever_its_state_was_pruned_by():
    pruned = base.copied(filled(masks_of(learner().state)).state)
    made = learner()
    made.start_from(Start(state=pruned))
    assert base.densities(made.state) == {"actor": 1.0, "critic": 1.0}
    assert made.pruned == ()


def test_masks_travel_with_a_saved_learner():
    masks = masks_of(learner().state)
    state = {name: np.array(value) for name, value in filled(masks).get_state().items()}
    made = learner()
    made.set_state(state, "here")
    found = {
        kind: {leaf: np.asarray(m) for leaf, m in mask.items()} for kind, mask in made.state.masks.items()
    }
    for kind, mask in masks.items():
        assert_same(found[kind], mask)
    made.update(4)
    assert not any(entries.any() for _, entries in pruned_parts(made.state, masks))


@pytest.mark.parametrize(
    ("part", "leaf"),
    [
        ("parameters/actor", "kernel_0"),
        ("parameters/critic", "q1/kernel_0"),
        ("targets/critic", "q1/kernel_0"),
        ("optimizer/actor/mu", "kernel_0"),
        ("optimizer/actor/nu", "kernel_0"),
    ],
)
@pytest.mark.parametrize("value", [1e-38, np.nan])
def test_a_pruned_entry_that_is_not_zero_is_found(part, leaf, value):
    masks = masks_of(learner().state)
    made = learner(masks)
    made.check_masks()
    arrays = {name: np.array(array) for name, array in to_arrays(made.state).items()}
    kept = masks["critic" if "critic" in part else "actor"][leaf]
    arrays[f"{part}/{leaf}"][tuple(np.argwhere(~kept)[0])] = value
    made.state = from_arrays(arrays, made.state, "here")
    *_, last = part.split("/")
    with pytest.raises(AssertionError, match=rf"pruned entries of .*{last}.*{leaf}.* are not zero"):
        made.check_masks()
