"""What a dense run leaves and what each round of a ticket begins with, part by part."""

import os
import signal

import numpy as np
import pytest
from support.reference import reference_run
from support.stages import (
    CONFIG,
    LAYERS,
    Starts,
    StopError,
    assert_same_but_temperature,
    files,
    masked,
    masks_of,
    part,
    pretend,
    problems_of,
    run_dense,
    run_ticket,
    shapes,
    zeros,
)
from support.tiny_env import spec
from support.training import Silent, artifact, assert_same, assert_same_run, evaluations, tiny_config

from trainers.config.training import PruneConfig, RewindConfig
from trainers.run.observers import InterruptedRunError
from trainers.store.manifest import read_manifest, read_summary
from trainers.study import stages
from trainers.study.controls import CONTROLS, VARIANTS

pytestmark = pytest.mark.usefixtures("one_launcher")


def test_a_dense_run_leaves_everything_that_a_ticket_needs(dense):
    names = {each.stem for each in (dense / "artifacts").glob("*.npz")}
    assert {name.rstrip("~") for name in names} == {
        *("initial", "anchor", "best", "final", "saliency", "anchor-replay", "policy")
    }
    steps = {name: int(artifact(dense, name)["env_steps"]) for name in ("initial", "anchor", "final")}
    assert steps == {"initial": 0, "anchor": 128, "final": 320}
    assert {name: v.shape for name, v in artifact(dense, "saliency").items()} == {
        "observation": (100, 8, 6),
        "next_observation": (100, 8, 6),
        "action": (100, 8, 2),
        "rewards": (100, 8, 1),
        "steps": (100, 8),
        "terminated": (100, 8),
    }
    assert artifact(dense, "anchor-replay")["replay/reward"].shape == (128,)
    assert read_manifest(dense)["run"]["kind"] == "dense"


def test_a_dense_run_begins_with_the_fresh_weights_of_its_seed(dense):
    state = CONFIG.algorithm.make(spec(8), CONFIG.variance_floor).init(CONFIG.seed)
    expected = {
        f"{part}/{kind}/{name}": np.asarray(value)
        for part, trees in (("parameters", state.parameters), ("targets", state.targets))
        for kind, tree in trees.items()
        for name, value in tree.items()
    }
    initial = artifact(dense, "initial")
    assert_same({name: initial[name] for name in expected}, expected)
    assert not any(v.any() for v in part(initial, "optimizer/").values())
    kernel = "parameters/actor/kernel_0"
    assert (artifact(dense)[kernel] != expected[kernel]).all()


def test_an_anchor_beyond_the_budget_is_refused_and_nothing_is_left(tmp_path):
    config = tiny_config(anchor_steps=321)
    assert problems_of(run_dense, tmp_path / "run", config) == (
        "anchor_steps is 321; allowed: 1 to env_steps",
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [1, 2])
def test_a_round_begins_with_the_anchor_times_its_mask(number, dense, ticket):
    path, starts = ticket
    name = f"round-{number}"
    assert_same(starts.arrays[name], masked(artifact(dense, "anchor"), masks_of(path / name)))
    assert_same({f"replay/{k}": v for k, v in starts.replay[name].items()}, artifact(dense, "anchor-replay"))
    assert not starts.random[name]


def test_a_round_has_the_bits_of_a_plain_loop_from_the_anchor(dense, ticket):
    replay = {name.removeprefix("replay/"): v for name, v in artifact(dense, "anchor-replay").items()}
    for name in ("round-1", "round-2"):
        masks = masks_of(ticket[0] / name)
        expected = reference_run(CONFIG, artifact(dense, "anchor"), masks, replay)
        assert_same(artifact(ticket[0] / name), expected)


def test_a_round_is_evaluated_at_the_multiples_that_its_dense_run_is(dense, ticket):
    grid = [0, 48, 96, 144, 192, 240, 288, 320]
    assert [row["env_steps"] for row in evaluations(dense)] == grid
    # The anchor, at 128, lies between two of them.
    assert [row["env_steps"] for row in evaluations(ticket[0] / "round-1")] == grid[3:]


def test_pruned_weights_targets_and_moments_stay_zero_to_the_end(ticket):
    path, _ = ticket
    for name in ("round-1", "round-2", "round-2-permuted-mask", "round-2-random-mask"):
        final, masks = artifact(path / name), masks_of(path / name)
        assert_same(final, masked(final, masks))
        mask = masks["actor"]["kernel_0"]
        assert (final["parameters/actor/kernel_0"][mask] != 0).all()


def test_a_summary_counts_the_kept_weights_that_lead_from_an_input_to_an_output(ticket):
    path, _ = ticket
    masks, summary = masks_of(path / "round-2"), read_summary(path / "round-2")
    for kind, prefixes in (("actor", [""]), ("critic", ["q0/", "q1/"])):
        for prefix in prefixes:
            first, last = (masks[kind][f"{prefix}kernel_{i}"] for i in range(2))
            hidden = first.any(0) & last.any(1)
            counted = [summary["effective_weights"][kind][f"{prefix}kernel_{i}"] for i in range(2)]
            assert counted == [first[:, hidden].sum(), last[hidden].sum()]
            kept = [summary["kept_weights"][kind][f"{prefix}kernel_{i}"] for i in range(2)]
            assert kept == [first.sum(), last.sum()]


CHOICES = [
    ("parameters", "anchor"),
    ("parameters", "initial"),
    ("parameters", "final"),
    ("optimizer", "fresh"),
    ("temperature", "fresh"),
    ("targets", "online"),
    ("normalizer", "fresh"),
    ("normalizer", "final"),
    ("replay", "fresh"),
    ("step", "zero"),
]


@pytest.mark.parametrize(("field", "choice"), CHOICES)
def test_every_choice_of_the_rewind_matrix_does_what_it_names(field, choice, dense, tmp_path, monkeypatch):
    """Alone; in the second round, as there the round before is not the dense run."""
    starts = Starts(monkeypatch, stop_at="round-2")
    real = stages.train

    def first_pretended(folder, *args, **kwargs):
        return (pretend if folder.path.name == "round-1" else real)(folder, *args, **kwargs)

    monkeypatch.setattr(stages, "train", first_pretended)
    with pytest.raises(StopError):
        run_ticket(tmp_path / "run", dense, matrix=RewindConfig(**{field: choice}))
    expected, before = artifact(dense, "anchor"), artifact(tmp_path / "run" / "round-1")
    replay = artifact(dense, "anchor-replay")
    changed = {}
    if field == "parameters":
        weights = {"anchor": expected, "initial": artifact(dense, "initial"), "final": before}[choice]
        changed = {**part(weights, "parameters/actor/"), **part(weights, "parameters/critic/")}
    elif field == "optimizer":
        changed = zeros(part(expected, "optimizer/"))
    elif field == "temperature":
        changed = zeros(part(expected, "optimizer/temperature/"))
        changed["parameters/temperature/log_temperature"] = np.log(np.float32(0.02))
    elif field == "targets":
        online = part(expected, "parameters/critic/")
        changed = {name.replace("parameters/", "targets/"): value for name, value in online.items()}
    elif field == "normalizer":
        changed = part(before, "normalizer/")
        changed = zeros(changed) if choice == "fresh" else changed
    elif field == "step":
        changed = zeros({name: expected[name] for name in ("env_steps", "updates")})
    differ = [name for name, value in changed.items() if value.tobytes() != expected[name].tobytes()]
    assert differ or field == "replay" or choice == "anchor"
    expected = masked({**expected, **changed}, masks_of(tmp_path / "run" / "round-2"))
    assert_same_but_temperature(starts.arrays["round-2"], expected)
    held = {f"replay/{name}": value for name, value in starts.replay["round-2"].items()}
    if field == "replay":
        replay = {name: value[:0] for name, value in replay.items()}
        replay |= {f"replay/{name}": np.zeros(4, np.int64) for name in ("written", "held")}
        replay["replay/newest"] = np.zeros((4, 6), np.float32)
    assert_same(held, replay)


def test_a_network_without_a_sparsity_is_not_pruned(dense, tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "train", pretend)
    run_ticket(tmp_path / "run", dense, PruneConfig(actor=0.4, rate=0.4))
    masks = masks_of(tmp_path / "run" / "round-1")
    assert masks["critic"] == {}
    assert shapes(masks["actor"]) == LAYERS["actor"]
    row = read_summary(tmp_path / "run")["rounds"][0]
    assert row["sparsity"] == {"actor": 0.4, "critic": 0.0}
    before, after = artifact(dense, "anchor"), artifact(tmp_path / "run" / "round-1")
    assert not after["parameters/actor/kernel_0"].all()
    assert before["parameters/critic/q0/kernel_0"].all()
    assert after["parameters/critic/q0/kernel_0"].all()


def test_every_run_of_a_study_has_the_same_budget(dense, ticket, transfer):
    rows = [
        read_summary(dense),
        *read_summary(ticket[0])["rounds"],
        *read_summary(transfer[0])["variants"],
    ]
    assert len(rows) == 1 + 2 + 6 + 6
    assert {(row["env_steps"], row["updates"]) for row in rows} == {(320, 32)}
    names = [row["name"] for row in rows[1:]]
    assert names == ["ticket", "ticket", *CONTROLS, *VARIANTS]
    for name in ("round-1", "round-2-dense"):
        assert int(artifact(ticket[0] / name)["updates"]) == 32


def test_an_interrupted_ticket_skips_what_is_finished_and_equals_an_uninterrupted_one(
    dense, ticket, tmp_path
):
    seen = []

    def stop(row):
        seen.append(row["env_steps"])
        if seen.count(240) == 2:  # within the second round
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(InterruptedRunError):
        run_ticket(tmp_path / "run", dense, progress=Silent(stop))
    assert not (tmp_path / "run" / "summary.json").exists()
    assert not (tmp_path / "run" / "round-2" / "summary.json").exists()
    first = files(tmp_path / "run" / "round-1")
    progress = Silent()
    run_ticket(tmp_path / "run", dense, resume=True, progress=progress)
    assert files(tmp_path / "run" / "round-1") == first
    assert progress.rows[0]["env_steps"] > 224
    for name in ("round-1", "round-2"):
        assert_same_run(tmp_path / "run" / name, ticket[0] / name)
    rows = [read_summary(each)["rounds"][:2] for each in (tmp_path / "run", ticket[0])]
    for row in (*rows[0], *rows[1]):
        row.pop("wall_seconds"), row.pop("reached")
    assert rows[0] == rows[1]
