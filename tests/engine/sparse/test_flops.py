"""Operation counts against counting one by one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.networks import network, random_mask
from support.specs import box_spec

from engine.algorithms.base import masked
from engine.algorithms.sac import SACConfig
from engine.sparse import flops, masks
from engine.sparse.compact import compact


def counted(mask, parameters):
    """One by one: a multiplication and an addition for each kept weight, an addition for each bias."""
    operations = 0
    for name, leaf in parameters.items():
        for place in np.ndindex(leaf.shape):
            if "bias" in name:
                operations += 1
            elif mask[name][place]:
                operations += 2
    return operations


def twin(widths):
    return {**network(widths, 0, "q0/"), **network(widths, 1, "q1/")}


def test_operations_by_hand():
    parameters = network((2, 3, 2))
    assert flops.forward({}, parameters) == {"dense": 29, "masked": 29, "compact": 29}
    mask = masks.full(parameters)
    mask["kernel_0"][:, 0] = False  # a constant unit: four weights and a bias less
    assert flops.forward(mask, parameters) == {"dense": 29, "masked": 25, "compact": 20}


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(1, 5), min_size=2, max_size=4), st.sampled_from([0.0, 0.2, 0.6]), st.integers(0, 999)
)
def test_operations_equal_a_count_one_by_one(widths, density, seed):
    parameters = network(widths, seed)
    mask = random_mask(parameters, density, seed)
    small = compact(mask, parameters).parameters
    assert flops.forward(mask, parameters) == {
        "dense": counted(masks.full(parameters), parameters),
        "masked": counted(mask, parameters),
        "compact": counted(masks.full(small), small),
    }


def test_operations_of_a_twin_critic_are_those_of_both():
    parameters = twin((3, 4, 1))
    mask = masks.full(parameters)
    mask["q1/kernel_1"][1:] = False
    one, other = (
        flops.forward(masks.networks(mask)[prefix], masks.networks(parameters)[prefix])
        for prefix in ("q0/", "q1/")
    )
    assert other["compact"] < other["masked"] < one["masked"]
    assert flops.forward(mask, parameters) == {kind: one[kind] + other[kind] for kind in one}
    assert (
        flops.forward({}, parameters)["masked"]
        == flops.forward({}, parameters)["compact"]
        == 2 * one["dense"]
    )


def test_operations_refuse_a_mask_of_another_network():
    with pytest.raises(ValueError, match="kernel_1"):
        flops.forward({"kernel_0": np.ones((2, 3), bool)}, network((2, 3, 2)))


def test_operations_of_an_update_pass_by_pass():
    config = SACConfig(hidden=(4,), batch_size=17)
    algorithm = config.make(box_spec([-1, -1], [1, 1], (3,)), 1e-4)
    state = algorithm.init(0)
    chosen = {"actor": random_mask(state.parameters["actor"], 0.4)}
    chosen["critic"] = random_mask(state.parameters["critic"], 0.7)
    dense = {name: masks.full(state.parameters[name]) for name in chosen}
    expected = {}
    for kind, each in (("masked", chosen), ("dense", dense)):
        a, c = (counted(each[name], state.parameters[name]) for name in ("actor", "critic"))
        operations = 0
        for _ in range(17):
            operations += a + c  # target: next action, target critics
            operations += c + 2 * c  # critic loss: forward, gradients of inputs and of weights
            operations += a + c  # actor loss: action, its values
            operations += c + 2 * a  # gradients of the critics' inputs; of the actor's inputs and weights
        expected[kind] = operations
    got = algorithm.flops(masked(state, chosen))
    assert got["update"] == expected
    assert got["forward"] == flops.forward(chosen["actor"], state.parameters["actor"])
    assert algorithm.flops(state)["update"] == {"dense": expected["dense"], "masked": expected["dense"]}


def test_an_update_with_a_resting_actor_and_one_critic_in_its_loss_costs_less():
    config = SACConfig(hidden=(5, 4), batch_size=17, actor_period=3, actor_critics="first")
    algorithm = config.make(box_spec(-np.ones(2), np.ones(2), (3,)), 0.0)
    state = algorithm.init(0)
    mask = {"critic": random_mask(state.parameters["critic"], 0.5)}
    operations = 0
    weights, kept = masks.networks(state.parameters["critic"]), masks.networks(mask["critic"])
    first, both = counted(kept["q0/"], weights["q0/"]), counted(mask["critic"], state.parameters["critic"])
    actor = counted(masks.full(state.parameters["actor"]), state.parameters["actor"])
    for number in range(3):
        operations += 17 * (actor + both + 3 * both)  # targets and the critic loss
        operations += 17 * (3 * actor + 2 * first) * (number == 2)
    assert algorithm.flops(masked(state, mask))["update"]["masked"] == operations // 3
