"""Topologies within updates: the mask changes in place of a step, and of nothing else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.agents import (
    BATCH,
    CONFIG,
    OBSERVATIONS,
    assert_close_trees,
    assert_equal_trees,
    assert_pruned,
    close,
    lived_in_state,
    make,
    one_update,
    random_sample,
    raw_batches,
)
from support.tiny_algorithm import TinyConfig
from support.topologies import moved, share

from engine.algorithms import base
from engine.sparse import masks
from engine.sparse.topology import Topology, initial
from trainers.store.layout import from_arrays, to_arrays

COUNT = 6
ALGORITHM = make(CONFIG)
TINY = make(TinyConfig(hidden=(5, 4), batch_size=BATCH))
NETWORKS = ("actor", "critic")


def sparse(algorithm, sparsity=0.5, seed=3, **topologies):
    """A state in the middle of its life whose networks have these topologies."""
    state = lived_in_state(algorithm, seed)
    chosen = {name: initial(state.parameters[name], sparsity, "erk") for name in NETWORKS}
    return base.masked(state, chosen).replace(topology=topologies)


def mixed(interval=2, end=10_000, **changes):
    """By chance in the actor, by gradients in the critic."""
    methods = {"actor": "set", "critic": "rigl"}
    return {n: Topology.make(m, interval=interval, end=end, **changes) for n, m in methods.items()}


def learn(algorithm, state, batches):
    return base.learn(algorithm, state, batches, 1.0, base.pruned_networks(state))[0]


def counts(state):
    return {name: masks.counts(state.masks[name])[0] for name in NETWORKS}


@jax.jit
def _gradients(algorithm, state, sample):
    noise = jax.tree.map(lambda leaf: leaf[0], base.noises(algorithm, state, 1, sample.action.shape))
    return algorithm.gradients(state, sample, noise)


def slopes(before, after, sample):
    """Dense gradients of both networks; that of the actor's loss is taken when the critic has changed."""
    state = before.replace(normalizer=None, env_steps=None)
    later = state.replace(parameters={**state.parameters, "critic": after.parameters["critic"]})
    return {name: _gradients(ALGORITHM, s, sample)[name] for name, s in (("critic", state), ("actor", later))}


def assert_evolved(before, state, name, gradient, tick, end):
    """The new mask is the literal one, all else of the network stayed; returns how many weights moved."""
    changed = 0
    for leaf, kept in jax.tree.map(np.asarray, dict(before.masks[name])).items():
        got, weight = np.asarray(state.masks[name][leaf]), np.asarray(before.parameters[name][leaf])
        moving = int(np.count_nonzero(kept) * share(0.5, tick, end))
        stays, grown = moved(kept, weight, np.abs(gradient[leaf]), moving)
        assert np.flatnonzero(got).tolist() == sorted(stays + grown)
        changed += np.count_nonzero(got != kept)
        pairs = [
            (each.parameters[name], each.optimizer[name].mu, each.optimizer[name].nu)
            for each in (state, before)
        ]
        for after, old in zip(*pairs, strict=True):
            assert np.array_equal(after[leaf], np.where(got, old[leaf], 0))
            assert not np.asarray(after[leaf])[got & ~kept].any()
        if name in state.targets:
            close(
                state.targets[name][leaf], np.where(got, 0.9 * before.targets[name][leaf] + 0.1 * weight, 0)
            )
    for leaf in before.parameters[name].keys() - before.masks[name].keys():
        assert np.array_equal(state.parameters[name][leaf], before.parameters[name][leaf])
    return changed


def test_a_due_tick_changes_the_mask_by_this_networks_gradient_and_leaves_out_its_step_alone():
    intervals, end = {"critic": 3, "actor": 4}, 12
    topologies = {name: Topology.make("rigl", interval=i, end=end) for name, i in intervals.items()}
    state, changed = sparse(ALGORITHM, **topologies), dict.fromkeys(NETWORKS, 0)
    for tick in range(1, 15):
        sample, before = random_sample(tick), state
        state, _ = one_update(ALGORITHM, before, sample)
        gradients = slopes(before, state, sample)
        due = {name: tick % interval == 0 and tick < end for name, interval in intervals.items()}
        for name in NETWORKS:
            assert state.topology[name].updates == tick
            if due[name]:
                changed[name] += assert_evolved(before, state, name, gradients[name], tick, end)
            else:
                assert_equal_trees(state.masks[name], before.masks[name])
        for name, moments in state.optimizer.items():
            assert moments.count == before.optimizer[name].count + (not due.get(name, False))
        assert_pruned(state, state.masks)
        if not any(due.values()):
            static, _ = one_update(ALGORITHM, before.replace(topology={}), sample)
            assert_close_trees(state.replace(topology={}), static, rtol=1e-5)
    assert min(changed.values()) > 4


@pytest.mark.slow
def test_thousands_of_evolutions_keep_every_count_and_go_on_bit_for_bit_from_arrays():
    batches, state = raw_batches(70, COUNT), sparse(TINY, **mixed())
    expected, first = counts(state), base.copied(state)
    for _ in range(200):
        state = learn(TINY, state, batches)
    # The template's own numbers are of another run.
    restored = from_arrays(to_arrays(state), sparse(TINY, seed=9, **mixed(interval=7)), "here")
    for _ in range(100):
        state, restored = (learn(TINY, each, batches) for each in (state, restored))
    assert_equal_trees(restored, state)
    assert counts(state) == expected
    assert_pruned(state, state.masks)
    for name in NETWORKS:
        assert state.topology[name].updates == 300 * COUNT
        assert state.optimizer[name].count == first.optimizer[name].count + 150 * COUNT
        assert not masks.nested(state.masks[name], first.masks[name])


@pytest.mark.slow
def test_how_updates_are_grouped_changes_no_mask():
    batches = raw_batches(71, 2 * COUNT)
    whole = learn(TINY, sparse(TINY, **mixed()), batches)
    state = sparse(TINY, **mixed())
    for part in (slice(0, COUNT), slice(COUNT, 2 * COUNT)):
        state = learn(TINY, state, jax.tree.map(lambda leaf, part=part: leaf[part], batches))
    assert_equal_trees((state.masks, state.topology), (whole.masks, whole.topology))
    assert_close_trees(state, whole, rtol=1e-5)


def test_chance_comes_from_the_seed_alone():
    def found(seed):
        state = sparse(TINY, **mixed()).replace(seed=jnp.uint32(seed))
        masks = learn(TINY, state, raw_batches(72, COUNT)).masks["actor"]
        return np.concatenate([np.ravel(masks[leaf]) for leaf in sorted(masks)])

    assert np.array_equal(found(5), found(5))
    assert not np.array_equal(found(5), found(6))


def test_nothing_evolves_after_the_end():
    state = sparse(TINY, **mixed(end=2 * COUNT, drop_share=1.0))
    first = base.copied(state)
    for still in (False, False, True, True):
        before = base.copied(state)
        state = learn(TINY, state, raw_batches(73, COUNT))
        assert all(masks.nested(before.masks[name], state.masks[name]) for name in NETWORKS) == still
        assert counts(before) == counts(state)
    due = COUNT - 1  # not at the end itself
    assert state.optimizer["actor"].count == first.optimizer["actor"].count + 4 * COUNT - due


@pytest.mark.slow
def test_pruning_begins_with_full_masks_that_are_not_left_out():
    state = lived_in_state(TINY)
    final = masks.counts(initial(state.parameters["critic"], 0.6, "erk"))[0]
    topology = Topology.make("gmp", interval=4, begin=4, end=30, final=final)
    state = state.replace(topology={"critic": topology})
    assert base.pruned_networks(state) == ("critic",)
    seen = [base.copied(state)]
    for _ in range(36 // COUNT):
        state = learn(TINY, state, raw_batches(74, COUNT))
        seen.append(base.copied(state))
        assert_pruned(state, state.masks)
        assert masks.nested(seen[-1].masks["critic"], seen[-2].masks["critic"])
    left = [masks.counts(each.masks["critic"])[1] for each in seen]
    assert left[0] == masks.counts(masks.full(state.parameters["critic"]))[1]
    assert left[0] > left[3] > left[-1]
    assert masks.counts(state.masks["critic"])[0] == final
    assert masks.sparsity(state.masks["actor"]) == 0


@pytest.mark.slow
def test_a_population_evolves_as_its_members():
    members = [
        sparse(TINY, sparsity, seed, **mixed(interval, drop_share=drop))
        for sparsity, seed, interval, drop in ((0.3, 1, 2, 0.5), (0.5, 2, 3, 0.9), (0.7, 3, 5, 0.3))
    ]
    batches = [raw_batches(seed, COUNT) for seed in (80, 81, 82)]
    together, _, _ = base.learn(base.stacked([TINY] * 3), base.stacked(members), base.stacked(batches))
    for i, (member, batch) in enumerate(zip(members, batches, strict=True)):
        first = member.masks["critic"]["kernel_0"].tolist()
        single = learn(TINY, member, batch)
        got = jax.tree.map(lambda leaf, i=i: leaf[i], together)
        assert_equal_trees((got.masks, got.topology), (single.masks, single.topology))
        assert_close_trees(got, single, rtol=1e-5)
        assert single.masks["critic"]["kernel_0"].tolist() != first


@pytest.mark.parametrize("algorithm", [ALGORITHM, TINY], ids=["sac", "tiny"])
def test_a_state_without_topologies_is_what_it_was(algorithm):
    state = algorithm.init(0)
    fields = {field.name for field in dataclasses.fields(state)}
    names = to_arrays(state)
    assert {name.partition("/")[0] for name in names} == fields - {"topology", "averages"}
    assert (state.topology, state.averages) == ({}, {})
    assert from_arrays(names, state, "here").topology == {}
    core = state.replace(normalizer=None, env_steps=None)
    scaling = np.zeros(OBSERVATIONS, np.float32), np.ones(OBSERVATIONS, np.float32)
    for topology, branches in (({}, False), (mixed(), True)):
        inputs = algorithm, core.replace(topology=topology), raw_batches(90, 1), *scaling, np.float32(1)
        assert ("stablehlo.case" in base._compiled.lower(*inputs).as_text()) == branches
