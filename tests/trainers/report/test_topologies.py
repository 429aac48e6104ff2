"""What a report says of runs that are sparse from the start."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
from support.page import Page
from support.training import Silent, artifact, launcher, tiny_config

from trainers.config.sparse import SparseConfig
from trainers.report.__main__ import ReportArguments, report
from trainers.run import training
from trainers.store.layout import network
from trainers.study import sparse, stages
from trainers.study.identities import sparse_identity

RIGL = SparseConfig(topology="rigl", actor_sparsity=0.5, critic_sparsity=0.4, topology_interval=12)
STATIC = dataclasses.replace(RIGL, topology="static")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of a topology that evolves, with two seeds, and of one that stays."""
    folder = tmp_path_factory.mktemp("topologies")
    found = {"rigl": [], "static": []}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "new_launcher", lambda config: launcher())
        for chosen, seed in ((RIGL, 3), (RIGL, 4), (STATIC, 3)):
            config, path = tiny_config(seed=seed), folder / f"{chosen.topology}-{seed}"
            context = stages.Context(sparse_identity(config, chosen), ["test"], Silent(), False, "title")
            sparse.sparse(context, path, config, chosen)
            found[chosen.topology].append(path)
    return found


@pytest.fixture(scope="module")
def page(runs, uninterrupted, tmp_path_factory):
    out = tmp_path_factory.mktemp("page") / "report"
    return Page(
        report(ReportArguments(runs=(uninterrupted[0], *runs["rigl"], *runs["static"]), out=out))
    ), out


def summaries(paths):
    return [json.loads((path / "summary.json").read_text()) for path in paths]


@pytest.mark.parametrize(("name", "label"), [("rigl", "rigl 0.5/0.4"), ("static", "static 0.5/0.4")])
def test_a_topology_stands_beside_the_dense_run_with_its_costs(name, label, runs, page, uninterrupted):
    (dense,), found = summaries([uninterrupted[0]]), summaries(runs[name])
    row = next(row for row in page[0].rows_of(label) if row[1] in ("1 seed", "2 seeds"))
    assert row[1] == ("2 seeds" if name == "rigl" else "1 seed")
    share = 100 * np.mean([each["return_mean"] for each in found]) / dense["return_mean"]
    assert float(row[5]) == pytest.approx(share, abs=0.051)
    # 80 weights of the actor and 144 of the critics.
    kept = np.mean([sum(sum(v.values()) for v in each["kept_weights"].values()) for each in found])
    assert float(row[6]) == pytest.approx(100 * kept / 224, abs=0.051)
    training = [each["flops"]["training"] for each in found]
    share = 100 * np.mean([each["masked"] / each["dense"] for each in training])
    assert float(row[8]) == pytest.approx(share, abs=0.051)
    assert page[0].rows_of("dense", "1 seed")[0][5:9] == ["100.0", "100.0", "100.0", "100.0"]


def test_how_far_seeds_share_a_mask_is_counted(runs, page):
    masks = [network(artifact(path), "actor", "masks")["kernel_0"] for path in runs["rigl"]]
    (a, b) = itertools.chain(masks)
    (row,) = page[0].rows_of("actor layer 1")
    assert row[1] == f"{(a & b).sum() / (a | b).sum():.3f}"


def test_what_evolved_is_drawn_and_what_stayed_is_said_to(page):
    shown, out = page
    names = [path.name for path in out.glob("figure-topology-*.png")]
    assert len(names) == 1
    assert "rigl-0.5-0.4" in names[0]
    assert "static 0.5/0.4: the mask stayed as it was at the start." in shown.text


def test_without_such_runs_the_section_says_so(uninterrupted, tmp_path):
    shown = Page(report(ReportArguments(runs=(uninterrupted[0],), out=tmp_path / "report")))
    assert "No run among these is sparse from the start." in shown.text
