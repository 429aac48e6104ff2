"""Seeds of chance: keyed by names, of no position in any list."""

import hashlib

import numpy as np

from trainers.study.controls import CONTROLS, VARIANTS, derive


def test_a_seed_is_the_hash_of_the_runs_seed_and_the_names():
    digest = hashlib.sha256(b'[3, "control", 2, "random-mask"]').digest()
    assert derive(3, "control", 2, "random-mask") == np.frombuffer(digest[:16], "<u4").tolist()


def test_seeds_differ_by_every_part():
    names = [("control", k, name) for k in (1, 2) for name in CONTROLS]
    names += [("transfer", name) for name in VARIANTS]
    names += [("pruning", k, kind) for k in (1, 2) for kind in ("actor", "critic")]
    names += [("a", "b"), ("ab",), ("a b",), ("1",), (1,), ()]
    seeds = {tuple(derive(seed, *each)) for seed in (0, 1) for each in names}
    assert len(seeds) == 2 * len(names)
    draws = {np.random.default_rng(list(each)).integers(2**63) for each in seeds}
    assert len(draws) == len(seeds)
