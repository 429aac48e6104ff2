"""The tables and notes of a report on every run: costs, counts, where it was run, what is missing."""

import datetime
import os
from collections.abc import Sequence

import numpy as np

from engine.sparse import masks as mask_functions
from engine.sparse.compact import compact, effective
from fastcollect.support.machine import commit, cpu_model
from trainers.export import folded_actor, measure
from trainers.report import numbers, page
from trainers.report.repetitions import Family, Repetitions, seeds
from trainers.store.layout import NETWORKS
from trainers.store.manifest import MANIFEST
from trainers.store.reader import Container, SavedRun


def costs(groups: Sequence[Repetitions], families: Sequence[Family], runs: Sequence[SavedRun]) -> str:
    """Operations by theory, and measured times."""
    rows = []
    for group in (group for group in groups if group.finished):
        found = [run.summary["flops"] for run in group.finished if run.summary is not None]
        counts = [("forward", kind) for kind in ("dense", "masked", "compact")]
        counts += [("update", kind) for kind in ("dense", "masked")]
        means = [float(np.mean([flops[what][kind] for flops in found])) for what, kind in counts]
        rows.append([group.env, group.label, *(f"{mean:,.0f}" for mean in means)])
    columns = "environment|run|actor, dense|masked|compact|update, dense|update, masked"
    caption = (
        "Theoretical floating-point operations, mean over seeds: of the actor for one observation, and of "
        "one update on a batch, actor and both critics. A multiply-add counts as 2; a backward pass as two "
        "forward passes. Masked: what a machine that skips every zero would need; training here multiplies "
        "dense kernels and saves nothing. Compact: dense kernels without the units that have no influence."
    )
    theory = page.table(columns, rows, caption, texts=["run"])
    speeds = _speeds(runs) or page.element("p", "No run is finished, so nothing was timed.")
    return theory + page.element("h3", "Measured time") + speeds + _inference(families)


def _speeds(runs: Sequence[SavedRun]) -> str:
    rows = []
    for run in runs:
        if run.summary is None:
            continue
        first = next(iter(run.evaluations), {"env_steps": 0, "updates": 0})
        made = [run.summary[name] - first[name] for name in ("env_steps", "updates")]
        seconds = run.summary["training_seconds"]
        speeds = [f"{count / seconds:,.0f}" if seconds > 0 else "" for count in made]
        cells = *(f"{count:,}" for count in made), f"{run.summary['wall_seconds']:,.1f}", *speeds
        rows.append([run.env, run.label, run.seed, *cells])
    columns = "environment|run|seed|own steps|own updates|wall seconds|steps/s|updates/s"
    caption = (
        "Own: made by this run, without those before the point that it was rewound to. Speeds are means from "
        "the run's start, processes and compilation included, to its last update; its last evaluation is in "
        "the wall seconds only. They depend on what else the machine did."
    )
    return page.table(columns, rows, caption, texts=["run"])


def _inference(families: Sequence[Family]) -> str:
    rows = []
    for run in (run for family in families if family.rounds for run in list(family.rounds.values())[-1]):
        actor = folded_actor(run)
        for batch, (masked, small) in measure(actor, compact(run.masks["actor"], actor)).items():
            times = f"{masked * 1e6:,.1f}", f"{small * 1e6:,.1f}", f"{masked / small:.2f}"
            rows.append([run.env, run.label, run.seed, batch, *times])
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
        "them, those before its rewind point included. Kept weights: exact counts, in all and of each layer; "
        "effective: those of them that lie on a path of kept weights from an input to an output. "
        "Of an unfinished run, what its last evaluation says."
    )
    return page.table(columns, rows, caption, texts=["environment", "run"])


def _record(run: SavedRun) -> list[str]:
    last = run.summary or next(reversed(run.evaluations), None)
    if last is None:
        return ["unfinished", *[""] * 11]
    state, ratio, kept = "unfinished", "", [""] * len(NETWORKS)
    if run.summary is not None:
        state = "stopped early" if last["stopped_early"] else "finished"
        ratio = f"{last['updates_per_step']:.4f}"
        kept = [_kept(run, kind) for kind in NETWORKS]
    counts = f"{last['env_steps']:,}", f"{last['updates']:,}", ratio, f"{last['wall_seconds']:,.1f}"
    densities = [f"{last['density'][kind]:.4f}" for kind in NETWORKS]
    results = [f"{last[key]:{form}}" for key, (_, form) in numbers.MEASURES.items()]
    return [state, *counts, *densities, *kept, *results]


def _kept(run: SavedRun, kind: str) -> str:
    """Kept and prunable weights, of a pruned network those of each layer, and how many are on a path."""
    size = mask_functions.counts(mask_functions.full(run.parameters[kind]))[1]
    leaves, total = mask_functions.counts(run.masks[kind])
    layers = " + ".join(f"{count:,}" for count in leaves.values())
    if not leaves:
        return f"{size:,} of {size:,}"
    return f"{total:,} of {size:,}: {layers}; effective {sum(effective(run.masks[kind]).values()):,}"


def manifests(runs: Sequence[SavedRun], folders: Sequence[Container]) -> str:
    """Configuration, machine, versions, commit and command of everything, to be unfolded."""
    chosen = [(each.path, each.kind) for each in folders] + [(run.path, run.label) for run in runs]
    return "".join(page.details(f"{path}: {what}", (path / MANIFEST).read_text()) for path, what in chosen)


def lead(runs: Sequence[SavedRun], folders: Sequence[Container], groups: Sequence[Repetitions]) -> str:
    """How much is there, where it comes from, what may not be compared for that, and what is missing."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    machines = sorted({f"{m['cpu']}, {m['cpus']} CPUs" for m in (r.manifest["machine"] for r in runs)})
    commits = sorted({run.manifest["machine"]["commit"] or "an unknown commit" for run in runs})
    texts = [
        f"{len(runs)} runs, {seeds(len({run.seed for run in runs}))}, {len({run.env for run in runs})} "
        f"environments. Written {now} at {commit()}.",
        f"Run on {' and on '.join(machines)}; code at {', '.join(commits)} (+: changed since).",
        "Times of different machines are side by side here and do not compare." * (len(machines) > 1),
        "The runs were made by different states of the code." * (len(commits) > 1),
    ]
    parts = [page.element("p", text) for text in texts if text]
    unfinished = [f"{each.path} ({each.kind})" for each in folders if not each.finished]
    unfinished += [f"{run.path} ({run.label})" for run in runs if run.summary is None]
    if unfinished:
        text = "What they have so far is in the learning curves and the table of runs only."
        parts.append(page.element("p", f"Unfinished: {', '.join(unfinished)}. {text}", "note"))
    repeated = [f"{run.path} ({group.label}, seed {run.seed})" for group in groups for run in group.repeated]
    if repeated:
        text = (
            "Left out of everything but the tables of single runs, as another run has the same settings and "
        )
        parts.append(page.element("p", f"{text}the same seed: {', '.join(repeated)}.", "note"))
    return "".join(parts)


def limits(groups: Sequence[Repetitions], families: Sequence[Family]) -> str:
    """What cannot be read off this report."""
    counts = [len(group.finished) for group in groups if group.finished]
    kinds = {group.kind for group in groups}
    missing = {"round": "tickets", "control": "matched controls", "variant": "transfers"}
    absent = [name for kind, name in missing.items() if kind not in kinds]
    texts = [
        "Some rows rest on a single seed. One seed says nothing about a difference between runs: curves of "
        "the same settings oscillate, and seeds differ." * (1 in counts),
        f"With {seeds(*counts or [0])}, least and greatest are shown and no confidence interval or test: "
        "ranges that overlap are no difference, ranges that do not are no proof of one."
        * (max(counts, default=0) > 1),
        "An evaluation is one episode for each goal by the deterministic actor. The best of several "
        "evaluations is higher than what that actor would reach when tested again; the last is not chosen.",
        f"Not among these runs: {', '.join(absent)}." * bool(absent),
        "The dense run of some tickets cannot be found where their manifests say, so that its level is not "
        "drawn." * ("round" in kinds and not all(family.dense for family in families)),
        "Masked operation counts are no measured speed, and nothing here is a time on sparse kernels.",
    ]
    return f"<ul>{''.join(page.element('li', text) for text in texts if text)}</ul>\n"
