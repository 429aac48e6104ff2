"""Pruning: exact counts of every criterion and scope, ties, nesting, guards; against plain Python."""

import itertools
import math
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.sparse import masks, pruning

ACTOR = {"kernel_0": (7, 12), "kernel_1": (12, 12), "kernel_2": (12, 6)}
CRITIC = {
    f"{q}/{name}": shape for q in ("q0", "q1") for name, shape in {**ACTOR, "kernel_2": (12, 1)}.items()
}
PUBLISHED = pruning.schedule(0.8, 0.33)


def normal(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def constant(shapes, value=1.0):
    return {name: np.full(shape, value) for name, shape in shapes.items()}


def scores_of(criterion, shapes, seed=0):
    rng = np.random.default_rng(seed)
    return pruning.scores(criterion, normal(shapes, seed), gradients=normal(shapes, seed + 1), rng=rng)


def test_the_schedule_published_and_at_its_ends():
    assert [round(sparsity, 4) for sparsity in PUBLISHED] == [0.33, 0.5511, 0.6992, 0.7985, 0.8]
    assert pruning.schedule(0, 0.2) == []
    assert pruning.schedule(0.8, 1) == [0.8]


@pytest.mark.parametrize("rate", [0.05, 0.2, 0.33, 0.9])
@pytest.mark.parametrize("target", [0.01, 0.5, 0.8, 0.99])
def test_each_round_prunes_the_rate_of_what_is_left(target, rate):
    rounds = pruning.schedule(target, rate)
    assert rounds[-1] == target
    for n, sparsity in enumerate(rounds[:-1], start=1):
        assert sparsity == pytest.approx(1 - (1 - rate) ** n)
        assert sparsity < target
    assert 1 - (1 - rate) ** len(rounds) >= target - 1e-9


@pytest.mark.parametrize("rounds", range(1, 30))
def test_a_target_that_the_recurrence_reaches_costs_no_round_more(rounds):
    assert len(pruning.schedule(1 - 0.8**rounds, 0.2)) == rounds


@pytest.mark.parametrize("bad", [-0.1, 0, 1, 1.5, math.nan])
def test_shares_outside_their_intervals_are_refused(bad):
    if bad != 1:
        with pytest.raises(ValueError, match=rf"rate is {bad}, must be in \(0, 1\]"):
            pruning.schedule(0.8, bad)
    if bad != 0:
        with pytest.raises(ValueError, match=rf"target is {bad}, must be in \[0, 1\)"):
            pruning.schedule(bad, 0.2)
        with pytest.raises(ValueError, match=rf"sparsity is {bad}, must be in \[0, 1\)"):
            pruning.prune({}, constant(ACTOR), bad, "global", min_kept=0)


def test_the_criteria_by_hand():
    tiny = {"kernel_0": np.full((1, 1), 1e-30, np.float32)}
    assert pruning.scores("taylor", tiny, gradients=tiny)["kernel_0"] > 0, "no underflow in float32"
    parameters = {"kernel_0": np.array([[2, -3]], np.float32), "bias_0": np.ones(2, np.float32)}
    gradients = {"kernel_0": np.array([[-0.5, 0.25]], np.float32), "bias_0": np.ones(2, np.float32)}
    expected = {"magnitude": [[2, 3]], "taylor": [[1, 0.75]], "gradient": [[0.5, 0.25]]}
    for criterion, values in expected.items():
        for convert in (np.asarray, jnp.asarray):
            got = pruning.scores(
                criterion,
                {name: convert(leaf) for name, leaf in parameters.items()},
                gradients={name: convert(leaf) for name, leaf in gradients.items()},
            )
            assert list(got) == ["kernel_0"]
            assert got["kernel_0"].tolist() == values
            assert got["kernel_0"].dtype == np.float64


def test_random_scores_come_from_the_generator_only():
    def draw(seed, parameters):
        return pruning.scores("random", parameters, rng=np.random.default_rng(seed))

    one, other = draw(1, normal(ACTOR)), draw(2, normal(ACTOR))
    same = draw(1, dict(reversed(normal(ACTOR, 5).items())))
    for name, shape in ACTOR.items():
        assert one[name].shape == shape
        assert (one[name] == same[name]).all()
        assert (one[name] != other[name]).any()


def test_a_criterion_refuses_to_do_without_its_input():
    parameters = normal(ACTOR)
    with pytest.raises(ValueError, match="criterion is 'fisher', must be one of magnitude, taylor, "):
        pruning.scores("fisher", parameters)
    with pytest.raises(ValueError, match="'random' needs rng"):
        pruning.scores("random", parameters)
    for criterion in ("taylor", "gradient"):
        with pytest.raises(ValueError, match=f"'{criterion}' needs gradients"):
            pruning.scores(criterion, parameters)
        gradients = {"kernel_0": np.ones((7, 1)), "kernel_1": parameters["kernel_1"]}
        with pytest.raises(ValueError, match="do not match") as error:
            pruning.scores(criterion, parameters, gradients=gradients)
        assert "kernel_0: gradient (7, 1), weight (7, 12)" in str(error.value)
        assert "kernel_2: gradient None, weight (12, 6)" in str(error.value)
        assert "kernel_1" not in str(error.value)


def ranked(values, mask, names):
    """Kept places of these leaves, best first: (-score, leaf, position)."""
    return sorted(
        (-values[name].flat[place], leaf, place)
        for leaf, name in enumerate(names)
        for place in np.flatnonzero(mask[name]).tolist()
    )


def exact_shares(weights, bounds, total):
    """Largest remainders of shares that saturate at their bounds, layer after layer, in fractions."""
    saturated = set()
    while True:
        free = [i for i in range(len(weights)) if i not in saturated]
        left = total - sum(bounds[i] for i in saturated)
        eps = Fraction(left, sum(weights[i] for i in free)) if free else 0
        above = {i for i in free if eps * weights[i] > bounds[i]}
        if not above:
            break
        saturated |= above
    ideal = [bounds[i] if i in saturated else eps * weights[i] for i in range(len(weights))]
    shares = [math.floor(share) for share in ideal]
    order = sorted(range(len(weights)), key=lambda i: (shares[i] - ideal[i], i))
    for i in order[: total - sum(shares)]:
        shares[i] += 1
    return shares


def reference(mask, values, total, scope):
    """The pruned mask without a guard."""
    names = sorted(values)
    kept = {name: np.zeros(values[name].size, bool) for name in names}
    if scope == "global":
        for _, leaf, place in ranked(values, mask, names)[:total]:
            kept[names[leaf]][place] = True
    else:
        bounds = [int(mask[name].sum()) for name in names]
        weights = [sum(values[n].shape) if scope == "erk" else values[n].size for n in names]
        for name, count in zip(names, exact_shares(weights, bounds, total), strict=True):
            for _, _, place in ranked(values, mask, [name])[:count]:
                kept[name][place] = True
    return {name: kept[name].reshape(values[name].shape) for name in names}


def assert_same(got, expected):
    assert sorted(got) == sorted(expected)
    for name, leaf in got.items():
        assert leaf.dtype == bool
        np.testing.assert_array_equal(leaf, expected[name], err_msg=name)


shapes = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4).map(
    lambda found: {f"kernel_{i}": shape for i, shape in enumerate(found)}
)


@settings(max_examples=200, deadline=None)
@given(shapes, st.floats(0, 1), st.floats(0, 1), st.sampled_from(pruning.SCOPES), st.integers(0, 999))
def test_pruning_equals_plain_python(shapes, share, density, scope, seed):
    """Few levels of scores make many ties."""
    rng = np.random.default_rng(seed)
    levels = rng.choice([1, 3, 1000])
    values = {name: rng.integers(0, levels, shape).astype(np.float64) for name, shape in shapes.items()}
    mask = {name: rng.random(shape) < density for name, shape in shapes.items()}
    mask["kernel_0"][0, 0] = True
    size = sum(leaf.size for leaf in mask.values())
    total = max(1, round(share * sum(int(leaf.sum()) for leaf in mask.values())))
    for order in (values, dict(reversed(values.items()))):
        got = pruning.prune(mask, order, 1 - total / size, scope, min_kept=0)
        assert_same(got, reference(mask, values, total, scope))


@settings(max_examples=200, deadline=None)
@given(shapes, st.floats(0, 0.999), st.sampled_from(pruning.SCOPES), st.integers(0, 5), st.integers(0, 999))
def test_the_guard_keeps_every_leaf_alive_and_the_total_exact(shapes, sparsity, scope, min_kept, seed):
    rng = np.random.default_rng(seed)
    # Leaves on scales of their own, so that a global ranking empties some.
    values = {name: rng.random(shape) * 10.0 ** rng.integers(-3, 3) for name, shape in shapes.items()}
    size = sum(leaf.size for leaf in values.values())
    total = size - round(sparsity * size)
    least = {name: min(min_kept, leaf.size) for name, leaf in values.items()}
    if total < sum(least.values()):
        with pytest.raises(ValueError, match=f"leaves {total} of {size} weights"):
            pruning.prune({}, values, sparsity, scope, min_kept=min_kept)
        return
    got = pruning.prune({}, values, sparsity, scope, min_kept=min_kept)
    kept, of_all = masks.counts(got)
    assert of_all == total
    for name, count in kept.items():
        assert count >= least[name]
        threshold = np.sort(values[name].ravel())[::-1][:count].min(initial=np.inf)
        assert (got[name] == (values[name] >= threshold)).all()


@pytest.mark.parametrize("criterion", pruning.CRITERIA)
@pytest.mark.parametrize("scope", pruning.SCOPES)
@pytest.mark.parametrize("shapes", [ACTOR, CRITIC], ids=["actor", "critic"])
def test_the_rounds_are_exact_and_nested(criterion, scope, shapes):
    size = sum(math.prod(shape) for shape in shapes.values())
    mask = {}
    for n, sparsity in enumerate(PUBLISHED):
        # New scores in each round, as after each training; what is pruned scores highest and stays pruned.
        values = scores_of(criterion, shapes, seed=10 * n)
        values = {name: np.where(mask.get(name, True), leaf, np.inf) for name, leaf in values.items()}
        pruned = pruning.prune(mask, values, sparsity, scope)
        assert sum(int(leaf.sum()) for leaf in pruned.values()) == size - round(sparsity * size)
        assert masks.sparsity(pruned) == pytest.approx(sparsity, abs=0.5 / size)
        for name, leaf in pruned.items():
            assert not (leaf & ~np.asarray(mask.get(name, True))).any()
        mask = pruned
        if scope == "layer":
            for name, kept in masks.counts(mask)[0].items():
                assert kept == pytest.approx((1 - sparsity) * math.prod(shapes[name]), abs=1)


@pytest.mark.parametrize("scope", pruning.SCOPES)
@pytest.mark.parametrize("sparsity", [0, *PUBLISHED])
def test_equal_scores_are_pruned_exactly_and_by_index(scope, sparsity):
    size = sum(math.prod(shape) for shape in ACTOR.values())
    got = pruning.prune({}, constant(ACTOR, 0.0), sparsity, scope, min_kept=0)
    assert masks.counts(got)[1] == size - round(sparsity * size)
    runs = [got[name].ravel() for name in ACTOR]
    if scope == "global":
        runs = [np.concatenate(runs)]
    for run in runs:
        assert run[: run.sum()].all()


def test_of_equal_scores_the_lower_leaf_and_position_are_kept():
    shapes = {"kernel_10": (1, 2), "kernel_2": (2, 2)}
    got = pruning.prune({}, constant(shapes), 0.5, "global", min_kept=0)
    assert got["kernel_2"].tolist() == [[True, True], [True, False]]
    assert not got["kernel_10"].any()
    got = pruning.prune({}, constant(shapes), 0.5, "global")
    assert got["kernel_2"].tolist() == [[True, True], [False, False]]
    assert got["kernel_10"].tolist() == [[True, False]]


@pytest.mark.parametrize(("sparsity", "kept"), [(0.25, 8), (0.35, 6), (0.04, 10), (0.06, 9), (0.8, 2)])
def test_counts_are_rounded_to_the_nearest_and_a_half_to_even(sparsity, kept):
    """2.5 of 10 are 2, 3.5 are 4."""
    values = {"kernel_0": np.arange(10.0).reshape(2, 5)}
    got = pruning.prune({}, values, sparsity, "global")
    assert got["kernel_0"].ravel().tolist() == [False] * (10 - kept) + [True] * kept


@pytest.mark.parametrize("scope", pruning.SCOPES)
def test_the_sparsity_of_the_mask_itself_changes_nothing(scope):
    mask = pruning.prune({}, scores_of("random", CRITIC), 0.6, "global")
    assert_same(pruning.prune(mask, scores_of("random", CRITIC, 3), masks.sparsity(mask), scope), mask)


def test_scopes_by_hand():
    """Kernel 0 holds all the large scores: the three scopes differ in how many of them they keep."""
    values = {"kernel_0": np.arange(16.0).reshape(4, 4) + 100, "kernel_1": np.arange(4.0).reshape(4, 1)}
    half = {scope: pruning.prune({}, values, 0.5, scope) for scope in pruning.SCOPES}
    counts = {scope: masks.counts(mask)[0] for scope, mask in half.items()}
    assert counts["global"] == {"kernel_0": 9, "kernel_1": 1}
    assert counts["layer"] == {"kernel_0": 8, "kernel_1": 2}
    # Densities eps 8/16 and eps 5/4: the second saturates and the first takes the other six of ten.
    assert counts["erk"] == {"kernel_0": 6, "kernel_1": 4}
    assert half["layer"]["kernel_1"].ravel().tolist() == [False, False, True, True]


def test_erdos_renyi_against_published_counts():
    """Public RLx2 code, 39 observations, 4 actions, width 256; it truncates each leaf on its own."""
    actor = {"kernel_0": (39, 256), "kernel_1": (256, 256), "kernel_2": (256, 8)}
    critic = {"kernel_0": (43, 256), "kernel_1": (256, 256), "kernel_2": (256, 1)}
    twin = {f"{q}/{name}": shape for q in ("q0", "q1") for name, shape in critic.items()}
    for network, sparsity, expected in (
        (actor, 0.9, (2137, 3709, 1913)),
        (critic, 0.8, (5569, 9536, 256)),
        (twin, 0.8, (5569, 9536, 256) * 2),
    ):
        got = masks.counts(pruning.prune({}, constant(network), sparsity, "erk"))[0].values()
        assert np.abs(np.subtract(list(got), expected)).max() <= 1


def test_of_equal_remainders_the_lower_leaf_gets_the_weight():
    """Two thirds of 8, 2 and 8 are 5 1/3, 1 1/3 and 5 1/3; the halves of 3 and 1 are 1 1/2 and 1/2."""
    thirds = constant({"kernel_0": (2, 4), "kernel_1": (1, 2), "kernel_2": (2, 4)})
    assert list(masks.counts(pruning.prune({}, thirds, 1 / 3, "layer"))[0].values()) == [6, 1, 5]
    halves = constant({"kernel_0": (1, 3), "kernel_1": (1, 1)})
    assert list(masks.counts(pruning.prune({}, halves, 1 / 2, "layer", min_kept=0))[0].values()) == [2, 0]


@pytest.mark.parametrize(("kept", "sparsity", "others"), [(2, 0.5, 6), (0, 0.75, 4)])
@pytest.mark.parametrize("scope", ["layer", "erk"])
def test_a_leaf_that_is_already_sparser_leaves_its_share_to_the_others(scope, kept, sparsity, others):
    mask = {"kernel_0": np.arange(8).reshape(2, 4) < kept, "kernel_1": np.ones((2, 4), bool)}
    got = pruning.prune(mask, constant({"kernel_0": (2, 4), "kernel_1": (2, 4)}), sparsity, scope)
    assert masks.counts(got)[0] == {"kernel_0": kept, "kernel_1": others}


def test_the_guard_keeps_the_best_of_a_leaf_that_ranks_last():
    values = {"kernel_0": np.array([[9.0, 8, 7, 6]]), "kernel_1": np.array([[0.1], [0.3], [0.2], [0.0]])}
    got = pruning.prune({}, values, 0.5, "global", min_kept=2)
    assert got["kernel_0"].tolist() == [[True, True, False, False]]
    assert got["kernel_1"].ravel().tolist() == [False, True, True, False]
    assert masks.counts(pruning.prune({}, values, 0.5, "global"))[0] == {"kernel_0": 3, "kernel_1": 1}
    assert masks.counts(pruning.prune({}, values, 0.75, "global"))[0] == {"kernel_0": 1, "kernel_1": 1}


@pytest.mark.parametrize("scope", pruning.SCOPES)
def test_a_sparsity_that_would_empty_a_layer_is_refused(scope):
    with pytest.raises(ValueError, match="leaves 2 of 300 weights to 3 leaves: must leave at least 3"):
        pruning.prune({}, scores_of("random", ACTOR), 0.9935, scope)


def test_nonsense_is_refused():
    values = constant(ACTOR)
    mask = pruning.prune({}, values, 0.5, "layer")
    with pytest.raises(ValueError, match=r"sparsity is 0\.4, the mask is at 0\.5 and nothing is revived"):
        pruning.prune(mask, values, 0.4, "global")
    with pytest.raises(ValueError, match="scope is 'uniform', must be one of global, layer, erk"):
        pruning.prune({}, values, 0.5, "uniform")
    other = masks.full(constant({**ACTOR, "kernel_2": (12, 5)}))
    with pytest.raises(ValueError, match=r"kernel_2: mask \(12, 5\), parameters \(12, 6\)"):
        pruning.prune(other, values, 0.5, "global")
    values["kernel_1"][3, 4] = np.nan
    with pytest.raises(ValueError, match=r"nan scores in kernel_1$"):
        pruning.prune({}, values, 0.5, "global")


def test_pruning_changes_none_of_its_inputs():
    values, mask = scores_of("magnitude", ACTOR), masks.full(constant(ACTOR))
    copy = {name: leaf.copy() for name, leaf in values.items()}
    for scope, sparsity in itertools.product(pruning.SCOPES, (0, 0.5)):
        for leaf in pruning.prune(mask, values, sparsity, scope).values():
            leaf[...] = False
    assert all(leaf.all() for leaf in mask.values())
    assert all((leaf == copy[name]).all() for name, leaf in values.items())
