"""Inputs that never change: found, pruned first, and counted by no scope and no random mask."""

import itertools

import numpy as np
import pytest

from engine.sparse import masks, pruning

ACTOR = {"kernel_0": (7, 12), "kernel_1": (12, 12), "kernel_2": (12, 6)}
CRITIC = {
    f"{q}/{name}": shape for q in ("q0", "q1") for name, shape in {**ACTOR, "kernel_2": (12, 1)}.items()
}
PUBLISHED = pruning.schedule(0.8, 0.33)


def scores_of(criterion, shapes):
    rng = np.random.default_rng(0)
    weights, slopes = ({name: rng.standard_normal(s) for name, s in shapes.items()} for _ in range(2))
    return pruning.scores(criterion, weights, gradients=slopes)


def test_live_inputs_are_those_that_changed_and_all_actions():
    constant = np.array([False, True, True, False])
    actor = {"kernel_0": np.zeros((4, 3)), "bias_0": np.zeros(3), "kernel_1": np.zeros((3, 2))}
    critic = {f"q{i}/{name}": np.zeros((6, 3)) for i in (0, 1) for name in ("kernel_0", "kernel_1")}
    assert {k: v.tolist() for k, v in masks.live_inputs(actor, constant).items()} == {
        "kernel_0": [True, False, False, True]
    }
    found = masks.live_inputs(critic, constant)
    assert list(found) == ["q0/kernel_0", "q1/kernel_0"]
    assert all(each.tolist() == [True, False, False, True, True, True] for each in found.values())


def test_a_random_mask_among_live_inputs_keeps_none_of_the_others_and_is_uniform_there():
    live = {"kernel_0": np.array([True, False, True])}
    mask = {"kernel_0": np.array([[1, 1], [0, 0], [0, 1]], bool), "kernel_1": np.array([[1, 0]], bool)}
    rng = np.random.default_rng(0)
    draws = [masks.random_like(rng, mask, live) for _ in range(2000)]
    assert all(masks.counts(draw) == masks.counts(mask) for draw in draws)
    mean = np.mean([draw["kernel_0"] for draw in draws], 0)
    np.testing.assert_allclose(mean, [[0.75, 0.75], [0, 0], [0.75, 0.75]], atol=0.05)
    every = {"kernel_0": np.ones(3, bool)}
    same = [masks.random_like(np.random.default_rng(5), mask, each) for each in (None, every)]
    assert all(np.array_equal(same[0][name], same[1][name]) for name in mask)


@pytest.mark.parametrize("scope", pruning.SCOPES)
def test_weights_of_inputs_that_are_not_live_go_first_and_do_not_count(scope):
    rows = {f"q{i}/kernel_0": np.array([True, False, True, True, False, False, True]) for i in (0, 1)}
    scores = scores_of("magnitude", CRITIC)
    for name in rows:
        scores[name][~rows[name]] += 100  # worth most, and still the first to go
    live = {
        name: np.ones(shape, bool) & rows.get(name, np.ones(shape[0], bool))[:, None]
        for name, shape in CRITIC.items()
    }
    size, mask = sum(int(each.sum()) for each in live.values()), {}
    assert size == 2 * (4 * 12 + 12 * 12 + 12)
    for sparsity in (0, *PUBLISHED):
        before, mask = mask, pruning.prune(mask, scores, sparsity, scope, live=rows)
        kept, total = masks.counts(mask)
        assert total == size - round(sparsity * size)
        assert all(not (mask[name] & ~live[name]).any() for name in mask)
        assert masks.nested(mask, before)
        groups = [list(mask)] if scope == "global" else [[name] for name in mask]
        for group in groups:
            stayed = np.concatenate([scores[name][mask[name]] for name in group])
            went = np.concatenate([scores[name][live[name] & ~mask[name]] for name in group])
            assert stayed.min() >= went.max(initial=0)
    weights = {name: sum(shape) - 3 * (name in rows) for name, shape in CRITIC.items()}
    if scope == "layer":
        weights = {name: int(each.sum()) for name, each in live.items()}
    if scope != "global":
        # The last layers are full or near it; the others share in proportion.
        pairs = itertools.pairwise(name for name in CRITIC if "kernel_2" not in name)
        for a, b in pairs:
            assert abs(kept[a] - kept[b] * weights[a] / weights[b]) < 3


def test_without_such_inputs_the_bits_are_the_same():
    scores = scores_of("taylor", ACTOR)
    plain = pruning.prune({}, scores, 0.6, "erk")
    every = pruning.prune({}, scores, 0.6, "erk", live={"kernel_0": np.ones(7, bool)})
    assert all(np.array_equal(plain[name], every[name]) for name in ACTOR)
    with pytest.raises(ValueError, match="does not match"):
        pruning.prune(
            {"kernel_0": np.ones((7, 12), bool)}, scores, 0.6, "erk", live={"kernel_0": np.ones(7, bool)}
        )
