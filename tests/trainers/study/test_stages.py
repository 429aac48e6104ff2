"""The stages of a study: what every run inside begins with, which weights are pruned, what a resume skips."""

import os
import shutil
import signal

import jax
import numpy as np
import pytest
from support import tiny_env
from support.training import (
    Silent,
    artifact,
    assert_same,
    assert_same_run,
    launcher,
    one_launcher,
    tiny_config,
)

from engine.algorithms import sac
from engine.normalizer import Moments
from engine.sparse.saliency import mean_absolute_gradients
from fastcollect.support.errors import ConfigError
from trainers.config.training import PruneConfig, RewindConfig
from trainers.run import session as loop
from trainers.run.session import InterruptedRunError
from trainers.store import artifacts
from trainers.store.identity import dense_identity
from trainers.store.layout import unpack_masks
from trainers.store.manifest import read_manifest, read_summary
from trainers.study import controls, rewind, stages
from trainers.study import transfer as transfer_module
from trainers.study.controls import CONTROLS
from trainers.study.identities import study_root, ticket_identity, transfer_identity
from trainers.study.transfer import VARIANTS
from trainers.study.transfer import transfer as transfer_stage

pytestmark = pytest.mark.usefixtures("one_launcher")
__all__ = ["one_launcher"]

CONFIG = tiny_config()
TARGET = tiny_config(seed=4, env_kwargs=("scale=2.0",))
BOTH = PruneConfig(actor=0.6, critic=0.4, rate=0.4)
"""Two rounds: the actor to 0.4 and 0.6, the critic to 0.4 in the first."""
LAYERS = {
    "actor": {"kernel_0": (6, 8), "kernel_1": (8, 4)},
    "critic": {f"q{i}/kernel_{k}": shape for i in range(2) for k, shape in enumerate([(8, 8), (8, 1)])},
}


class StopError(Exception):
    """Enough was seen."""


class Starts:
    """What runs began with, by their folders' names: everything that the learner is, in arrays.

    stop_at: the folder whose run is to raise StopError then.
    """

    def __init__(self, patch, stop_at=None):
        self.arrays, self.replay, self.masks, self.random = {}, {}, {}, {}
        start = loop.Run.start_collector

        def seen(run, config, launcher, state):
            name, learner = run.folder.path.name, run.learner
            self.arrays[name] = to_arrays(learner.snapshot())
            self.replay[name] = learner.replay.get_state()
            self.masks[name] = {k: {n: np.asarray(m) for n, m in v.items()} for k, v in learner.masks.items()}
            self.random[name] = run._random_actions
            collector = start(run, config, launcher, state)
            if name == stop_at:
                collector.close()
                raise StopError
            return collector

        patch.setattr(loop.Run, "start_collector", seen)


def context(identity, resume=False, progress=None):
    return stages.Context(identity, ["test"], progress or Silent(), resume, "title")


def run_dense(path, config=CONFIG):
    return stages.dense(context(dense_identity(config)), path, config)


def run_ticket(path, dense, prune=BOTH, matrix=None, controls=(), config=CONFIG, **kwargs):
    source, matrix = rewind.open_source(str(dense)), matrix or RewindConfig()
    identity = ticket_identity(config, prune, matrix, source, study_root(path))
    return stages.ticket(context(identity, **kwargs), path, config, prune, matrix, source, controls)


def run_transfer(path, ticket, dense, config=TARGET, matrix=None):
    sources = [rewind.open_source(str(each)) for each in (ticket, dense)]
    matrix = matrix or RewindConfig()
    identity = transfer_identity(config, matrix, *sources, study_root(path))
    return transfer_stage(context(identity), path, config, matrix, *sources)


def pretend(folder, config, start, progress, *, resume=False):
    """In place of a training: weights that moved at random, where they are not pruned."""
    state = start.snapshot.state
    rng = np.random.default_rng(len(folder.path.name) + int(folder.path.name[-1], 36))

    def moved(tree):
        return {
            k: jax.numpy.asarray(v + 0.3 * rng.standard_normal(v.shape, np.float32)) for k, v in tree.items()
        }

    state = state.replace(actor=moved(state.actor), critic=moved(state.critic))
    moments = Moments(7, *rng.random((2, tiny_env.OBSERVATIONS)))
    snapshot = Snapshot(sac.apply_masks(state, start.masks), moments, 320, 32)
    artifacts.save(folder.path, "final", to_arrays(snapshot), config_hash=folder.config_hash)
    results = dict.fromkeys(("success_any", "success_last", "return_mean", "wall_seconds"), 0.0)
    folder.write_summary({**results, "env_steps": 320, "updates": 32, "best": {}, "reached": {}})


def pretend_anything(folder, *_, **__):
    """In place of a training of which only the start matters."""
    results = dict.fromkeys(("success_any", "success_last", "return_mean", "wall_seconds"), 0.0)
    folder.write_summary({**results, "env_steps": 320, "updates": 32, "best": {}, "reached": {}})


def files(path, but=(".lock",)):
    """Content and time of every file."""
    return {
        str(each.relative_to(path)): (each.read_bytes(), each.stat().st_mtime_ns)
        for each in path.rglob("*")
        if each.is_file() and each.name not in but
    }


def problems_of(function, *args, **kwargs):
    with pytest.raises(ConfigError) as caught:
        function(*args, **kwargs)
    return caught.value.problems


def masks_of(path):
    """{"actor", "critic"} -> the mask that a run folder keeps."""
    return unpack_masks(artifact(path, "mask"))


def shapes(mask):
    return {name: kept.shape for name, kept in mask.items()}


def kept(mask):
    return sum(int(part.sum()) for part in mask.values())


def masked(arrays, masks):
    """A state's arrays with pruned weights, targets and moments zero."""
    out = dict(arrays)
    places = {
        "actor": ("actor", "optimizer/actor/0/mu", "optimizer/actor/0/nu"),
        "critic": ("critic", "target_critic", "optimizer/critic/0/mu", "optimizer/critic/0/nu"),
    }
    for kind, prefixes in places.items():
        for prefix in prefixes:
            for leaf, mask in masks[kind].items():
                name = f"sac/{prefix}/{leaf}"
                out[name] = np.where(mask, out[name], np.float32(0))
    return out


def part(arrays, prefix):
    return {name: value for name, value in arrays.items() if name.startswith(prefix)}


def zeros(arrays):
    return {name: np.zeros_like(value) for name, value in arrays.items()}


def assert_same_but_temperature(got, expected):
    """As assert_same; the logarithm of a fresh temperature may differ in its last bit."""
    name = "sac/log_temperature"
    np.testing.assert_allclose(got[name], expected[name], rtol=1e-6)
    assert_same({k: v for k, v in got.items() if k != name}, {k: v for k, v in expected.items() if k != name})


def at_step_zero(weights, seed, normalizer=None):
    """These weights with everything else fresh."""
    out = dict(weights)
    out |= {
        name.replace("sac/critic", "sac/target_critic"): v for name, v in part(out, "sac/critic/").items()
    }
    out |= zeros(part(out, "sac/optimizer/"))
    out |= zeros({name: out[name] for name in ("env_steps", "updates", "sac/updates")})
    out["sac/log_temperature"] = np.log(np.float32(CONFIG.algorithm.initial_temperature))
    out["sac/seed"] = np.array(seed, np.uint32)
    return out | (zeros(part(out, "normalizer/")) if normalizer is None else part(normalizer, "normalizer/"))


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """A reproducible dense run."""
    path = tmp_path_factory.mktemp("stages") / "dense"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "new_launcher", lambda config: launcher())
        run_dense(path)
    return path


@pytest.fixture(scope="module")
def ticket(dense):
    """(Folder of a ticket of two rounds with controls of the last, starts of the runs inside)."""
    path = dense.parent / "ticket"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "new_launcher", lambda config: launcher())
        starts = Starts(patch)
        run_ticket(path, dense, controls=(2,))
    return path, starts


@pytest.fixture(scope="module")
def transfer(dense, ticket):
    """(Folder of a transfer to another environment with another seed, starts of the runs inside)."""
    path = dense.parent / "transfer"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "new_launcher", lambda config: launcher())
        starts = Starts(patch)
        run_transfer(path, ticket[0], dense)
    return path, starts


# Dense.


def test_a_dense_run_leaves_everything_that_a_ticket_needs(dense):
    names = {each.stem for each in (dense / "artifacts").glob("*.npz")}
    assert {name.rstrip("~") for name in names} == {
        *("initial", "anchor", "best", "final", "saliency", "anchor-replay")
    }
    steps = {name: int(artifact(dense, name)["env_steps"]) for name in ("initial", "anchor", "final")}
    assert steps == {"initial": 0, "anchor": 128, "final": 320}
    assert {name: v.shape for name, v in artifact(dense, "saliency").items()} == {
        "observation": (100, 8, 6),
        "next_observation": (100, 8, 6),
        "action": (100, 8, 2),
        "reward": (100, 8),
        "bootstrap": (100, 8),
    }
    assert artifact(dense, "anchor-replay")["replay/reward"].shape == (128,)
    assert read_manifest(dense)["run"]["kind"] == "dense"


def test_a_dense_run_begins_with_the_fresh_weights_of_its_seed(dense):
    state = sac.init(CONFIG.algorithm, CONFIG.seed, tiny_env.OBSERVATIONS, tiny_env.ACTIONS)
    expected = {
        f"sac/{kind}/{name}": np.asarray(value)
        for kind in ("actor", "critic", "target_critic")
        for name, value in getattr(state, kind).items()
    }
    initial = artifact(dense, "initial")
    assert_same({name: initial[name] for name in expected}, expected)
    assert not any(v.any() for v in part(initial, "sac/optimizer/").values())
    assert (artifact(dense)["sac/actor/kernel_0"] != expected["sac/actor/kernel_0"]).all()


def test_an_anchor_beyond_the_budget_is_refused_and_nothing_is_left(tmp_path):
    config = tiny_config(anchor_steps=321)
    assert problems_of(run_dense, tmp_path / "run", config) == (
        "anchor_steps is 321; allowed: 1 to env_steps",
    )
    assert list(tmp_path.iterdir()) == []


# What a round begins with.


@pytest.mark.parametrize("number", [1, 2])
def test_a_round_begins_with_the_anchor_times_its_mask(number, dense, ticket):
    path, starts = ticket
    name = f"round-{number}"
    assert_same(starts.arrays[name], masked(artifact(dense, "anchor"), masks_of(path / name)))
    assert_same({f"replay/{k}": v for k, v in starts.replay[name].items()}, artifact(dense, "anchor-replay"))
    assert not starts.random[name]


def test_pruned_weights_targets_and_moments_stay_zero_to_the_end(ticket):
    path, _ = ticket
    for name in ("round-1", "round-2", "round-2-permuted-mask", "round-2-random-mask"):
        final, masks = artifact(path / name), masks_of(path / name)
        assert_same(final, masked(final, masks))
        mask = masks["actor"]["kernel_0"]
        assert (final["sac/actor/kernel_0"][mask] != 0).all()


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
    real = stages.train
    starts = Starts(monkeypatch, stop_at="round-2")

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
        changed = {**part(weights, "sac/actor/"), **part(weights, "sac/critic/")}
    elif field == "optimizer":
        changed = zeros(part(expected, "sac/optimizer/"))
    elif field == "temperature":
        changed = zeros(part(expected, "sac/optimizer/temperature/"))
        changed["sac/log_temperature"] = np.log(np.float32(0.02))
    elif field == "targets":
        online = part(expected, "sac/critic/")
        changed = {name.replace("sac/critic", "sac/target_critic"): value for name, value in online.items()}
    elif field == "normalizer":
        changed = part(before, "normalizer/")
        changed = zeros(changed) if choice == "fresh" else changed
    elif field == "step":
        changed = zeros({name: expected[name] for name in ("env_steps", "updates", "sac/updates")})
    differ = [name for name, value in changed.items() if value.tobytes() != expected[name].tobytes()]
    assert differ or field == "replay" or choice == "anchor"
    expected = masked({**expected, **changed}, masks_of(tmp_path / "run" / "round-2"))
    assert_same_but_temperature(starts.arrays["round-2"], expected)
    held = {f"replay/{name}": value for name, value in starts.replay["round-2"].items()}
    if field == "replay":
        replay = {name: value[:0] for name, value in replay.items()}
        replay["replay/written"] = np.zeros(4, np.int64)
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
    assert not after["sac/actor/kernel_0"].all()
    assert before["sac/critic/q0/kernel_0"].all()
    assert after["sac/critic/q0/kernel_0"].all()


# Which weights are pruned.

DEEP = PruneConfig(actor=0.8, critic=0.5, rate=0.4)
KEPT = {"actor": [48, 29, 17, 16], "critic": [86, 72, 72, 72]}
"""Of 80 and 144 weights at 0.4, 0.64, 0.784, 0.8; the critic waits at 0.5."""


def ideal_counts(scope, layers, total):
    """Real numbers that the layers' counts are rounded from."""
    weights = {k: float(np.prod(s) if scope == "layer" else sum(s)) for k, s in layers.items()}
    counts, free = {}, dict(weights)
    while True:
        left = total - sum(counts.values())
        share = {name: left * weight / sum(free.values()) for name, weight in free.items()}
        full = [name for name in free if share[name] > np.prod(layers[name])]
        if not full:
            return counts | share
        counts |= {name: float(np.prod(layers[name])) for name in full}
        free = {name: weight for name, weight in free.items() if name not in full}


def importance(criterion, source, before, kind):
    """Of every weight of a network, from the artifacts; None where it is chance."""
    arrays = artifact(before)
    weights = {name: np.abs(arrays[f"sac/{kind}/{name}"].astype(np.float64)) for name in LAYERS[kind]}
    if criterion in ("magnitude", "random"):
        return weights if criterion == "magnitude" else None
    template = sac.init(CONFIG.algorithm, 0, tiny_env.OBSERVATIONS, tiny_env.ACTIONS)
    names = [n for n in arrays if n.startswith("sac/")]
    state = jax.tree.unflatten(jax.tree.structure(template), [arrays[name] for name in names])
    variance = arrays["normalizer/squares"] / arrays["normalizer/count"]
    scaling = (arrays["normalizer/mean"], 1 / np.sqrt(variance + 1e-4))
    samples = sac.Batch(**artifact(source, "saliency"))
    mean, scale = (each.astype(np.float32) for each in scaling)
    slopes = mean_absolute_gradients(CONFIG.algorithm, state, samples, mean, scale)[kind]
    slopes = {name: np.asarray(slopes[name], np.float64) for name in weights}
    return slopes if criterion == "gradient" else {n: slopes[n] * weights[n] for n in weights}


def check_selection(scores, before, after, scope):
    """Whatever was kept is worth at least what was pruned beside it."""
    groups = [list(after)] if scope == "global" else [[name] for name in after]
    for group in groups:
        here = [name for name in group if after[name].sum() > 1 or scope != "global"]
        stayed = np.concatenate([scores[name][after[name]] for name in here])
        went = np.concatenate([scores[name][before[name] & ~after[name]] for name in here])
        assert stayed.min() >= went.max(initial=0)


@pytest.mark.parametrize("scope", ["global", "layer", "erk"])
@pytest.mark.parametrize("criterion", ["magnitude", "taylor", "gradient", "random"])
def test_masks_are_nested_exact_and_of_the_round_before(criterion, scope, dense, tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "train", pretend)
    path = tmp_path / "run"
    prune = PruneConfig(actor=0.8, critic=0.5, rate=0.4, criterion=criterion, scope=scope)
    rows = run_ticket(path, dense, prune)["rounds"]
    found = [masks_of(path / f"round-{k}") for k in (1, 2, 3, 4)]
    assert not (path / "round-5").exists()
    assert_same(artifact(path, "mask"), artifact(path / "round-4", "mask"))
    for kind, layers in LAYERS.items():
        size = sum(map(np.prod, layers.values()))
        earlier = {name: np.ones(shape, bool) for name, shape in layers.items()}
        for number, total in enumerate(KEPT[kind], 1):
            mask = found[number - 1][kind]
            assert shapes(mask) == layers
            assert kept(mask) == total
            assert rows[number - 1]["kept_weights"][kind]["total"] == total
            assert rows[number - 1]["sparsity"][kind] == pytest.approx(1 - total / size)
            assert not any((mask[name] & ~earlier[name]).any() for name in mask)
            if scope != "global":
                for name, ideal in ideal_counts(scope, layers, total).items():
                    assert abs(mask[name].sum() - ideal) < 1
            before = dense if number == 1 else path / f"round-{number - 1}"
            if (scores := importance(criterion, dense, before, kind)) is not None:
                check_selection(scores, earlier, mask, scope)
            if number > 1 and total == KEPT[kind][number - 2]:
                assert_same(mask, earlier)  # it is there, and waits for the other
            earlier = mask


def test_criteria_and_rounds_choose_differently(dense, tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "train", pretend)
    chosen = set()
    for criterion in ("magnitude", "taylor", "gradient", "random"):
        prune = PruneConfig(actor=0.4, critic=0.4, rate=0.4, criterion=criterion)
        run_ticket(tmp_path / criterion, dense, prune)
        chosen.add(masks_of(tmp_path / criterion)["actor"]["kernel_0"].tobytes())
    assert len(chosen) == 4


@pytest.mark.parametrize(
    ("prune", "actor", "critic"),
    [
        (PruneConfig(actor=0.8, rate=0.33), [0.33, 0.5511, 0.699237, 0.79848879, 0.8], [0] * 5),
        (PruneConfig(actor=0.5, critic=0.8, rate=0.5), [0.5, 0.5, 0.5], [0.5, 0.75, 0.8]),
        (PruneConfig(actor=0, critic=0.75, rate=0.5), [0, 0], [0.5, 0.75]),
        (PruneConfig(actor=0.9, critic=0.3, rate=1), [0.9], [0.3]),
    ],
)
def test_each_network_goes_to_its_own_target_and_waits_there(prune, actor, critic):
    rounds = stages.rounds(prune)
    np.testing.assert_allclose([each["actor"] for each in rounds], actor)
    np.testing.assert_allclose([each["critic"] for each in rounds], critic)


# Budgets.


def test_every_run_of_a_study_has_the_same_budget(dense, ticket, transfer):
    rows = [
        read_summary(dense),
        *read_summary(ticket[0])["rounds"],
        *read_summary(transfer[0])["variants"],
    ]
    assert len(rows) == 1 + 2 + 4 + 4
    assert {(row["env_steps"], row["updates"]) for row in rows} == {(320, 32)}
    names = [row["name"] for row in rows[1:]]
    assert names == ["ticket", "ticket", *CONTROLS, *VARIANTS]
    for name in ("round-1", "round-2-dense"):
        assert int(artifact(ticket[0] / name)["updates"]) == 32


# Controls.


def counts(masks):
    return {(kind, leaf): int(mask.sum()) for kind in LAYERS for leaf, mask in masks[kind].items()}


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
            names = [n for n in anchor if n.endswith(f"/{leaf}") and f"/{kind}/" in n.replace("target_", "")]
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
    others = anchor.keys() - kernels
    assert_same({k: start[k] for k in others}, {k: anchor[k] for k in others})
    assert_same(starts.replay[f"round-2-{name}"], starts.replay["round-2"])


def test_a_random_mask_is_as_dense_in_each_layer_and_holds_nothing_of_the_source(dense, ticket):
    path, starts = ticket
    masks, mine = masks_of(path / "round-2"), masks_of(path / "round-2-random-mask")
    start, initial = starts.arrays["round-2-random-mask"], artifact(dense, "initial")
    assert counts(mine) == counts(masks)
    for kind, leaf in counts(masks):
        assert not np.array_equal(mine[kind][leaf], masks[kind][leaf])
        weights = start[f"sac/{kind}/{leaf}"]
        assert not weights[~mine[kind][leaf]].any()
        for name in ("initial", "anchor", "final"):
            theirs = artifact(dense, name)[f"sac/{kind}/{leaf}"]
            assert (weights[mine[kind][leaf]] != theirs[mine[kind][leaf]]).all()
        # Drawn as fresh weights are: LeCun-normal, cut off at two standard deviations and rescaled.
        assert np.abs(weights).max() < 2.3 * LAYERS[kind][leaf][0] ** -0.5
    expected = masked(
        at_step_zero({**initial, **part(start, "sac/actor"), **part(start, "sac/critic")}, 3), mine
    )
    assert_same_but_temperature(start, expected)
    assert starts.replay["round-2-random-mask"]["reward"].size == 0
    assert starts.random["round-2-random-mask"]


def test_the_dense_control_is_the_anchor_itself(dense, ticket):
    path, starts = ticket
    assert_same(starts.arrays["round-2-dense"], artifact(dense, "anchor"))
    assert_same(starts.replay["round-2-dense"], starts.replay["round-2"])
    assert starts.masks["round-2-dense"] == {"actor": {}, "critic": {}}
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


def test_what_a_variant_leaves_to_chance_depends_on_no_other_variant(dense, ticket, tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "train", pretend_anything)
    for name, order in (("all", VARIANTS), ("others", ("random-mask", "mask-only"))):
        monkeypatch.setattr(transfer_module, "VARIANTS", order)
        run_transfer(tmp_path / name, ticket[0], dense)
    masks = [masks_of(tmp_path / each / "random-mask")["actor"] for each in ("all", "others")]
    assert_same(*masks)


# Transfers.


def test_mask_anchor_is_the_rewound_ticket_at_step_zero(dense, ticket, transfer):
    anchor = artifact(dense, "anchor")
    expected = masked(at_step_zero(anchor, TARGET.seed, normalizer=anchor), masks_of(ticket[0]))
    assert_same_but_temperature(transfer[1].arrays["mask-anchor"], expected)
    assert_same(artifact(transfer[0] / "mask-anchor", "mask"), artifact(ticket[0], "mask"))


def test_mask_only_is_the_mask_on_what_the_targets_dense_run_begins_with(
    dense, ticket, transfer, tmp_path, monkeypatch
):
    Starts(monkeypatch, stop_at="own")
    with pytest.raises(StopError):
        run_dense(tmp_path / "own", TARGET)
    initial = artifact(tmp_path / "own", "initial")
    assert (initial["sac/actor/kernel_0"] != artifact(dense, "initial")["sac/actor/kernel_0"]).all()
    assert_same(transfer[1].arrays["mask-only"], masked(initial, masks_of(ticket[0])))


def test_dense_finetuned_is_the_sources_final_state_without_a_mask(dense, transfer):
    final = artifact(dense)
    expected = at_step_zero(final, TARGET.seed, normalizer=final)
    assert_same_but_temperature(transfer[1].arrays["dense-finetuned"], expected)
    assert transfer[1].masks["dense-finetuned"] == {"actor": {}, "critic": {}}


def test_a_transfers_random_mask_is_as_dense_in_each_layer(ticket, transfer):
    masks, mine = masks_of(ticket[0]), masks_of(transfer[0] / "random-mask")
    assert counts(mine) == counts(masks)
    assert all((mine[kind][leaf] != masks[kind][leaf]).any() for kind, leaf in counts(masks))
    both = transfer[1].arrays
    for kind, leaf in counts(masks):
        shared = mine[kind][leaf] & masks[kind][leaf]
        assert shared.any() or not shared.size or mine[kind][leaf].sum() < 8
        name = f"sac/{kind}/{leaf}"
        np.testing.assert_array_equal(both["random-mask"][name][shared], both["mask-only"][name][shared])


def test_all_variants_begin_without_a_replay(transfer):
    assert list(transfer[1].replay) == list(VARIANTS)
    for name, replay in transfer[1].replay.items():
        assert not replay["written"].any()
        assert transfer[1].random[name] == (name in ("mask-only", "random-mask"))


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
    first = [problem for problem in problems if "sac/actor/kernel_0" in problem]
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


# Missing sources.


def without(path, name, copy):
    """A copy of a run folder that lost an artifact's file."""
    shutil.copytree(path, copy)
    (file,) = (each for each in (copy / "artifacts").glob(f"{name}*.npz") if each.stem.rstrip("~") == name)
    file.unlink()
    return copy


@pytest.mark.parametrize(
    ("name", "prune", "matrix"),
    [
        ("final", BOTH, RewindConfig()),
        ("anchor", BOTH, RewindConfig()),
        ("anchor-replay", BOTH, RewindConfig()),
        ("initial", BOTH, RewindConfig(parameters="initial")),
        ("saliency", PruneConfig(criterion="taylor"), RewindConfig()),
    ],
)
def test_a_ticket_asks_for_all_that_it_needs_before_it_makes_a_folder(name, prune, matrix, dense, tmp_path):
    source = without(dense, name, tmp_path / "dense")
    (problem,) = problems_of(run_ticket, tmp_path / "run", source, prune, matrix)
    assert f"artifact {name!r} of {str(source)!r} is gone" in problem
    assert not (tmp_path / "run").exists()


def test_a_ticket_does_not_ask_for_what_it_does_not_need(dense, tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "train", pretend)
    source = without(dense, "saliency", tmp_path / "dense")
    for name in ("initial", "anchor-replay"):
        (source / "artifacts" / f"{name}.npz").unlink()
    run_ticket(tmp_path / "run", source, BOTH, RewindConfig(replay="fresh"))
    assert (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize("name", ["anchor", "final"])
def test_a_transfer_asks_for_all_that_it_needs_before_it_makes_a_folder(name, dense, ticket, tmp_path):
    source = without(dense, name, tmp_path / "dense")
    (problem,) = problems_of(run_transfer, tmp_path / "run", ticket[0], source)
    assert f"artifact {name!r} of {str(source)!r} is gone" in problem
    assert not (tmp_path / "run").exists()


# Interruption.


def test_an_interrupted_ticket_skips_what_is_finished_and_equals_an_uninterrupted_one(
    dense, ticket, tmp_path
):
    seen = []

    def stop(row):
        seen.append(row["env_steps"])
        if seen.count(224) == 2:  # within the second round
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


def test_finished_stages_are_left_as_they_are(dense, ticket, transfer):
    folders = (dense, ticket[0], transfer[0])
    before = [files(path) for path in folders]
    run_dense(dense)
    run_ticket(ticket[0], dense, controls=(2,))
    run_transfer(transfer[0], ticket[0], dense)
    assert [files(path) for path in folders] == before


def test_a_ticket_of_another_source_is_not_taken_for_finished(dense, ticket, tmp_path, monkeypatch):
    shutil.copytree(ticket[0], tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    monkeypatch.setattr(stages, "train", pretend)
    other = tmp_path / "other"
    shutil.copytree(dense, other)
    manifest = (other / "manifest.yaml").read_text()
    hashes = [dense_identity(each).hash() for each in (CONFIG, tiny_config(stop_patience=9))]
    assert hashes[0] in manifest
    text = manifest.replace(hashes[0], hashes[1]).replace("stop_patience: 3", "stop_patience: 9")
    (other / "manifest.yaml").write_text(text)
    index = other / "artifacts" / "index.json"
    index.write_text(index.read_text().replace(hashes[0], hashes[1]))
    before = files(tmp_path / "run")
    (problem,) = problems_of(run_ticket, tmp_path / "run", other, resume=True)
    assert f"the hash of the dense source is {hashes[0]!r} there".replace("'", '"') in problem
    assert files(tmp_path / "run") == before


def test_a_source_that_was_moved_is_the_same_source(dense, ticket, tmp_path, monkeypatch):
    """In the same study or out of it: what a ticket begins from is known by its hash."""
    monkeypatch.setattr(stages, "train", None)  # nothing is trained again
    shutil.copytree(ticket[0], tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    shutil.copytree(dense, tmp_path / "elsewhere" / "dense")
    run_ticket(tmp_path / "run", tmp_path / "elsewhere" / "dense", controls=(2,), resume=True)
    assert read_manifest(tmp_path / "run")["sources"][0]["path"] == "../elsewhere/dense"
    rows = [read_summary(each)["rounds"] for each in (tmp_path / "run", ticket[0])]
    assert rows[0] == rows[1]


@pytest.mark.parametrize(
    ("kind", "prune"),
    [
        ("actor", PruneConfig(actor=0.8, rate=0.2, min_kept=30)),
        ("critic", PruneConfig(actor=0, critic=0.8, rate=0.2, min_kept=45)),
    ],
)
def test_a_layer_that_would_collapse_ends_the_ticket_with_its_round_and_network(
    kind, prune, dense, tmp_path, monkeypatch
):
    monkeypatch.setattr(stages, "train", pretend)
    source, path = files(dense), tmp_path / "run"
    made = []
    monkeypatch.setattr(stages, "_save_masks", lambda folder, masks: made.append(files(path)))
    (problem,) = problems_of(run_ticket, path, dense, prune)
    assert f"round 2 of {str(path)!r}, {kind}: " in problem
    assert f"{prune.min_kept} for each leaf" in problem
    assert len(made) == 1
    assert (path / "round-1" / "summary.json").exists()
    assert artifact(path / "round-1")["env_steps"] == 320
    assert not (path / "round-2").exists()
    assert files(dense) == source
