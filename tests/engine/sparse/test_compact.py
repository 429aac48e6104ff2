"""Compact networks against masked ones."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.networks import network, random_mask
from support.sac_reference import normal

from engine.sparse import masks
from engine.sparse.compact import compact, effective, forward


def masked_forward(mask, parameters, x, normalise=False):
    """Outputs of the masked network in the precision of x."""
    depth = len(parameters) // 2
    for i in range(depth):
        kernel = np.where(mask[f"kernel_{i}"], parameters[f"kernel_{i}"], 0).astype(x.dtype)
        x = x @ kernel + parameters[f"bias_{i}"].astype(x.dtype)
        if i < depth - 1:
            x = normal(x)[0] if normalise else x
            x = x * (x > 0)
    return x


def assert_equivalent(mask, parameters):
    """Equal to 1e-6 of the outputs' size, in float32 and, where only the fold rounds, in float64."""
    small = compact(mask, parameters)
    mask = mask or masks.full(parameters)
    x = np.random.default_rng(7).standard_normal((16, len(parameters["kernel_0"])))
    for dtype in (np.float32, np.float64):
        expected = masked_forward(mask, parameters, x.astype(dtype).astype(np.float64))
        got = forward(small.parameters, x.astype(dtype)[:, small.inputs])
        assert got.shape == expected.shape
        assert got.dtype == dtype
        assert np.abs(got - expected).max() <= 1e-6 * np.abs(expected).max()
    for leaf in small.parameters.values():
        assert leaf.dtype == np.float32
    return small


def widths_of(small):
    depth = len(small.parameters) // 2
    shapes = [small.parameters[f"kernel_{i}"].shape for i in range(depth)]
    assert [small.parameters[f"bias_{i}"].shape for i in range(depth)] == [(out,) for _, out in shapes]
    assert all(a[1] == b[0] for a, b in itertools.pairwise(shapes))
    return [len(small.inputs), *(out for _, out in shapes)]


def on_a_path(mask):
    """Widths that remain if exactly the units on a path from an input to an output do, path by path."""
    kept = [mask[f"kernel_{i}"] for i in range(len(mask))]
    used = [set() for _ in range(len(kept) + 1)]

    def walk(path):
        layer = len(path) - 1
        if layer == len(kept):
            for i, unit in enumerate(path):
                used[i].add(unit)
            return
        for unit in np.flatnonzero(kept[layer][path[-1]]).tolist():
            walk([*path, unit])

    for start in range(len(kept[0])):
        walk([start])
    return sorted(used[0]), [*map(len, used[:-1]), kept[-1].shape[1]]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(1, 5), min_size=2, max_size=5),
    st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9]),
    st.integers(0, 9999),
)
def test_compact_equals_masked_and_keeps_exactly_the_units_on_a_path(widths, density, seed):
    parameters = network(widths, seed)
    mask = random_mask(parameters, density, seed)
    small = assert_equivalent(mask, parameters)
    inputs, expected = on_a_path(mask)
    assert small.inputs.tolist() == inputs
    assert widths_of(small) == expected


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(1, 5), min_size=2, max_size=5),
    st.sampled_from([0.1, 0.25, 0.5]),
    st.integers(0, 9999),
)
def test_a_normalised_network_loses_nothing_but_inputs_without_weights(widths, density, seed):
    parameters = network(widths, seed)
    mask = random_mask(parameters, density, seed)
    small = compact(mask, parameters, normalise=True)
    assert small.inputs.tolist() == np.flatnonzero(mask["kernel_0"].any(1)).tolist()
    assert widths_of(small) == [len(small.inputs), *widths[1:]]
    x = np.random.default_rng(7).standard_normal((16, widths[0]))
    expected = masked_forward(mask, parameters, x, normalise=True)
    got = masked_forward(masks.full(small.parameters), small.parameters, x[:, small.inputs], normalise=True)
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)


def test_a_unit_that_nobody_reads_matters_to_a_normalised_network():
    parameters = network((3, 4, 2), seed=1)
    mask = masks.full(parameters)
    mask["kernel_1"][2] = False
    x = np.random.default_rng(7).standard_normal((16, 3))
    before = masked_forward(mask, parameters, x, normalise=True)
    changed = {**parameters, "bias_0": parameters["bias_0"] + np.float32([0, 0, 1, 0])}
    assert np.abs(masked_forward(mask, changed, x, normalise=True) - before).max() > 0.1
    assert len(compact(mask, parameters, normalise=True).parameters["bias_0"]) == 4
    assert len(compact(mask, parameters).parameters["bias_0"]) == 3


@pytest.mark.parametrize("density", [0.2, 0.05, 0.02, 0.005])
def test_networks_of_the_usual_size(density):
    parameters = network((39, 256, 256, 8))
    small = assert_equivalent(random_mask(parameters, density), parameters)
    assert small.parameters["kernel_1"].size <= 256 * 256


def test_a_dense_network_stays_what_it_is():
    parameters = network((3, 4, 2))
    for mask in ({}, masks.full(parameters)):
        small = assert_equivalent(mask, parameters)
        assert small.inputs.tolist() == [0, 1, 2]
        for name, leaf in parameters.items():
            np.testing.assert_array_equal(small.parameters[name], leaf)


def test_each_kind_of_dead_unit_by_hand():
    parameters = {
        "kernel_0": np.array([[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]], np.float32),
        "bias_0": np.array([0.5, 2.0, -3.0, 0.25], np.float32),
        "kernel_1": np.array([[1], [10], [100], [1000]], np.float32),
        "bias_1": np.array([7.0], np.float32),
    }
    # Unit 0 lives; 1 and 2 are constant, the one 2, the other 0; 3 is not read, and with it goes input 2.
    mask = {
        "kernel_0": np.array([[1, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 1]], bool),
        "kernel_1": np.array([[1], [1], [1], [0]], bool),
    }
    small = assert_equivalent(mask, parameters)
    assert small.inputs.tolist() == [0]
    assert {name: leaf.tolist() for name, leaf in small.parameters.items()} == {
        "kernel_0": [[1]],
        "bias_0": [0.5],
        "kernel_1": [[1]],
        "bias_1": [7 + 2 * 10],
    }


def test_death_spreads_both_ways():
    parameters = network((2, 2, 2, 2, 1), seed=3)
    mask = masks.full(parameters)
    mask["kernel_0"][:, 0] = False
    mask["kernel_1"][1, 0] = False  # unit 0 of layer 2 reads only the constant unit
    mask["kernel_3"][1] = False
    mask["kernel_2"][1, 0] = False  # unit 1 of layer 2 is read only by a unit that nobody reads
    small = assert_equivalent(mask, parameters)
    # What is left is constant: unit 0 of layer 3 reads the constant unit 0 alone.
    assert widths_of(small) == [0, 0, 0, 0, 1]


@pytest.mark.parametrize("dead", ["kernel_0", "kernel_1", "kernel_2"])
def test_a_dead_layer_leaves_constant_outputs(dead):
    parameters = network((3, 4, 5, 2), seed=1)
    mask = masks.full(parameters)
    mask[dead][...] = False
    small = assert_equivalent(mask, parameters)
    assert widths_of(small) == [0, 0, 0, 2]
    x = np.random.default_rng(0).standard_normal((5, 3), np.float32)
    outputs = forward(small.parameters, x[:, small.inputs])
    assert outputs.shape == (5, 2)
    assert (outputs == outputs[0]).all()


def test_constants_are_folded_in_float64():
    parameters = {
        "kernel_0": np.ones((1, 2), np.float32),
        "bias_0": np.array([2**25, 1], np.float32),
        "kernel_1": np.ones((2, 1), np.float32),
        "bias_1": np.array([-(2**25)], np.float32),
    }
    mask = {"kernel_0": np.zeros((1, 2), bool), "kernel_1": np.ones((2, 1), bool)}
    assert compact(mask, parameters).parameters["bias_1"].tolist() == [1]


def test_compact_changes_none_of_its_inputs():
    parameters = network((3, 4, 4, 2))
    mask = random_mask(parameters, 0.2)
    copies = [{name: leaf.copy() for name, leaf in tree.items()} for tree in (parameters, mask)]
    compact(mask, parameters)
    for tree, copy in zip((parameters, mask), copies, strict=True):
        for name, leaf in tree.items():
            np.testing.assert_array_equal(leaf, copy[name])


def test_what_is_no_plain_network_is_refused():
    parameters = network((3, 4, 2))
    with pytest.raises(ValueError, match=r"kernel_1: mask \(4, 3\), parameters \(4, 2\)"):
        compact({"kernel_0": np.ones((3, 4), bool), "kernel_1": np.ones((4, 3), bool)}, parameters)
    for other in (network((3, 4, 2), prefix="q0/"), {"kernel_0": parameters["kernel_0"]}, {}):
        with pytest.raises(ValueError, match="names must be kernel_0, bias_0"):
            compact({}, other)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 6), min_size=2, max_size=5),
    st.sampled_from([0.0, 0.1, 0.3, 0.9]),
    st.integers(0, 9999),
)
def test_effective_weights_are_those_that_paths_go_through(widths, density, seed):
    """Paths through a weight: those that reach its input times those that leave its output."""
    rng = np.random.default_rng(seed)
    shapes = list(itertools.pairwise(widths))
    nets = [{f"kernel_{i}": rng.random(s) < density for i, s in enumerate(shapes)} for _ in range(2)]
    found = effective({f"q{k}/{name}": kept for k, net in enumerate(nets) for name, kept in net.items()})
    for k, net in enumerate(nets):
        kernels = [net[f"kernel_{i}"].astype(int) for i in range(len(shapes))]
        for i, kernel in enumerate(kernels):
            into, out = np.ones(widths[0], int), np.ones(widths[-1], int)
            for each in kernels[:i]:
                into = into @ each
            for each in reversed(kernels[i + 1 :]):
                out = each @ out
            paths = into[:, None] * kernel * out
            assert found[f"q{k}/kernel_{i}"] == np.count_nonzero(paths)


def test_all_weights_of_a_dense_network_are_effective_and_a_cut_one_has_none():
    mask = masks.full(network([3, 4, 2]))
    assert effective(mask) == {"kernel_0": 12, "kernel_1": 8}
    mask["kernel_1"][:] = False
    assert effective(mask) == {"kernel_0": 0, "kernel_1": 0}
    assert effective({}) == {}
