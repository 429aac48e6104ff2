"""Which weights a ticket prunes: nested, exact in number, of the round before, by criterion and scope."""

import numpy as np
import pytest
from support.stages import CONFIG, LAYERS, files, kept, masks_of, pretend, problems_of, run_ticket, shapes
from support.tiny_env import spec
from support.training import artifact, assert_same

from engine.algorithms.saliency import mean_absolute_gradients
from engine.data.transition import Batch
from trainers.config.training import PruneConfig
from trainers.store.layout import from_arrays
from trainers.study import stages

pytestmark = pytest.mark.usefixtures("one_launcher")


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
    weights = {name: np.abs(arrays[f"parameters/{kind}/{name}"].astype(np.float64)) for name in LAYERS[kind]}
    if criterion in ("magnitude", "random"):
        return weights if criterion == "magnitude" else None
    algorithm = CONFIG.algorithm.make(spec(8), CONFIG.variance_floor)
    state = from_arrays(arrays, algorithm.init(0), "the round before")
    slopes = mean_absolute_gradients(algorithm, state, Batch(**artifact(source, "saliency")))[kind]
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
        # 0.79848879 would be next: a step of 0.0015 after it is none of its own.
        (PruneConfig(actor=0.8, rate=0.33), [0.33, 0.5511, 0.699237, 0.8], [0] * 4),
        # One of 0.0102, where a whole one is 0.067, is.
        (PruneConfig(actor=0.81, rate=0.33), [0.33, 0.5511, 0.699237, 0.79848879, 0.81], [0] * 5),
        (PruneConfig(actor=0.33, critic=0.334, rate=0.33), [0.33], [0.334]),
        (PruneConfig(actor=0.5, critic=0.8, rate=0.5), [0.5, 0.5, 0.5], [0.5, 0.75, 0.8]),
        (PruneConfig(actor=0, critic=0.75, rate=0.5), [0, 0], [0.5, 0.75]),
        (PruneConfig(actor=0.9, critic=0.3, rate=1), [0.9], [0.3]),
    ],
)
def test_each_network_goes_to_its_own_target_and_waits_there(prune, actor, critic):
    rounds = stages.rounds(prune)
    np.testing.assert_allclose([each["actor"] for each in rounds], actor)
    np.testing.assert_allclose([each["critic"] for each in rounds], critic)


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
