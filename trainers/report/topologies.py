"""The section of a report on networks that are sparse from the start: what they reach, cost, and keep."""

import re
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from engine.sparse import masks as mask_functions
from trainers.report import numbers, page
from trainers.report.figures import png
from trainers.report.repetitions import Repetitions, seeds
from trainers.store.layout import NETWORKS
from trainers.store.reader import SavedRun

_NEAR = 0.02
"""Tickets whose sparsities differ by no more than this are shown beside a topology."""


def topologies(groups: Sequence[Repetitions], pictures: dict[str, bytes]) -> str:
    """Every topology beside the dense run and tickets as sparse, and how the masks changed."""
    parts = []
    for env in dict.fromkeys(group.env for group in groups if group.kind == "sparse"):
        here = [group for group in groups if group.env == env and group.finished]
        sparse = [group for group in here if group.kind == "sparse"]
        parts += [page.element("h3", env), _comparison(here, sparse)]
        for group in sparse:
            parts += [_evolution(group, pictures), _overlap(group)]
    return "".join(parts) or page.element("p", "No run among these is sparse from the start.")


def _comparison(here: Sequence[Repetitions], sparse: Sequence[Repetitions]) -> str:
    chosen = [group for group in here if group.kind == "dense"] + list(sparse)
    chosen += [group for group in here if group.kind == "round" and _beside(group, sparse)]
    rows = []
    for group in chosen:
        returns = numbers.of_summaries(group.finished, "return_mean")
        dense = _dense_return(group, here)
        share = "" if dense is None else f"{100 * np.mean(returns) / dense:.1f}"
        measures = numbers.results(group.finished)
        rows.append([group.label, seeds(len(group.finished)), *measures, share, *_costs(group.finished)])
    columns = (
        "run|finished|success any|success last|return|return, % of dense|weights, %|inference, %|"
        "training, %|updates/s"
    )
    caption = (
        "Last evaluation: mean over seeds, least and greatest in brackets. Percent of dense: of the mean "
        "return of the first dense run of the same algorithm here; it says something only where returns are "
        "positive. Weights: kernels of all networks together that are kept at the end. Inference, training: "
        "theoretical operations as shares of dense ones, of one action and of all updates; the gradients by "
        "which topologies grow are among them. Updates/s are measured, with dense kernels, and depend on "
        "what else the machine did."
    )
    return page.table(columns, rows, caption, texts=["finished"])


def _beside(ticket: Repetitions, sparse: Sequence[Repetitions]) -> bool:
    """Whether a ticket is about as sparse as one of these."""
    return any(
        all(abs(_sparsity(ticket, kind) - _sparsity(group, kind)) <= _NEAR for kind in NETWORKS)
        for group in sparse
    )


def _sparsity(group: Repetitions, kind: str) -> float:
    return float(np.mean([run.sparsity(kind) for run in group.finished]))


def _dense_return(group: Repetitions, here: Sequence[Repetitions]) -> float | None:
    algo = group.finished[0].config.get("algo")
    for dense in here:
        if dense.kind == "dense" and dense.finished[0].config.get("algo") == algo:
            return float(np.mean(numbers.of_summaries(dense.finished, "return_mean"))) or None
    return None


def _costs(runs: Sequence[SavedRun]) -> list[str]:
    shares = []
    for run in runs:
        assert run.summary is not None, "a finished run has its summary"
        kept, size = np.array([_weights(run, kind) for kind in NETWORKS]).sum(0)
        forward, flops = run.summary["flops"]["forward"], run.summary["flops"]
        training = flops.get("training", flops["update"])  # older runs' masks stayed
        seconds = run.summary["training_seconds"]
        costs = [forward["masked"] / forward["dense"], training["masked"] / max(1, training["dense"])]
        shares.append([kept / size, *costs, run.summary["updates"] / seconds if seconds > 0 else np.nan])
    *percents, speed = np.mean(shares, axis=0)
    return [*(f"{100 * each:.1f}" for each in percents), f"{speed:,.0f}"]


def _weights(run: SavedRun, kind: str) -> tuple[int, int]:
    size = mask_functions.counts(mask_functions.full(run.parameters[kind]))[1]
    return mask_functions.counts(run.masks[kind])[1] if run.masks[kind] else size, size


def _overlap(group: Repetitions) -> str:
    if len(group.finished) < 2 or not any(group.finished[0].masks.values()):
        return ""
    measured, expected = numbers.overlaps(group.finished)
    rows = [[name, numbers.text(values, ".3f"), f"{expected[name]:.3f}"] for name, values in measured.items()]
    caption = (
        f"{group.label}: weights that two seeds' last masks both keep, over those that either keeps, and the "
        "exact mean for random masks as dense."
    )
    return page.table("layer|Jaccard index between seeds|expected of random masks", rows, caption)


def _evolution(group: Repetitions, pictures: dict[str, bytes]) -> str:
    runs = [run for run in group.finished if len(run.topology) > 1]
    if not runs:
        return page.element("p", f"{group.label}: the mask stayed as it was at the start.")
    title = f"{group.env}: {group.label}"
    name = re.sub(r"[^\w.-]+", "-", f"figure-topology-{title}.png")
    pictures[name] = found = evolution(runs, title)
    caption = (
        "Changed: share of the kept weights that a change dropped. Overlap: Jaccard index with the mask that "
        "the run began with. Density: of each layer of the first seed. Thin lines are seeds."
    )
    return page.picture(found, "png", f"{title}: how the mask changed", caption)


def evolution(runs: Sequence[SavedRun], title: str) -> bytes:
    """How the masks of these runs changed over their updates."""
    figure = Figure((12, 4.3), layout="constrained")
    figure.suptitle(title)
    changed, overlap, density = figure.subplots(1, 3)
    for run in runs:
        for kind, dashes in zip(NETWORKS, ("-", "--"), strict=True):
            rows = [row for row in run.topology if f"{kind}_changed" in row]
            updates = [row["updates"] for row in rows]
            look = {"ls": dashes, "lw": 1, "label": kind if run is runs[0] else None}
            changed.plot(updates[1:], [row[f"{kind}_changed"] for row in rows[1:]], **look)
            overlap.plot(updates, [row[f"{kind}_overlap_first"] for row in rows], **look)
            if run is runs[0] and rows:
                for leaf in rows[0][f"{kind}_layers"]:
                    values = [row[f"{kind}_layers"][leaf] for row in rows]
                    density.plot(updates, values, ls=dashes, lw=1, label=f"{kind} {leaf}")
    for axes, ylabel in (
        (changed, "changed"),
        (overlap, "overlap with the first mask"),
        (density, "density"),
    ):
        axes.set(xlabel="updates", ylabel=ylabel, ylim=(-0.03, 1.03))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    return png(figure)
