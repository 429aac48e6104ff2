"""Masks: what is pruned stays zero, and what is kept learns as if the rest were not there."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from support import sac_reference as reference
from support.agents import (
    CLIPPED,
    CONFIG,
    assert_close_trees,
    assert_equal_trees,
    assert_pruned,
    lived_in_state,
    make,
    one_update,
    random_masks,
    random_sample,
    reference_update,
    to_numpy,
)

from engine.algorithms.base import densities, map_weights, masked, pruned_networks
from engine.sparse import masks

NETWORKS = ("actor", "critic")


def full_masks(state):
    return {name: masks.full(state.parameters[name]) for name in NETWORKS}


def test_applying_masks_zeroes_weights_targets_and_moments_and_nothing_else():
    state = lived_in_state(make(CLIPPED))
    chosen = random_masks(state)
    got = masked(state, chosen)
    assert_pruned(got, chosen)
    before, after = to_numpy(state), to_numpy(got)
    for network, name in (("actor", "actor"), ("critic", "critic"), ("critic", "target_critic")):
        for leaf, value in after[name].items():
            kept = chosen[network].get(leaf, np.ones(value.shape, bool))
            assert np.array_equal(value[kept], before[name][leaf][kept])
    for network in NETWORKS:
        assert after["memory"][network][0] == before["memory"][network][0] > 0
        pairs = zip(after["memory"][network][1:], before["memory"][network][1:], strict=True)
        for (now, then), leaf in itertools.product(pairs, before[network]):
            kept = chosen[network].get(leaf, np.ones(now[leaf].shape, bool))
            assert np.array_equal(now[leaf][kept], then[leaf][kept])
    for rest in ("seed", "updates", "env_steps", "normalizer"):
        assert_equal_trees(getattr(got, rest), getattr(state, rest))
    for tree in ("parameters", "optimizer"):
        assert_equal_trees(getattr(got, tree)["temperature"], getattr(state, tree)["temperature"])
    assert_equal_trees(got.masks, chosen)
    assert_equal_trees(masked(state.replace(masks=got.masks)), got)


def test_masks_that_are_left_out_or_empty_are_dense_and_change_nothing():
    state = lived_in_state(make(CONFIG))
    for given in ({}, {"actor": {}}, {"critic": {}, "actor": {}}, full_masks(state), None):
        assert_equal_trees(masked(state, given), state)
    sparse = masked(state, random_masks(state))
    assert_equal_trees(
        masked(sparse, {"actor": random_masks(state)["actor"]}).masks["critic"], state.masks["critic"]
    )


def test_masks_that_do_not_fit_name_the_network():
    state = lived_in_state(make(CONFIG))
    wrong = full_masks(state)
    wrong["critic"]["q1/kernel_0"] = np.ones((2, 2), bool)
    with pytest.raises(ValueError, match=r"critic: .*q1/kernel_0: mask \(2, 2\), parameters \(5, 5\)"):
        masked(state, wrong)
    with pytest.raises(ValueError, match="masks of temperature; prunable are actor, critic"):
        masked(state, {"temperature": {}})


def test_densities_and_the_networks_that_are_pruned():
    state = lived_in_state(make(CONFIG))
    assert pruned_networks(state) == ()
    assert densities(state) == {"actor": 1, "critic": 1}
    chosen = {"critic": random_masks(state)["critic"]}
    state = masked(state, chosen)
    assert pruned_networks(state) == ("critic",)
    kept = np.concatenate([leaf.ravel() for leaf in chosen["critic"].values()])
    assert densities(state) == {"actor": 1, "critic": pytest.approx(kept.mean())}


def test_every_tree_of_a_networks_weights_is_mapped():
    state = lived_in_state(make(CONFIG))
    got = map_weights(
        state, lambda network, tree: {k: v + (1 if network == "actor" else 2) for k, v in tree.items()}
    )
    for network, more in (("actor", 1), ("critic", 2)):
        pairs = [(got.parameters, state.parameters)]
        pairs += [(got.targets, state.targets)] if network == "critic" else []
        trees = [(after[network], before[network]) for after, before in pairs]
        after, before = got.optimizer[network], state.optimizer[network]
        for now, then in [*trees, (after.mu, before.mu), (after.nu, before.nu)]:
            assert_equal_trees(now, {name: leaf + more for name, leaf in then.items()})
    assert set(got.targets) == {"critic"}
    assert_equal_trees(got.parameters["temperature"], state.parameters["temperature"])


@pytest.mark.parametrize("density", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("config", [CONFIG, CLIPPED], ids=["plain", "clipped"])
def test_pruned_weights_stay_exactly_zero_after_every_update(config, density):
    algorithm = make(config)
    state = lived_in_state(algorithm)
    chosen = random_masks(state, seed=1, density=density)
    # A leaf of its own: one critic's layer is cut off altogether.
    chosen["critic"]["q1/kernel_1"][...] = False
    state = masked(state, chosen)
    start = to_numpy(state)
    for step in range(25):
        state, metrics = one_update(algorithm, state, random_sample(60 + step))
        assert_pruned(state, chosen)
        assert np.isfinite(list(metrics.values())).all()
    # What is kept does move: biases always, weights where there are any.
    after = to_numpy(state)
    for network in NETWORKS:
        assert (after[network]["bias_2" if network == "actor" else "q0/bias_2"] != 0).all()
        moved = {k: after[network][k] - start[network][k] for k in chosen[network]}
        assert (reference.norm(moved) > 1e-3) == any(kept.any() for kept in chosen[network].values())


def test_an_update_heals_pruned_entries_that_were_not_zero():
    algorithm = make(CONFIG)
    state = lived_in_state(algorithm)
    chosen = random_masks(state)
    got, _ = one_update(algorithm, state.replace(masks=jax.tree.map(np.asarray, chosen)), random_sample(61))
    assert_pruned(got, chosen)


def test_the_clipped_norm_counts_kept_gradients_only():
    config = dataclasses.replace(CONFIG, max_gradient_norm=50.0)
    algorithm = make(config)
    state = lived_in_state(algorithm)
    # The first input is pruned away, and its gradients would be by far the largest.
    chosen = full_masks(state)
    for network, prefix in (("actor", ""), ("critic", "q0/"), ("critic", "q1/")):
        chosen[network][f"{prefix}kernel_0"][0] = False
    sample = random_sample(62)
    sample.observation[:, 0] *= 1000
    state = masked(state, chosen)
    expected, _, norms = reference_update(config, to_numpy(state), sample)
    for every, kept in norms.values():
        assert kept < 40
        assert every > 60
    got, _ = one_update(algorithm, state, sample)
    assert_close_trees(to_numpy(got), expected)
    # Nothing was clipped.
    plain, _, _ = reference_update(CONFIG, to_numpy(state), sample)
    assert_close_trees(to_numpy(got), plain)


def test_a_masked_run_equals_the_smaller_network_that_the_mask_leaves():
    """Cut whole hidden units: the update is that of networks built without them."""
    algorithm = make(CONFIG)
    state = lived_in_state(algorithm)
    chosen = full_masks(state)
    gone = {"": [1, 3], "q0/": [0], "q1/": [2, 4]}
    for prefix, units in gone.items():
        network = chosen["critic" if prefix else "actor"]
        network[f"{prefix}kernel_0"][:, units] = False
        network[f"{prefix}kernel_1"][units] = False
    state = masked(state, chosen)

    def smaller(tree):
        """Without the units; their biases feed nothing."""
        out = {}
        for name, leaf in tree.items():
            prefix, slash, own = name.rpartition("/")
            axis = {"kernel_0": 1, "bias_0": 0, "kernel_1": 0}.get(own)
            out[name] = leaf if axis is None else np.delete(leaf, gone[prefix + slash], axis)
        return out

    def small_state(numpy):
        memory = dict(numpy["memory"])
        for network in NETWORKS:
            count, first, second = memory[network]
            memory[network] = count, smaller(first), smaller(second)
        cut = {name: smaller(numpy[name]) for name in ("actor", "critic", "target_critic")}
        return {**numpy, **cut, "memory": memory, "masks": {network: {} for network in NETWORKS}}

    expected = small_state(to_numpy(state))
    for step in range(5):
        sample = random_sample(80 + step)
        state, _ = one_update(algorithm, state, sample)
        expected, _, _ = reference_update(CONFIG, expected, sample)
    assert_close_trees(small_state(to_numpy(state)), expected, atol=1e-5)
