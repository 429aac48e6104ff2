"""What a report computes from runs."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from support import studies

from engine.sparse import masks as mask_functions
from trainers.report import numbers, sections
from trainers.report.repetitions import families, repetitions
from trainers.store.reader import load

# Numbers.


def test_expected_overlap_is_that_of_every_pair_of_sets():
    for size, first, second in ((5, 2, 3), (6, 6, 1), (4, 0, 2), (6, 4, 5), (3, 0, 0)):
        sets = [[set(chosen) for chosen in itertools.combinations(range(size), k)] for k in (first, second)]
        found = [len(a & b) / len(a | b) if a | b else 1.0 for a, b in itertools.product(*sets)]
        assert numbers.expected_jaccard(size, first, second) == pytest.approx(np.mean(found))


def test_a_curve_is_a_mean_where_every_finished_run_has_values(study):
    runs, _ = load([study / "reach-v3" / f"seed-{seed}" / "dense" for seed in (0, 1)])
    steps, values = numbers.band(numbers.lines(runs, "success_any"))
    np.testing.assert_array_equal(steps, [0, 1000, 2000, 3000])
    np.testing.assert_allclose(values.mean(0), [0.1, 0.2, 0.3, 0.4])
    np.testing.assert_allclose(values.max(0) - values.min(0), 0.2)
    shifted = [{**row, "env_steps": row["env_steps"] + 500} for row in runs[1].evaluations]
    later = replace(runs[1], evaluations=shifted)
    steps, values = numbers.band(numbers.lines([runs[0], later], "success_any"))
    np.testing.assert_array_equal(steps, [500, 1000, 1500, 2000, 2500, 3000])
    np.testing.assert_allclose(values.mean(0), np.linspace(0.125, 0.375, 6))
    unfinished = numbers.lines([replace(runs[0], summary=None)], "success_any")
    assert [values.size for values in numbers.band(unfinished)] == [0, 0]
    assert numbers.lines(runs, "success_first_step") == []


def test_masks_are_nested_and_a_revived_weight_shows(study):
    runs, _ = load([study / "reach-v3" / "seed-0" / "ticket"])
    (family,) = families(repetitions(runs))
    assert numbers.nested(family) == {(0, 2): True}
    (last,) = family.rounds[2]
    pruned = np.argwhere(~family.rounds[1][0].masks["actor"]["kernel_0"])[0]
    last.masks["actor"]["kernel_0"][tuple(pruned)] = True
    assert numbers.nested(family) == {(0, 2): False}
    assert "Not nested in the round before: round 2 of seed 0." in sections.masks([family], {})


def test_no_arm_keeps_weights_of_constant_inputs_and_all_keep_as_many_live_ones(study):
    runs, _ = load([study])
    kept = {}
    for run in (run for run in runs if run.masks["actor"] and run.sparsity("actor")):
        mask = run.masks["actor"]
        assert not mask["kernel_0"][list(studies.CONSTANT)].any()
        counts = tuple(int(leaf.sum()) for leaf in mask.values())
        kept.setdefault((run.seed, run.round or 2), {}).setdefault(counts, []).append(run.name)
    assert all(len(by_counts) == 1 for by_counts in kept.values())
    # Five controls and three variants have the mask of the last round, or one as dense in each layer.
    assert [sum(map(len, each.values())) for each in kept.values()].count(1 + 5 + 3) == 2


def test_constant_inputs_are_found_and_their_weights_left_out(study):
    runs, _ = load([study / "reach-v3" / "seed-1" / "ticket" / "round-2"])
    (run,) = runs
    assert np.flatnonzero(numbers.constant_inputs(run)).tolist() == list(studies.CONSTANT)
    mask = run.masks["actor"]
    idle = int(mask["kernel_0"][list(studies.CONSTANT)].sum())
    kept, size = mask_functions.counts(mask)[1] - idle, 408 - 14 * 8
    assert numbers.sparsity_without_constants(run, "actor") == (pytest.approx(1 - kept / size), idle)
    # The actor of 0.8, on live inputs alone.
    assert (idle, kept, size) == (0, 296 - round(0.8 * 296), 296)
    names = numbers.input_names("reach-v3", 43, 39)
    assert all("padding" in names[i] for i in studies.CONSTANT)
    assert (names[0], names[18], names[36], names[42]) == ("hand x", "previous hand x", "goal x", "action 4")
    assert numbers.input_names("Pendulum-v1", 3, 3) == [f"observation {i}" for i in range(3)]
