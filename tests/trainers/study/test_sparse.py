"""Stage sparse: what its runs begin with, how their masks change, what is said of it, and resuming."""

import dataclasses
import json
import signal

import numpy as np
import pytest
from support.training import (
    Silent,
    artifact,
    assert_same,
    assert_same_run,
    keep_learners,
    order,
    tiny_config,
)

from engine.algorithms.td3 import TD3Config
from engine.sparse import masks, topology
from fastcollect.support.errors import ConfigError
from trainers.config.sparse import SparseConfig
from trainers.run.observers import InterruptedRunError
from trainers.store.identity import Identity
from trainers.store.layout import network
from trainers.store.rows import read_rows
from trainers.study import sparse, stages
from trainers.study.identities import sparse_identity

pytestmark = pytest.mark.usefixtures("one_launcher")
CONFIG = tiny_config()
"""32 updates in dispatches of 4."""
RIGL = SparseConfig(topology="rigl", actor_sparsity=0.5, critic_sparsity=0.4, topology_interval=6)
"""Of 32 updates of each network, 6, 12, 18, 24 and 30 change the topology."""


def run(path, chosen, config=CONFIG, resume=False, identity=None):
    identity = identity or sparse_identity(config, chosen)
    context = stages.Context(identity, ["test"], Silent(), resume, "title")
    return sparse.sparse(context, path, config, chosen)


def of(path, name, kind):
    return network(artifact(path, name), kind, "masks")


def rows(path):
    return read_rows(path / "topology.jsonl")


@pytest.fixture(scope="module")
def rigl(tmp_path_factory):
    """(Folder, summary) of an uninterrupted run, whose environments send no signal."""
    from support.training import launcher

    from trainers.run import training

    path = tmp_path_factory.mktemp("sparse") / "rigl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "new_launcher", lambda config: launcher())
        return path, run(path, RIGL)


def test_it_begins_with_the_mask_of_its_own_fresh_weights(rigl):
    path, _ = rigl
    first = artifact(path, "initial")
    for kind, sparsity in (("actor", 0.5), ("critic", 0.4)):
        # The fresh weights where they are kept; zeros are never among the largest.
        weights, mask = network(first, kind), network(first, kind, "masks")
        kept = topology.initial(weights, sparsity, "erk")
        assert masks.counts(kept) == masks.counts(mask)
        for leaf, values in mask.items():
            np.testing.assert_array_equal(values, weights[leaf] != 0)
            if leaf in kept:
                np.testing.assert_array_equal(values, kept[leaf])


def test_every_change_is_a_row_that_says_what_the_masks_say(rigl):
    path, _ = rigl
    found = rows(path)
    # After the dispatches of 4 that hold the updates 6, 12, 18, 24 and 30, two in each round.
    assert [row["updates"] for row in found] == [0, 8, 12, 20, 24, 32]
    assert found[0]["actor_changed"] == found[0]["critic_changed"] == 0
    for kind in ("actor", "critic"):
        first, last = of(path, "initial", kind), of(path, "final", kind)
        assert masks.counts(first) == masks.counts(last)
        shared = sum(int((first[leaf] & last[leaf]).sum()) for leaf in first)
        either = sum(int((first[leaf] | last[leaf]).sum()) for leaf in first)
        assert found[-1][f"{kind}_overlap_first"] == pytest.approx(shared / either)
        assert shared < either
        for leaf, kept in last.items():
            assert found[-1][f"{kind}_layers"][leaf] == pytest.approx(kept.mean())
        # A quarter of the cosine's half at first, ever less after it.
        assert all(0 < row[f"{kind}_changed"] <= 0.5 for row in found[1:3])


def test_the_summary_counts_the_operations_of_updates_and_growth(rigl):
    _, summary = rigl
    flops, first = summary["flops"], (6 * 8, 8 * 4)
    dense = {"actor": 2 * sum(first) + 12, "critic": 2 * 2 * (8 * 8 + 8) + 2 * 9}
    masked = {
        "actor": 2 * sum(summary["kept_weights"]["actor"].values()) + 12,
        "critic": 2 * sum(summary["kept_weights"]["critic"].values()) + 2 * 9,
    }
    batch, growths = CONFIG.algorithm.batch_size, 5
    update = {k: batch * (4 * c["actor"] + 6 * c["critic"]) for k, c in (("d", dense), ("m", masked))}
    growth = growths * batch * sum(dense[kind] - masked[kind] for kind in dense)
    assert flops["training"] == {"dense": 32 * update["d"], "masked": 32 * update["m"] + growth}
    assert flops["update"] == {"dense": update["d"], "masked": update["m"]}


@pytest.mark.parametrize(("batch", "step", "signum"), [(2, 41, signal.SIGINT), (2, 60, signal.SIGTERM)])
def test_interrupted_within_its_schedule_it_equals_an_uninterrupted_run(batch, step, signum, tmp_path, rigl):
    expected, _ = rigl
    config = tiny_config(env_kwargs=order(tmp_path / "order", batch, step, signum))
    identity = Identity(kind="sparse", config={"stage": "sparse"})
    with pytest.raises(InterruptedRunError):
        run(tmp_path / "run", RIGL, config, identity=identity)
    before = len(rows(tmp_path / "run"))
    run(tmp_path / "run", RIGL, config, resume=True, identity=identity)
    assert 1 < before < len(rows(tmp_path / "run"))
    assert_same_run(tmp_path / "run", expected)
    strip = [{k: v for k, v in row.items() if k != "wall_seconds"} for row in rows(tmp_path / "run")]
    assert strip == [{k: v for k, v in row.items() if k != "wall_seconds"} for row in rows(expected)]


def test_gradual_pruning_begins_dense_and_ends_at_the_exact_counts(tmp_path):
    chosen = dataclasses.replace(RIGL, topology="gmp", topology_begin=0.25, topology_end=0.75)
    summary = run(tmp_path / "run", chosen)
    for kind, sparsity in (("actor", 0.5), ("critic", 0.4)):
        assert all(mask.all() for mask in of(tmp_path / "run", "initial", kind).values())
        kept = topology.initial(network(artifact(tmp_path / "run", "initial"), kind), sparsity, "erk")
        assert masks.counts(of(tmp_path / "run", "final", kind)) == masks.counts(kept)
    # After 8 and before 24 updates every 6, and at 24: 14, 20, 24.
    assert [row["updates"] for row in rows(tmp_path / "run")] == [0, 16, 20, 24]
    assert summary["flops"]["update"]["masked"] < summary["flops"]["training"]["masked"] / 32
    assert summary["flops"]["training"]["masked"] < summary["flops"]["training"]["dense"]


@pytest.mark.parametrize("name", ["static", "small"])
def test_a_topology_that_stays_has_the_mask_that_it_began_with(name, tmp_path):
    run(tmp_path / "run", dataclasses.replace(RIGL, topology=name))
    first, last = (artifact(tmp_path / "run", each) for each in ("initial", "final"))
    kept = {key: value for key, value in first.items() if key.startswith("masks/")}
    assert_same({key: last[key] for key in kept}, kept)
    assert not (tmp_path / "run" / "topology.jsonl").exists()
    if name == "small":
        # 3 of 8 units: 6 x 3 + 3 x 4 of 80, and 40 are to be left; 4 units have exactly that.
        assert {leaf: mask.any(0).sum() for leaf, mask in of(tmp_path / "run", "final", "actor").items()} == {
            "kernel_0": 4,
            "kernel_1": 4,
        }
        assert_same(
            {k: v for k, v in first.items() if k.startswith("targets/critic/")},
            {
                k.replace("parameters/", "targets/"): v
                for k, v in first.items()
                if k.startswith("parameters/critic/")
            },
        )


def test_a_frozen_network_keeps_its_mask_while_the_other_evolves(tmp_path):
    run(tmp_path / "run", dataclasses.replace(RIGL, topology="set", frozen=("actor",)))
    same = {
        kind: all(
            (of(tmp_path / "run", "initial", kind)[leaf] == mask).all()
            for leaf, mask in of(tmp_path / "run", "final", kind).items()
        )
        for kind in ("actor", "critic")
    }
    assert same == {"actor": True, "critic": False}


def test_a_delayed_actor_evolves_by_its_own_updates(tmp_path):
    config = tiny_config(algorithm=TD3Config(hidden=(8,), batch_size=8, actor_period=2), algo="td3")
    run(tmp_path / "run", RIGL, config)
    found = rows(tmp_path / "run")
    # 32 updates of the critics, 16 of the actor: 6 and 12 are the run's 12 and 24.
    assert [row["updates"] for row in found if "critic_changed" in row] == [0, 8, 12, 20, 24, 32]
    assert [row["updates"] for row in found if "actor_changed" in row] == [0, 12, 24]


def test_every_layer_that_would_be_empty_is_named_before_there_is_a_folder(tmp_path, monkeypatch):
    made = keep_learners(monkeypatch)
    chosen = SparseConfig(topology="static", actor_sparsity=0.99, critic_sparsity=0.999)
    chosen = dataclasses.replace(chosen, distribution="global")
    with pytest.raises(ConfigError) as caught:
        run(tmp_path / "run", chosen)
    # One weight of the actor is left, and none of the critics.
    actor, critic = caught.value.problems
    assert "the actor of sparsity 0.99: " in actor
    assert "kernel_0" in actor or "kernel_1" in actor
    assert "q0/kernel_0, q0/kernel_1, q1/kernel_0, q1/kernel_1" in critic
    assert not (tmp_path / "run").exists()
    assert not made


def test_the_manifest_is_a_configuration_of_the_same_run(rigl):
    path, _ = rigl
    assert json.loads((path / "index.jsonl").read_text().splitlines()[-1])["kind"] == "sparse"
