"""The tables and notes of a report on every run: costs, counts, where it was run, what is missing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from engine.sparse.compact import compact
from fastcollect.support.machine import cpu_model
from trainers.export import folded_actor, measure
from trainers.report import numbers, page
from trainers.report.numbers import Family
from trainers.report.repetitions import Repetitions
from trainers.store.layout import NETWORKS
from trainers.store.manifest import MANIFEST
from trainers.store.reader import Container, SavedRun


def costs(groups: Sequence[Repetitions], families: Sequence[Family], runs: Sequence[SavedRun]) -> str:
    """Operations by theory, and measured times."""
    rows = []
    for group in groups:
        if not group.finished:
            continue
        found = [run.summary["flops"] for run in group.finished]
        forward = [
            _mean([each["forward"][kind] for each in found]) for kind in ("dense", "masked", "compact")
        ]
        update = [_mean([each["update"][kind] for each in found]) for kind in ("dense", "masked")]
        rows.append([group.env, group.label, *forward, *update])
    columns = "environment|run|actor, dense|masked|compact|update, dense|update, masked"
    caption = (
        "Theoretical floating-point operations, mean over seeds: of the actor for one observation, and of "
        "one update on a batch, actor and both critics. A multiply-add counts as 2; a backward pass as two "
        "forward passes. Masked: what a machine that skips every zero would need; training here multiplies "
        "dense kernels and saves nothing. Compact: dense kernels without the units that have no influence."
    )
    parts = [page.table(columns, rows, caption, texts=["run"])] if rows else []
    parts += [page.heading("Measured time"), _speeds(runs), _inference(families)]
    return "".join(parts)


def _mean(values: Sequence[float]) -> str:
    return f"{float(np.mean(values)):,.0f}"


def _speeds(runs: Sequence[SavedRun]) -> str:
    rows = []
    for run in runs:
        if run.summary is None:
            continue
        seconds = run.summary["training_seconds"]
        steps, updates = numbers.progress_made(run)
        total = f"{run.summary['wall_seconds']:,.1f}"
        speeds = [f"{count / seconds:,.0f}" if seconds > 0 else "" for count in (steps, updates)]
        rows.append([run.env, run.label, run.seed, f"{steps:,}", f"{updates:,}", total, *speeds])
    if not rows:
        return page.paragraph("No run is finished, so nothing was timed.")
    columns = "environment|run|seed|own steps|own updates|wall seconds|steps/s|updates/s"
    caption = (
        "Own: made by this run, without those before the point that it was rewound to. Speeds are means from "
        "the run's start, processes and compilation included, to its last update; its last evaluation is in "
        "the wall seconds only. They depend on what else the machine did."
    )
    return page.table(columns, rows, caption, texts=["run"])


def _inference(families: Sequence[Family]) -> str:
    rows: list[list[Any]] = []
    for family in families:
        finished = family.finished()
        for run in next(reversed(finished.values())) if finished else []:
            actor = folded_actor(run)
            small = compact(run.masks["actor"], actor)
            for batch, (masked, compacted) in measure(actor, small).items():
                times = f"{masked * 1e6:,.1f}", f"{compacted * 1e6:,.1f}", f"{masked / compacted:.2f}"
                rows.append([run.env, run.label, run.seed, batch, *times])
    if not rows:
        return ""
    columns = "environment|run|seed|batch|masked, us|compact, us|masked / compact"
    caption = (
        "Time of one call of the actor in NumPy on one thread: full-size kernels with zeros in them, and the "
        "compacted network, selecting its inputs included. Medians of slices that take turns, measured while "
        f"this report was written, on {cpu_model()}."
    )
    return page.table(columns, rows, caption, texts=["run"])


def every_run(runs: Sequence[SavedRun]) -> str:
    """One row for each run."""
    parents = os.path.commonpath([run.path.absolute().parent for run in runs])
    rows = [[os.path.relpath(run.path, parents), run.env, run.label, run.seed, *_record(run)] for run in runs]
    columns = (
        "folder|environment|run|seed|state|steps|updates|updates/step|wall seconds|"
        "density actor|critic|kept weights actor|critic |success any|last|return"
    )
    caption = (
        f"Folders are below {os.path.relpath(parents)}. Steps and updates are counted as the run counts "
        "them, those before its rewind point included. Kept weights: exact counts, in all and of each layer. "
        "Of an unfinished run, what its last evaluation says."
    )
    return page.table(columns, rows, caption, texts=["environment", "run"])


def _record(run: SavedRun) -> list[str]:
    last = run.summary or (run.evaluations[-1] if run.evaluations else None)
    state = (
        "unfinished"
        if run.summary is None
        else "stopped early"
        if run.summary["stopped_early"]
        else "finished"
    )
    if last is None:
        return ["unfinished", *[""] * 11]
    ratio = f"{last['updates_per_step']:.4f}" if run.summary else ""
    kept = [_kept(run, kind) if run.summary else "" for kind in NETWORKS]
    return [
        state,
        f"{last['env_steps']:,}",
        f"{last['updates']:,}",
        ratio,
        f"{last['wall_seconds']:,.1f}",
        *(f"{last['density'][kind]:.4f}" for kind in NETWORKS),
        *kept,
        f"{last['success_any']:.2f}",
        f"{last['success_last']:.2f}",
        f"{last['return_mean']:,.0f}",
    ]


def _kept(run: SavedRun, kind: str) -> str:
    total, size, leaves = numbers.kept_counts(run, kind)
    layers = f": {' + '.join(f'{count:,}' for count in leaves)}" if leaves else ""
    return f"{total:,} of {size:,}{layers}"


def manifests(runs: Sequence[SavedRun], folders: Sequence[Container]) -> str:
    """Configuration, machine, versions, commit and command of everything, to be unfolded."""
    chosen = [(each.path, each.kind) for each in folders] + [(run.path, run.label) for run in runs]
    return "".join(page.details(f"{path}: {what}", (path / MANIFEST).read_text()) for path, what in chosen)


def provenance(runs: Sequence[SavedRun]) -> list[str]:
    """Sentences on where the runs come from, and on what may not be compared for that."""
    machines = sorted({f"{m['cpu']}, {m['cpus']} CPUs" for m in (r.manifest["machine"] for r in runs)})
    commits = sorted({run.manifest["machine"]["commit"] or "an unknown commit" for run in runs})
    texts = [f"Run on {' and on '.join(machines)}; code at {', '.join(commits)} (+: changed since)."]
    if len(machines) > 1:
        texts.append("Times of different machines are side by side here and do not compare.")
    if len(commits) > 1:
        texts.append("The runs were made by different states of the code.")
    return texts


def unfinished(runs: Sequence[SavedRun], folders: Sequence[Container]) -> str:
    """A note on what is not finished; empty if all is."""
    paths = [f"{each.path} ({each.kind})" for each in folders if not each.finished]
    paths += [f"{run.path} ({run.label})" for run in runs if run.summary is None]
    if not paths:
        return ""
    return page.note(
        f"Unfinished: {', '.join(paths)}. What they have so far is in the learning curves and the table of "
        "runs only."
    )


def repeated(groups: Sequence[Repetitions]) -> str:
    """A note on runs that are no further seeds; empty if there are none."""
    paths = [f"{run.path} ({group.label}, seed {run.seed})" for group in groups for run in group.repeated]
    if not paths:
        return ""
    return page.note(
        f"Left out of everything but the tables of single runs, as another run has the same settings and "
        f"the same seed: {', '.join(paths)}."
    )


def limits(groups: Sequence[Repetitions], families: Sequence[Family]) -> str:
    """What cannot be read off this report."""
    counts = sorted({len(group.finished) for group in groups if group.finished})
    texts = []
    if counts and counts[0] == 1:
        texts.append(
            "Some rows rest on a single seed. One seed says nothing about a difference between runs: curves "
            "of the same settings oscillate, and seeds differ."
        )
    if counts and counts[-1] > 1:
        texts.append(
            f"With {counts[0]} to {counts[-1]} seeds, least and greatest are shown and no confidence "
            "interval or test: ranges that overlap are no difference, ranges that do not are no proof of "
            "one."
        )
    texts.append(
        "An evaluation is one episode for each goal by the deterministic actor. The best of several "
        "evaluations is higher than what that actor would reach when tested again; the last is not chosen."
    )
    kinds = {group.kind for group in groups}
    missing = {"round": "tickets", "control": "matched controls", "variant": "transfers"}
    absent = [name for kind, name in missing.items() if kind not in kinds]
    if absent:
        texts.append(f"Not among these runs: {', '.join(absent)}.")
    if "round" in kinds and any(not family.dense for family in families):
        texts.append(
            "The dense run of some tickets cannot be found where their manifests say, so that its level is "
            "not drawn."
        )
    texts.append(
        "Masked operation counts are no measured speed, and nothing here is a time on sparse kernels."
    )
    return page.bullets(texts)
