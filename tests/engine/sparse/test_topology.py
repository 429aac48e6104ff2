"""Sparse beginnings and evolving masks against literal readings in NumPy and exact fractions."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support.topologies import moved, share, strongest

from engine.sparse import masks
from engine.sparse.topology import TOPOLOGIES, Topology, initial

SHAPE = (4, 6)
NAMES = ("q0/kernel_0", "q0/kernel_1", "q1/kernel_0", "q1/kernel_1")


def network(shapes, prefix="", seed=0):
    rng = np.random.default_rng(seed)
    return {
        f"{prefix}{kind}_{i}": rng.standard_normal(shape if kind == "kernel" else shape[1:], np.float32)
        for i, shape in enumerate(shapes)
        for kind in ("kernel", "bias")
    }


# What a network begins with.


def test_the_layers_of_networks_of_width_256():
    actor = network([(39, 256), (256, 256), (256, 8)])
    assert list(masks.counts(initial(actor, 0.9, "erk"))[0].values()) == [2137, 3709, 1913]
    shapes = [(43, 256), (256, 256), (256, 1)]
    critic = network(shapes, "q0/") | network(shapes, "q1/", seed=1)
    assert list(masks.counts(initial(critic, 0.8, "erk"))[0].values()) == [5569, 9536, 256] * 2


def exact_counts(shapes, sparsity, distribution):
    """In fractions: the densest layer is made dense and the rest solved again until none is above 1."""
    sizes = [math.prod(shape) for shape in shapes]
    pruned = [sparsity] * len(shapes)
    rest = set(range(len(shapes))) if distribution == "erk" else set()
    while rest:
        budget = (1 - sparsity) * sum(sizes) - sum(sizes[i] for i in range(len(sizes)) if i not in rest)
        eps = budget / sum(sum(shapes[i]) for i in rest)
        density = {i: eps * sum(shapes[i]) / sizes[i] for i in rest}
        densest = max(density, key=density.get)
        if density[densest] <= 1:
            for i in rest:
                pruned[i] = 1 - density[i]
            break
        pruned[densest] = 0
        rest.remove(densest)
    return [size - int(share * size) for size, share in zip(sizes, pruned, strict=True)]


@given(
    shapes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=4, max_size=4),
    percent=st.integers(0, 99),
    distribution=st.sampled_from(["erk", "uniform"]),
    seed=st.integers(0, 99),
)
@settings(deadline=None)
def test_counts_are_exact_and_the_largest_are_kept(shapes, percent, distribution, seed):
    rng = np.random.default_rng(seed)
    # Few values, so that most weights are ties.
    weights = {
        name: rng.integers(-2, 3, shape).astype(np.float32) for name, shape in zip(NAMES, shapes, strict=True)
    }
    got = initial(weights, percent / 100, distribution)
    expected = exact_counts(shapes, Fraction(percent, 100), distribution)
    for (name, weight), count in zip(weights.items(), expected, strict=True):
        assert np.flatnonzero(got[name]).tolist() == sorted(
            strongest(np.abs(weight), range(weight.size), count)
        )


def test_global_keeps_the_largest_of_all_and_names_what_would_be_empty():
    weights = network([(3, 5), (5, 4)])
    got = initial(weights, 0.6, "global")
    every = np.concatenate([np.abs(weights[name]).ravel() for name in got])
    threshold = np.sort(every)[-14]  # of 35, 21 are pruned
    assert all(np.array_equal(kept, np.abs(weights[name]) >= threshold) for name, kept in got.items())
    weights["kernel_1"] *= 1e-6
    with pytest.raises(ValueError, match=r"sparsity is 0.6, which leaves nothing of kernel_1$"):
        initial(weights, 0.6, "global")
    assert masks.counts(initial(weights, 0.6, "erk"))[1] == sum(exact_counts([(3, 5), (5, 4)], 0.6, "erk"))


def test_what_no_network_can_begin_with():
    for sparsity in (1.0, -0.1, math.nan):
        with pytest.raises(ValueError, match=r"sparsity is .*, must be in \[0, 1\)"):
            initial(network([SHAPE]), sparsity, "erk")
    with pytest.raises(ValueError, match="distribution is 'even', must be one of erk, uniform, global"):
        initial(network([SHAPE]), 0.5, "even")
    with pytest.raises(ValueError, match="leaves nothing of kernel_0, kernel_1"):
        initial(network([(2, 1), (1, 2)]), 1 - 1e-7, "uniform")


# One kernel at one tick.


@jax.jit
def _tick(topology, seed, kept, weight, gradient):
    trees = ({"kernel_0": leaf} for leaf in (kept, weight, gradient))
    later, mask, due = topology.tick("critic", seed, *trees)
    return later, mask["kernel_0"], due


@jax.jit
def _masks(topology, seed, *trees):
    return [topology.tick(name, seed, *trees)[1] for name in ("actor", "critic")]


def ticked(method, kept, weight, gradient, tick, seed=0, **changes):
    """(mask after this tick, whether it was due), in NumPy."""
    if method == "gmp":
        changes["final"] = {"kernel_0": changes.pop("final")}
    topology = Topology.make(method, **{"interval": 1, **changes})
    topology = topology.replace(updates=jnp.int32(tick - 1))
    arrays = (np.asarray(kept, bool), np.float32(weight), np.float32(gradient))
    later, mask, due = _tick(topology, np.uint32(seed), *arrays)
    assert later.updates == tick
    return np.asarray(mask), bool(due)


def test_a_layer_by_hand_half_of_which_moves():
    kept, weight = [[1, 1, 1], [1, 0, 0]], [[3, -1, 1], [2, 0, 0]]
    half = {"tick": 3, "end": 6, "drop_share": 1.0}  # the middle of the cosine
    cases = (
        ([[9, 1, 1], [9, 1, 0]], [[1, 1, 1], [1, 0, 0]]),  # of three equal slopes both that were dropped
        ([[9, 0, 1], [9, 1, -2]], [[1, 0, 1], [1, 0, 1]]),
        ([[9, 0, 0], [9, -5, 3]], [[1, 0, 0], [1, 1, 1]]),
        ([[9, np.nan, 1], [9, 1, np.inf]], [[1, 0, 1], [1, 0, 1]]),
        ([[np.nan] * 3] * 2, [[1, 1, 1], [1, 0, 0]]),
    )
    for gradient, expected in cases:
        assert ticked("rigl", kept, weight, gradient, **half)[0].astype(int).tolist() == expected
    # Of equal weights the lower indices stay; a weight that is nan is dropped.
    grown = [[0, 0, 0], [0, 2, 1]]
    ones = np.ones((2, 3))
    assert ticked("rigl", kept, ones, grown, **half)[0].astype(int).tolist() == [[1, 1, 0], [0, 1, 1]]
    ones[0, 0] = np.nan
    assert ticked("rigl", kept, ones, grown, **half)[0].astype(int).tolist() == [[0, 1, 1], [0, 1, 1]]


@pytest.mark.parametrize("method", ["set", "rigl"])
def test_layers_in_which_nothing_can_move(method):
    rng = np.random.default_rng(0)
    kept, weight, gradient = rng.random(SHAPE) < 0.5, rng.normal(size=SHAPE), rng.normal(size=SHAPE)
    for same, changes in (
        (kept, {"drop_share": 0.0}),
        (kept, {"drop_share": 0.02}),  # less than one weight
        (np.ones(SHAPE), {"drop_share": 0.5}),
        (np.zeros(SHAPE), {"drop_share": 0.5}),
    ):
        mask, due = ticked(method, same, weight, gradient, tick=1, end=100, **changes)
        assert due
        assert np.array_equal(mask, same)


def whole(exact):
    """int of what is not so near to an integer that float32 could tell otherwise, unless it is one."""
    assume(abs(exact - round(exact)) > 1e-4 or abs(exact - round(exact)) < 1e-9)
    return int(exact + 1e-9)


@given(
    seed=st.integers(0, 2**32 - 1),
    density=st.floats(0, 1),
    twentieths=st.integers(0, 20),
    end=st.integers(2, 3_000_000),
    data=st.data(),
)
@settings(deadline=None)
def test_dropping_and_growing_read_literally(seed, density, twentieths, end, data):
    tick = data.draw(st.integers(1, end - 1) | st.sampled_from([max(1, end // 2), max(1, end // 3)]))
    rng = np.random.default_rng(seed)
    kept, weight = rng.random(SHAPE) < density, rng.integers(-3, 4, SHAPE)
    gradient = rng.choice([-2, -1, 0, 1, 2, np.nan, np.inf], SHAPE)
    moving = whole(np.count_nonzero(kept) * share(twentieths / 20, tick, end))
    stays, grown = moved(kept, weight, np.abs(gradient), moving)
    got, due = ticked("rigl", kept, weight, gradient, tick, end=end, drop_share=twentieths / 20)
    assert due
    assert np.flatnonzero(got).tolist() == sorted(stays + grown)
    # By chance: the same weights stay, and as many grow.
    got, _ = ticked("set", kept, weight, gradient, tick, seed, end=end, drop_share=twentieths / 20)
    assert np.count_nonzero(got) == np.count_nonzero(kept)
    assert set(stays) <= set(np.flatnonzero(got).tolist())


@given(
    begin=st.integers(0, 1000),
    length=st.integers(1, 3_000_000),
    final=st.integers(0, 24),
    density=st.sampled_from([0.3, 1.0]),
    data=st.data(),
)
@settings(deadline=None)
def test_magnitude_pruning_follows_the_cubic_curve_and_revives_nothing(begin, length, final, density, data):
    since = data.draw(st.integers(1, length))
    rng = np.random.default_rng(length)
    kept, weight = rng.random(SHAPE) < density, rng.integers(-3, 4, SHAPE)
    pruned = whole(Fraction(24 - final) * (1 - (1 - Fraction(since, length)) ** 3))
    got, due = ticked(
        "gmp", kept, weight, np.ones(SHAPE), begin + since, begin=begin, end=begin + length, final=final
    )
    assert due
    present = [i for i in range(24) if kept.flat[i]]
    assert np.flatnonzero(got).tolist() == sorted(strongest(np.abs(weight), present, 24 - pruned))
    assert since < length or np.count_nonzero(got) == min(final, len(present))


@pytest.mark.parametrize("method", TOPOLOGIES)
def test_what_is_due(method):
    rng = np.random.default_rng(1)
    layer = rng.random(SHAPE) < 0.7, rng.normal(size=SHAPE), rng.normal(size=SHAPE)
    settings = {"interval": 5, "begin": 7, "end": 22} | ({"final": 3} if method == "gmp" else {})
    found = {tick: ticked(method, *layer, tick, **settings) for tick in range(1, 30)}
    # A schedule that only prunes has to get where it ends.
    expected = [12, 17, 22] if method == "gmp" else [12, 17]
    assert [tick for tick, (_, due) in found.items() if due] == expected
    assert [tick for tick, (mask, _) in found.items() if not np.array_equal(mask, layer[0])] == expected


def test_large_layers_lose_no_weight_to_rounding():
    """Numbers that are integers but for float32, of which a weight is the seventh digit."""
    kept = np.zeros((300, 400), bool)
    kept[:, :200] = True
    weight = np.arange(kept.size, dtype=np.float32).reshape(kept.shape)
    for tick, moving in ((2, 45_000), (3, 30_000), (4, 15_000)):
        mask, _ = ticked("rigl", kept, weight, ~kept, tick, end=6, drop_share=1.0)
        assert (np.count_nonzero(mask), np.count_nonzero(mask[:, 200:])) == (60_000, moving)
    kept, weight = np.ones((1000, 1200), bool), np.zeros((1000, 1200), np.float32)
    mask, _ = ticked("gmp", kept, weight, weight, 6, end=6, final=100_001)
    assert np.count_nonzero(mask) == 100_001


def test_chance_is_a_function_of_seed_network_tick_and_kernel():
    rng = np.random.default_rng(2)
    kept, weight = rng.random(SHAPE) < 0.5, rng.normal(size=SHAPE)
    settings = {"end": 100, "drop_share": 1.0}
    first = ticked("set", kept, weight, weight, 1, 3, **settings)[0]
    assert np.array_equal(ticked("set", kept, weight, 2 * weight, 1, 3, **settings)[0], first)
    assert not np.array_equal(ticked("set", kept, weight, weight, 1, 4, **settings)[0], first)
    assert not np.array_equal(ticked("set", kept, weight, weight, 2, 3, **settings)[0], first)
    topology = Topology.make("set", interval=1, **settings)
    two = [{f"{prefix}kernel_0": leaf for prefix in ("q0/", "q1/")} for leaf in (kept, weight, weight)]
    found = [np.asarray(mask[name]).tobytes() for mask in _masks(topology, 3, *two) for name in mask]
    assert len(set(found)) == 4


def test_topologies_that_cannot_be_name_every_value():
    with pytest.raises(ValueError, match="method is 'deep', not of set, rigl, gmp") as caught:
        Topology.make("deep", interval=0, begin=5, end=5, drop_share=1.5)
    for expected in ("interval is 0", "begin is 5 and end 5", "drop_share is 1.5"):
        assert expected in str(caught.value)
    for method, final, said in (("gmp", None, "no final"), ("rigl", {"kernel_0": 1}, "with final")):
        with pytest.raises(ValueError, match=said):
            Topology.make(method, interval=1, end=2, final=final)
