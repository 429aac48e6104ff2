"""Masks: what they zero, what they refuse, how they compare, and the random controls."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.sparse import masks

SHAPES = {"kernel_0": (3, 4), "kernel_1": (4, 2)}


def network(shapes=SHAPES, seed=0, prefixes=("",)):
    rng = np.random.default_rng(seed)
    parameters = {}
    for prefix in prefixes:
        for name, shape in shapes.items():
            parameters[prefix + name] = rng.standard_normal(shape, np.float32)
            bias = (prefix + name).replace("kernel", "bias")
            parameters[bias] = rng.standard_normal(shape[1], np.float32)
    return parameters


def random_mask(parameters, density, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.random(v.shape) < density for name, v in parameters.items() if "kernel" in name}


def loop_count(array):
    return sum(1 for value in array.ravel().tolist() if value)


networks = st.builds(
    lambda shapes, seed: network({f"kernel_{i}": shape for i, shape in enumerate(shapes)}, seed),
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=3),
    st.integers(0, 999),
)
density = st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0])


def test_kernels_come_by_prefix_and_layer_whatever_the_order_of_the_dict():
    layers = {f"kernel_{i}": (1, 1) for i in range(11)}
    parameters = network(layers, prefixes=("q1/", "q0/"))
    expected = [f"{prefix}kernel_{i}" for prefix in ("q0/", "q1/") for i in range(11)]
    assert masks.kernels(parameters) == expected
    assert masks.kernels(dict(reversed(parameters.items()))) == expected
    assert masks.kernels(jax.jit(lambda tree: tree)(parameters)) == expected


def test_only_kernels_are_kernels():
    assert masks.kernels(["bias_0", "kernel_0", "kernel", "kernel_x", "akernel_0", "kernel_0_m"]) == [
        "kernel_0"
    ]
    assert list(masks.full(network())) == list(SHAPES)


def test_networks_split_by_prefix():
    parameters = network(prefixes=("q0/", "q1/"))
    parts = masks.networks(parameters)
    assert list(parts) == ["q0/", "q1/"]
    assert parts["q1/"]["kernel_0"] is parameters["q1/kernel_0"]
    assert {len(part) for part in parts.values()} == {4}
    assert masks.networks(parts["q0/"]) == {"": parts["q0/"]}
    assert masks.networks({}) == {}


def looped_apply(mask, parameters):
    expected = {name: value.copy() for name, value in parameters.items()}
    for name, kept in mask.items():
        for place in np.ndindex(kept.shape):
            if not kept[place]:
                expected[name][place] = 0
    return expected


@pytest.mark.parametrize("mode", ["numpy", "jax", "jit", "jit, constant mask"])
def test_apply_zeroes_what_is_pruned_and_nothing_else(mode):
    parameters = network()
    mask = random_mask(parameters, 0.5)
    # A product with the mask would leave a nan and a negative zero.
    mask["kernel_0"][0, :2] = False
    parameters["kernel_0"][0, :2] = np.nan, -1
    before = {name: value.copy() for name, value in parameters.items()}
    got = {
        "numpy": lambda: masks.apply(mask, parameters),
        "jax": lambda: masks.apply(mask, jax.tree.map(jnp.asarray, parameters)),
        "jit": lambda: jax.jit(masks.apply)(mask, parameters),
        "jit, constant mask": lambda: jax.jit(lambda tree: masks.apply(mask, tree))(parameters),
    }[mode]()
    expected = looped_apply(mask, parameters)
    assert set(got) == set(parameters)
    for name, value in got.items():
        assert isinstance(value, np.ndarray if mode == "numpy" else jax.Array)
        assert value.dtype == np.float32
        assert np.asarray(value).tobytes() == expected[name].tobytes(), name
        np.testing.assert_array_equal(parameters[name], before[name])


def test_apply_leaves_leaves_without_a_mask_alone():
    parameters = network()
    assert masks.apply({}, parameters) == parameters
    got = masks.apply({"kernel_1": np.zeros((4, 2), bool)}, parameters)
    assert got["kernel_0"] is parameters["kernel_0"]
    assert not got["kernel_1"].any()
    assert got["bias_1"] is parameters["bias_1"]


@pytest.mark.parametrize("check", [masks.apply, masks.check_matches])
def test_a_mismatch_names_every_leaf_and_both_shapes(check):
    parameters = network()
    mask = {
        "kernel_0": np.ones((3, 1), bool),  # would broadcast
        "kernel_1": np.ones((4, 2), np.float32),
        "kernel_7": np.ones((5, 6), bool),
        "bias_0": np.ones(4, bool),
    }
    with pytest.raises(ValueError, match="does not match") as error:
        check(mask, parameters)
    for part in ("kernel_0: mask (3, 1), parameters (3, 4)", "kernel_1: mask of float32, not bool"):
        assert part in str(error.value)
    assert "kernel_7: mask (5, 6), no such parameters" in str(error.value)
    assert "bias_0: mask (4,) of what is no kernel" in str(error.value)


def test_a_kernel_without_a_mask_is_a_mismatch_unless_all_are():
    parameters = network()
    masks.check_matches({}, parameters)
    masks.check_matches(masks.full(parameters), parameters)
    with pytest.raises(ValueError, match=r"kernel_1: no mask, parameters \(4, 2\)") as error:
        masks.check_matches({"kernel_0": np.ones((3, 4), bool)}, parameters)
    assert "kernel_0" not in str(error.value)


def test_counts_and_sparsity_by_hand():
    mask = {
        "kernel_1": np.array([[True, False]]),
        "kernel_0": np.array([[True, False, False], [False, False, False]]),
    }
    assert masks.counts(mask) == ({"kernel_0": 1, "kernel_1": 1}, 2)
    assert masks.sparsity(mask) == 0.75


def test_a_dense_network_has_sparsity_zero():
    assert masks.sparsity({}) == masks.sparsity(masks.full(network())) == 0
    assert masks.counts(masks.full(network())) == ({"kernel_0": 12, "kernel_1": 8}, 20)
    assert masks.counts({}) == ({}, 0)


def test_overlap_by_hand():
    first = {"kernel_0": np.array([[True, True, True, False]]), "kernel_1": np.array([[False], [True]])}
    second = {"kernel_0": np.array([[True, False, False, True]]), "kernel_1": np.array([[True], [False]])}
    leaves, total = masks.overlap(first, second)
    assert leaves == {"kernel_0": (1, 1 / 4, 1 / 3), "kernel_1": (0, 0, 0)}
    assert total == (1, 1 / 6, 1 / 4)
    assert masks.overlap(second, first)[1] == (1, 1 / 6, 1 / 3)


def test_overlap_of_equal_dense_and_empty_masks():
    mask = random_mask(network(), 0.5)
    kept = masks.counts(mask)[1]
    assert masks.overlap(mask, mask)[1] == (kept, 1, 1)
    assert masks.overlap(mask, {})[1] == (kept, kept / 20, 1)
    assert masks.overlap({}, mask)[1] == (kept, kept / 20, kept / 20)
    nothing = {name: ~leaf for name, leaf in masks.full(network()).items()}
    assert masks.overlap(nothing, nothing)[1] == (0, 1, 1)


def test_nested():
    outer = {"kernel_0": np.array([[True, True, False]])}
    assert masks.nested({"kernel_0": np.array([[True, False, False]])}, outer)
    assert masks.nested(outer, outer)
    assert not masks.nested({"kernel_0": np.array([[True, False, True]])}, outer)
    assert masks.nested(outer, {})
    assert not masks.nested({}, outer)
    assert masks.nested({}, {"kernel_0": np.ones((1, 3), bool)})
    assert masks.nested({}, {})


@pytest.mark.parametrize("compare", [masks.overlap, masks.nested])
def test_masks_of_different_networks_do_not_compare(compare):
    one, other = masks.full(network()), masks.full(network({"kernel_0": (3, 4), "kernel_1": (4, 3)}))
    with pytest.raises(ValueError, match=r"kernel_1: mask \(4, 2\), parameters \(4, 3\)"):
        compare(one, other)
    for pair in ((one, {"kernel_0": one["kernel_0"]}), ({"kernel_0": one["kernel_0"]}, one)):
        with pytest.raises(ValueError, match="kernel_1"):
            compare(*pair)
    for pair in (
        (one, {**one, "kernel_1": np.ones((4, 2), int)}),
        ({**one, "kernel_1": np.ones((4, 2), int)}, one),
    ):
        with pytest.raises(ValueError, match="kernel_1: mask of int64, not bool"):
            compare(*pair)


@settings(max_examples=50, deadline=None)
@given(networks, density, st.integers(0, 999))
def test_a_random_mask_keeps_the_density_of_each_layer(parameters, kept, seed):
    ticket = random_mask(parameters, kept, seed)
    control = masks.random_like(np.random.default_rng(seed), ticket)
    masks.check_matches(control, parameters)
    assert {name: loop_count(leaf) for name, leaf in control.items()} == masks.counts(ticket)[0]


def test_a_random_mask_is_uniform_over_the_places():
    ticket = {"kernel_0": np.arange(12).reshape(3, 4) < 3}
    rng = np.random.default_rng(0)
    draws = np.array([masks.random_like(rng, ticket)["kernel_0"] for _ in range(4000)])
    np.testing.assert_allclose(draws.mean(0), 1 / 4, atol=5 * np.sqrt(1 / 4 * 3 / 4 / 4000))
    assert len({draw.tobytes() for draw in draws}) == 12 * 11 * 10 // 6


def test_random_controls_are_functions_of_the_generator():
    parameters = network()
    mask = random_mask(parameters, 0.5)
    backwards = dict(reversed(mask.items()))
    a, b, c = (
        masks.permute_weights(rng, parameters, m, masks.random_like(rng, m))
        for rng, m in zip(map(np.random.default_rng, (1, 1, 2)), (mask, backwards, mask), strict=True)
    )
    assert all((a[name] == b[name]).all() for name in a)
    assert any((a[name] != c[name]).any() for name in a)


def multiset(values):
    return Counter(values.tolist())


@settings(max_examples=50, deadline=None)
@given(networks, density, st.integers(0, 999), st.booleans())
def test_permuted_controls_keep_biases_and_the_multiset_of_weights(parameters, kept, seed, also_mask):
    rng = np.random.default_rng(seed)
    mask = random_mask(parameters, kept, seed)
    before = {name: value.copy() for name, value in parameters.items()}
    onto = masks.random_like(rng, mask) if also_mask else mask
    got = masks.permute_weights(rng, parameters, mask, onto if also_mask else None)
    assert set(got) == set(parameters)
    for name, value in got.items():
        np.testing.assert_array_equal(parameters[name], before[name])
        if name in mask:
            assert multiset(value[onto[name]]) == multiset(before[name][mask[name]])
            assert not value[~onto[name]].any()
            assert value.dtype == np.float32
        else:
            np.testing.assert_array_equal(value, before[name])
            assert not np.shares_memory(value, parameters[name])


def test_every_weight_reaches_every_kept_place_equally_often():
    parameters = {"kernel_0": np.array([[1, 2], [3, 4]], np.float32), "bias_0": np.zeros(2, np.float32)}
    mask = {"kernel_0": np.array([[True, False], [True, True]])}
    rng = np.random.default_rng(0)
    draws = [masks.permute_weights(rng, parameters, mask)["kernel_0"].ravel().tolist() for _ in range(3000)]
    counts = Counter(map(tuple, draws))
    orders = [(1, 3, 4), (1, 4, 3), (3, 1, 4), (3, 4, 1), (4, 1, 3), (4, 3, 1)]
    assert set(counts) == {(a, 0, b, c) for a, b, c in orders}
    assert min(counts.values()) > 3000 / 6 - 5 * np.sqrt(3000 * 5 / 36)


def test_the_weights_of_a_dense_network_are_permuted_too():
    parameters = network()
    got = masks.permute_weights(np.random.default_rng(0), parameters, {})
    for name in SHAPES:
        assert multiset(got[name].ravel()) == multiset(parameters[name].ravel())
        assert (got[name] != parameters[name]).any()


def test_weights_go_only_onto_as_many_places():
    parameters = network()
    mask = masks.full(parameters)
    other = {**mask, "kernel_1": np.eye(4, 2, dtype=bool)}
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="kernel_1: 8 and 2"):
        masks.permute_weights(rng, parameters, mask, other)
    with pytest.raises(ValueError, match="kernel_1: 2 and 8"):
        masks.permute_weights(rng, parameters, other, {})
    with pytest.raises(ValueError, match="kernel_1: no mask"):
        masks.permute_weights(rng, parameters, {"kernel_0": mask["kernel_0"]})


def test_the_inputs_that_keep_a_weight():
    kept = np.array([[False, True], [False, False], [True, True]])
    critic = {"q1/kernel_0": ~kept, "q0/kernel_0": kept, "q0/kernel_1": np.zeros((2, 1), bool)}
    got = masks.kept_inputs(critic)
    assert list(got) == ["q0/kernel_0", "q1/kernel_0"]
    assert got["q0/kernel_0"].tolist() == [True, False, True]
    assert got["q1/kernel_0"].tolist() == [True, True, False]
    assert list(masks.kept_inputs({"kernel_0": kept, "kernel_10": kept})) == ["kernel_0"]


def test_rescaled_weights_sum_to_the_variance_of_a_dense_layer():
    parameters = network({"kernel_0": (400, 300), "kernel_1": (300, 20)})
    mask = random_mask(parameters, 0.1)
    mask["kernel_0"][:100] = False
    live = {"kernel_0": np.arange(400) >= 100}
    scaled = masks.rescaled(parameters, mask, live)
    for name, rows in (("kernel_0", 300), ("kernel_1", 300)):
        kept = loop_count(mask[name])
        factor = (rows * parameters[name].shape[1] / kept) ** 0.5
        np.testing.assert_allclose(scaled[name], parameters[name] * factor, rtol=1e-6)
        assert scaled[name].dtype == np.float32
        # Inputs of variance 1 where they live: the variance of sums, over units.
        dense, sparse = (
            (w[-rows:] ** 2).sum(0).mean() for w in (parameters[name], scaled[name] * mask[name])
        )
        assert abs(sparse / dense - 1) < 0.1
    for name in ("bias_0", "bias_1"):
        assert np.array_equal(scaled[name], parameters[name])


def test_nothing_is_rescaled_without_a_mask_nor_where_it_keeps_nothing():
    parameters = network()
    for mask in ({}, masks.full(parameters), {"kernel_0": np.zeros((3, 4), bool)}):
        scaled = masks.rescaled(parameters, mask)
        assert all(np.array_equal(scaled[name], value) for name, value in parameters.items())
