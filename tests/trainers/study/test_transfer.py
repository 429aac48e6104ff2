"""The variants of a transfer: what each keeps of the ticket, and targets that it does not fit."""

import shutil

import numpy as np
import pytest
from support.stages import (
    TARGET,
    Starts,
    StopError,
    assert_same_but_temperature,
    at_step_zero,
    counts,
    masked,
    masks_of,
    pretend_anything,
    problems_of,
    run_dense,
    run_transfer,
)
from support.tiny_env import spec
from support.training import artifact, assert_same, tiny_config

from trainers.config.training import RewindConfig
from trainers.store import artifacts
from trainers.store.manifest import read_manifest
from trainers.study import stages
from trainers.study.controls import VARIANTS

pytestmark = pytest.mark.usefixtures("one_launcher")


def test_mask_anchor_is_the_rewound_ticket_at_step_zero(dense, ticket, transfer):
    anchor = artifact(dense, "anchor")
    expected = masked(at_step_zero(anchor, TARGET.seed, normalizer=anchor), masks_of(ticket[0]))
    assert_same_but_temperature(transfer[1].arrays["mask-anchor"], expected)
    assert_same(artifact(transfer[0] / "mask-anchor", "mask"), artifact(ticket[0], "mask"))


def test_mask_only_is_the_mask_on_what_the_targets_dense_run_begins_with(
    dense, ticket, transfer, tmp_path, monkeypatch
):
    starts = Starts(monkeypatch, stop_at="own")
    with pytest.raises(StopError):
        run_dense(tmp_path / "own", TARGET)
    initial = starts.arrays["own"]
    assert (
        initial["parameters/actor/kernel_0"] != artifact(dense, "initial")["parameters/actor/kernel_0"]
    ).all()
    assert_same(transfer[1].arrays["mask-only"], masked(initial, masks_of(ticket[0])))


def test_dense_finetuned_is_the_sources_final_state_without_a_mask(dense, transfer):
    final = artifact(dense)
    expected = at_step_zero(final, TARGET.seed, normalizer=final)
    assert_same_but_temperature(transfer[1].arrays["dense-finetuned"], expected)
    assert transfer[1].density["dense-finetuned"] == {"actor": 1.0, "critic": 1.0}


def test_anchor_dense_is_the_rewound_weights_without_a_mask(dense, transfer):
    anchor = artifact(dense, "anchor")
    expected = at_step_zero(anchor, TARGET.seed, normalizer=anchor)
    assert_same_but_temperature(transfer[1].arrays["anchor-dense"], expected)
    assert transfer[1].density["anchor-dense"] == {"actor": 1.0, "critic": 1.0}


def test_final_fresh_critic_is_the_sources_final_actor_with_the_targets_own_critic(dense, transfer):
    state = TARGET.algorithm.make(spec(8), TARGET.variance_floor).init(TARGET.seed)
    critic = {f"parameters/critic/{name}": np.asarray(v) for name, v in state.parameters["critic"].items()}
    final = artifact(dense)
    expected = at_step_zero({**final, **critic}, TARGET.seed, normalizer=final)
    assert_same_but_temperature(transfer[1].arrays["final-fresh-critic"], expected)
    assert transfer[1].density["final-fresh-critic"] == {"actor": 1.0, "critic": 1.0}


def test_a_transfers_random_mask_is_as_dense_in_each_layer(ticket, transfer):
    masks, mine = masks_of(ticket[0]), masks_of(transfer[0] / "random-mask")
    assert counts(mine) == counts(masks)
    assert all((mine[kind][leaf] != masks[kind][leaf]).any() for kind, leaf in counts(masks))
    both = transfer[1].arrays
    for kind, leaf in counts(masks):
        shared = mine[kind][leaf] & masks[kind][leaf]
        assert shared.any() or not shared.size or mine[kind][leaf].sum() < 8
        name = f"parameters/{kind}/{leaf}"
        np.testing.assert_array_equal(both["random-mask"][name][shared], both["mask-only"][name][shared])


def test_all_variants_begin_without_a_replay_and_act_at_random_first(transfer):
    assert list(transfer[1].replay) == list(VARIANTS)
    for name, replay in transfer[1].replay.items():
        assert not replay["written"].any()
        assert transfer[1].random[name]


def test_what_a_variant_leaves_to_chance_depends_on_no_other_variant(dense, ticket, tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "train", pretend_anything)
    for name, order in (("all", VARIANTS), ("others", ("random-mask", "mask-only"))):
        monkeypatch.setattr(stages, "VARIANTS", {each: VARIANTS[each] for each in order})
        run_transfer(tmp_path / name, ticket[0], dense)
    masks = [masks_of(tmp_path / each / "random-mask")["actor"] for each in ("all", "others")]
    assert_same(*masks)


def test_a_ticket_rewound_to_the_initial_weights_is_transferred_with_them(
    dense, ticket, tmp_path, monkeypatch
):
    starts = Starts(monkeypatch, stop_at="mask-anchor")
    with pytest.raises(StopError):
        run_transfer(tmp_path / "run", ticket[0], dense, matrix=RewindConfig(parameters="initial"))
    initial = artifact(dense, "initial")
    expected = masked(at_step_zero(initial, TARGET.seed), masks_of(ticket[0]))
    assert_same_but_temperature(starts.arrays["mask-anchor"], expected)


def test_a_target_of_other_sizes_is_an_error_with_the_leaf_and_both_shapes(dense, ticket, tmp_path):
    config = tiny_config(env="support.tiny_env:WiderEnv")
    problems = problems_of(run_transfer, tmp_path / "run", ticket[0], dense, config)
    first = [problem for problem in problems if "parameters/actor/kernel_0" in problem]
    assert len(first) == 1
    assert "(6, 8)" in first[0]
    assert "(8, 8)" in first[0]
    assert not (tmp_path / "run" / "summary.json").exists()


def test_a_mask_of_another_architecture_is_an_error_with_the_leaf_and_both_shapes(dense, ticket, tmp_path):
    other = tmp_path / "ticket"
    shutil.copytree(ticket[0], other)
    arrays = artifact(other, "mask")
    arrays["actor/kernel_0"] = np.ones((6, 9), bool)
    arrays["critic/q1/kernel_1"] = np.ones((9, 1), bool)
    artifacts.save(other, "mask", arrays, config_hash=read_manifest(other)["config_hash"])
    problems = problems_of(run_transfer, tmp_path / "run", other, dense)
    assert len(problems) == 2
    for problem, texts in zip(
        problems, [("kernel_0", "(6, 9)", "(6, 8)"), ("q1/kernel_1", "(9, 1)", "(8, 1)")], strict=True
    ):
        assert all(text in problem for text in (*texts, str(other)))
    assert not (tmp_path / "run").exists()
