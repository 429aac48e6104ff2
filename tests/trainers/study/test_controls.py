"""The matched controls of a ticket: what each keeps of its mask and of its weights."""

import numpy as np
import pytest
from support.stages import (
    CONFIG,
    LAYERS,
    assert_same_but_temperature,
    at_step_zero,
    counts,
    masked,
    masks_of,
    part,
    pretend,
    run_ticket,
    zeros,
)
from support.training import artifact, assert_same

from trainers.config.training import PruneConfig, RewindConfig
from trainers.store.layout import to_arrays
from trainers.study import controls, stages
from trainers.study.controls import CONTROLS
from trainers.study.rewind import Ticket, open_source

pytestmark = pytest.mark.usefixtures("one_launcher")


@pytest.mark.parametrize("name", ["permuted-weights", "permuted-mask"])
def test_permuting_moves_weights_within_their_layers_and_changes_nothing_else(name, dense, ticket):
    path, starts = ticket
    masks, mine = masks_of(path / "round-2"), masks_of(path / f"round-2-{name}")
    anchor, start = artifact(dense, "anchor"), starts.arrays[f"round-2-{name}"]
    assert counts(mine) == counts(masks)
    same = [np.array_equal(mine[kind][leaf], masks[kind][leaf]) for kind in LAYERS for leaf in masks[kind]]
    assert all(same) if name == "permuted-weights" else same.count(False) >= 4  # of six, two of them tiny
    kernels = set()
    for kind in LAYERS:
        for leaf, mask in masks[kind].items():
            names = [n for n in anchor if n.endswith(f"/{leaf}") and f"/{kind}/" in n]
            names.remove(f"masks/{kind}/{leaf}")
            assert len(names) == (3 if kind == "actor" else 4)  # weights, two moments, targets of critics
            kernels |= set(names)
            assert all(not start[n][~mine[kind][leaf]].any() for n in names)
            # What belongs to a weight goes with it.
            theirs, own = (
                [tuple(arrays[n][kept][i] for n in names) for i in range(int(mask.sum()))]
                for arrays, kept in ((anchor, mask), (start, mine[kind][leaf]))
            )
            assert sorted(own) == sorted(theirs)
            assert own != theirs or mask.size <= 8
    assert len(kernels) == 2 * 3 + 4 * 4
    others = {name for name in anchor.keys() - kernels if not name.startswith("masks/")}
    assert_same({k: start[k] for k in others}, {k: anchor[k] for k in others})
    assert_same(starts.replay[f"round-2-{name}"], starts.replay["round-2"])


def test_a_random_mask_is_as_dense_in_each_layer_and_holds_nothing_of_the_source(dense, ticket):
    path, starts = ticket
    masks, mine = masks_of(path / "round-2"), masks_of(path / "round-2-random-mask")
    start, initial = starts.arrays["round-2-random-mask"], artifact(dense, "initial")
    assert counts(mine) == counts(masks)
    for kind, leaf in counts(masks):
        assert not np.array_equal(mine[kind][leaf], masks[kind][leaf])
        weights = start[f"parameters/{kind}/{leaf}"]
        assert not weights[~mine[kind][leaf]].any()
        for name in ("initial", "anchor", "final"):
            theirs = artifact(dense, name)[f"parameters/{kind}/{leaf}"]
            assert (weights[mine[kind][leaf]] != theirs[mine[kind][leaf]]).all()
        # Drawn as fresh weights are: LeCun-normal, cut off at two standard deviations and rescaled.
        assert np.abs(weights).max() < 2.3 * LAYERS[kind][leaf][0] ** -0.5
    expected = masked(
        at_step_zero({**initial, **part(start, "parameters/actor"), **part(start, "parameters/critic")}, 3),
        mine,
    )
    assert_same_but_temperature(start, expected)
    assert starts.replay["round-2-random-mask"]["reward"].size == 0
    assert starts.random["round-2-random-mask"]


def test_a_random_mask_on_the_anchor_is_the_anchor_where_it_keeps_a_weight(dense, ticket):
    path, starts = ticket
    name = "round-2-random-mask-anchor"
    masks, mine = masks_of(path / "round-2"), masks_of(path / name)
    assert counts(mine) == counts(masks)
    assert any((mine[kind][leaf] != masks[kind][leaf]).any() for kind, leaf in counts(masks))
    assert_same(starts.arrays[name], masked(artifact(dense, "anchor"), mine))
    assert_same(starts.replay[name], starts.replay["round-2"])
    assert not starts.random[name]


def test_a_random_mask_with_a_fresh_actor_has_all_else_of_the_anchor(dense, ticket):
    path, starts = ticket
    name = "round-2-random-mask-fresh-actor"
    masks, mine, start = masks_of(path / "round-2"), masks_of(path / name), starts.arrays[name]
    assert counts(mine) == counts(masks)
    anchor = artifact(dense, "anchor")
    actor = part(start, "parameters/actor/")
    for saved in ("initial", "anchor", "final"):
        theirs = artifact(dense, saved)
        assert all((v[v != 0] != theirs[n][v != 0]).all() for n, v in actor.items())
    assert all(actor[f"parameters/actor/{leaf}"][mask].all() for leaf, mask in mine["actor"].items())
    expected = {**anchor, **actor, **zeros(part(anchor, "optimizer/actor/"))}
    assert_same(start, masked(expected, mine))
    assert_same(starts.replay[name], starts.replay["round-2"])
    assert not starts.random[name]


def test_fresh_weights_are_rescaled_by_the_density_of_their_layer_if_asked_for(dense, ticket):
    masks, source = masks_of(ticket[0] / "round-2"), open_source(str(dense))
    plain, scaled = (
        Ticket.begin(CONFIG, RewindConfig(rescale_fresh=rescale), source, masks) for rescale in (False, True)
    )
    for begin in (lambda t: t.fresh(masks), lambda t: t.rewound_but_actor(masks)):
        before, after = (to_arrays(begin(each).state) for each in (plain, scaled))
        anchored = begin(plain).replay is not None
        changed = {name for name in before if not np.array_equal(before[name], after[name])}
        kinds = ["actor"] if anchored else ["actor", "critic"]
        trees = [("parameters", kind) for kind in kinds] + ([] if anchored else [("targets", "critic")])
        assert changed == {f"{tree}/{kind}/{leaf}" for tree, kind in trees for leaf in masks[kind]}
        for tree, kind in trees:
            for leaf, mask in masks[kind].items():
                live = scaled.live[kind].get(leaf, np.ones(len(mask), bool))
                factor = (live.sum() * mask.shape[1] / mask.sum()) ** 0.5
                name = f"{tree}/{kind}/{leaf}"
                np.testing.assert_allclose(after[name], before[name] * factor, rtol=1e-6)


def test_the_dense_control_is_the_anchor_itself(dense, ticket):
    path, starts = ticket
    assert_same(starts.arrays["round-2-dense"], artifact(dense, "anchor"))
    assert_same(starts.replay["round-2-dense"], starts.replay["round-2"])
    assert starts.density["round-2-dense"] == {"actor": 1.0, "critic": 1.0}
    # What follows differs from the dense run: its episodes begin again.
    assert int(artifact(path / "round-2-dense")["env_steps"]) == 320


@pytest.mark.parametrize(
    ("matrix", "dense_in"), [(RewindConfig(), [2]), (RewindConfig(normalizer="final"), [1, 2])]
)
def test_rounds_share_the_dense_control_unless_it_begins_with_the_round_before(
    matrix, dense_in, dense, tmp_path, monkeypatch
):
    monkeypatch.setattr(stages, "train", pretend)
    summary = run_ticket(tmp_path / "run", dense, matrix=matrix, controls=(1, 2))
    trained = [(row["name"], row["round"]) for row in summary["rounds"]]
    expected = [(name, number) for number in (1, 2) for name in ("ticket", *CONTROLS)]
    assert trained == [(n, k) for n, k in expected if n != "dense" or k in dense_in]
    assert {folder.name for folder in (tmp_path / "run").glob("round-*-dense")} == {
        f"round-{number}-dense" for number in dense_in
    }


def test_what_a_control_leaves_to_chance_depends_on_no_other_control(dense, tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "train", pretend)
    for name, order in (("all", CONTROLS), ("others", ("random-mask", "dense", "permuted-mask"))):
        monkeypatch.setattr(controls, "CONTROLS", order)
        run_ticket(tmp_path / name, dense, PruneConfig(actor=0.4, rate=0.4), controls=(1,))
    for name in ("random-mask", "permuted-mask"):
        masks = [masks_of(tmp_path / each / f"round-1-{name}")["actor"] for each in ("all", "others")]
        assert_same(*masks)
