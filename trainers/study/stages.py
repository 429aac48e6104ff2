"""The stages of a lottery-ticket study: dense, and ticket with its controls; ``transfer`` is the third.

A stage is a run folder; what it trains lies in run folders inside it, each finished, resumable and skipped by
itself. Dense: round 0. Ticket: prune, rewind, retrain, round after round (Frankle and Carbin 2019; Yu et
al. 2020 for reinforcement learning).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.algorithms.base import AgentState, Algorithm, Masks
from engine.sparse import masks as mask_functions
from engine.sparse import pruning
from fastcollect.support.errors import ConfigError
from trainers.config.training import PruneConfig, RewindConfig, TrainConfig, plain
from trainers.run.progress import Progress
from trainers.run.start import Start
from trainers.run.training import train
from trainers.store import artifacts
from trainers.store.folder import SUMMARY, RunFolder, read_config, read_summary
from trainers.store.states import NETWORKS
from trainers.study import rewind
from trainers.study.controls import CONTROLS, control_start, planned
from trainers.study.rewind import Source

RESULTS = ("success_any", "success_last", "return_mean", "env_steps", "updates", "wall_seconds")
"""What every summary says at its top."""
_NEED_GRADIENTS = ("taylor", "gradient")


@dataclass(frozen=True)
class Context:
    """What every stage carries along. identity: the whole configuration, as the manifest has it.

    title: what the progress calls this stage. facts: for the manifests of the runs inside.
    """

    identity: Mapping[str, Any]
    command: Sequence[str]
    progress: Progress
    resume: bool
    title: str


def run_inside(
    context: Context,
    path: Path,
    name: str,
    config: TrainConfig,
    make_start: Callable[[], Start],
    **facts: Any,
) -> dict[str, Any]:
    """Train in the run folder ``path``, unless that is finished; returns its summary.

    facts: for its manifest. Raises as ``train``; ConfigError where the folder is another run's.
    """
    with RunFolder.create(path, context.identity, context.command, resume=True) as folder:
        changed = [
            f"run folder {str(path)!r} was begun with another {key}: {folder.facts[key]} there, {value} here"
            for key, value in facts.items()
            if key in folder.facts and folder.facts[key] != value
        ]
        if changed:
            raise ConfigError(changed)
        if not folder.finished():
            start = make_start()
            kept = {kind: mask_functions.counts(mask)[1] for kind, mask in start.masks.items()}
            folder.annotate(**facts, training=plain(config), kept_weights=kept)
            if any(start.masks.values()):
                _save_masks(folder, start.masks)
            context.progress.run(f"{context.title} {name}".strip(), config.env_steps)
            train(folder, config, start, context.progress, resume=True)
        return read_summary(path, [*RESULTS, "best", "reached"])


def _save_masks(folder: RunFolder, masks: Masks) -> None:
    artifacts.save(folder.path, "mask", rewind.pack_masks(masks), config_hash=folder.config_hash)


def dense(context: Context, path: Path, config: TrainConfig) -> dict[str, Any]:
    """Round 0: a dense run that keeps its initial, anchor, best and final states and saliency batches."""
    if config.anchor_steps > config.env_steps:
        raise ConfigError([f"anchor_steps is {config.anchor_steps}; allowed: 1 to env_steps"])
    with RunFolder.create(path, context.identity, context.command, resume=context.resume) as folder:
        if folder.finished():
            context.progress.say(f"{str(path)!r} is finished already")
            return read_summary(path)
        folder.annotate(stage="dense", training=plain(config))
        context.progress.run(context.title, config.env_steps)
        return train(folder, config, Start(), context.progress, resume=context.resume)


# Tickets.


def ticket(
    context: Context,
    path: Path,
    config: TrainConfig,
    prune: PruneConfig,
    matrix: RewindConfig,
    source: Source,
    controls: Sequence[int],
) -> dict[str, Any]:
    """Iterative pruning of a dense run, and the controls of the rounds whose numbers are given.

    Returns the summary: the source's, and one row for each round and control with its sparsities. Controls
    can be asked for later: what is trained is not trained again.
    """
    if not (path / SUMMARY).exists():
        _check_ticket(config, prune, matrix, source)
    with RunFolder.create(path, context.identity, context.command, resume=context.resume) as folder:
        there = read_summary(path, ["rounds", *RESULTS])["rounds"] if folder.finished() else []
        chosen = planned(controls, matrix, there)
        if there and all((n, name) in _trained(there) for n, names in chosen.items() for name in names):
            context.progress.say(f"{str(path)!r} is finished already")
            return read_summary(path)
        algorithm = source.algorithm(config)
        like = algorithm.init(config.seed)
        last = source.state("final", like)
        folder.annotate(stage="ticket", source=vars(source), rewind=plain(matrix), prune=plain(prune))
        targets = rounds(prune)
        rows: list[dict[str, Any]] = []
        masks: Masks = {}
        for number, sparsities in enumerate(targets, 1):
            inside = path / f"round-{number}"
            masks = _round_masks(config, algorithm, prune, source, inside, number, masks, last, sparsities)
            before, kept = last, masks
            summary = run_inside(
                context,
                inside,
                f"round {number}/{len(targets)}",
                config,
                lambda: rewind.rewound(config, algorithm, matrix, source, before, kept),  # noqa: B023
                round=number,
                source=vars(source),
                rewind=plain(matrix),
            )
            rows.append(row("ticket", number, masks, summary))
            last = Source(str(inside), folder.config_hash).state("final", like)
            for name in chosen.get(number, ()):
                rows.append(
                    _control(context, path, name, config, algorithm, matrix, source, number, masks, before)
                )
        _save_masks(folder, masks)
        anchor = source.state("anchor", like)
        headline = [each for each in rows if each["name"] == "ticket"][-1]
        summary = {
            "stage": "ticket",
            "dense": read_summary(source.path),
            "anchor": {"env_steps": int(anchor.env_steps), "updates": int(anchor.updates)},
            "rounds": rows,
        }
        folder.write_summary(summary | totals(rows, headline))
        return read_summary(path)


def _trained(rows: Sequence[Mapping[str, Any]]) -> set[tuple[int, str]]:
    return {(each["round"], each["name"]) for each in rows}


def _check_ticket(config: TrainConfig, prune: PruneConfig, matrix: RewindConfig, source: Source) -> None:
    """Before a folder is made: raises ConfigError where the source cannot be what a ticket begins from."""
    snapshots = ["final", "anchor", *(["initial"] if matrix.parameters == "initial" else [])]
    others = ["anchor-replay"] if matrix.replay == "anchor" else []
    others += ["saliency"] if prune.criterion in _NEED_GRADIENTS else []
    algorithm = check_source(config, source, snapshots, others)
    its, mine = read_config(source.path), plain(config)
    # A count of steps that goes on has to have been counted in the same way.
    counted = ("start_steps", "updates_per_step") if matrix.step == "anchor" else ()
    problems = [
        f"{name} is {mine[name]}; the dense run {source.path!r} has {its.get(name)}"
        + ("; --stage transfer takes a ticket to another task" if name.startswith("env") else "")
        for name in ("env", "env_kwargs", *counted)
        if mine[name] != its.get(name)
    ]
    anchor = int(source.state("anchor", algorithm.init(config.seed)).env_steps)
    if matrix.step == "anchor" and config.env_steps <= anchor:
        problems.append(f"env_steps is {config.env_steps}; allowed: more than the anchor's {anchor}")
    if problems:
        raise ConfigError(problems)


def rounds(prune: PruneConfig) -> list[dict[str, float]]:
    """{"actor", "critic"} -> sparsity after each round; the one that is there first waits for the other."""
    plans = {"actor": pruning.schedule(prune.actor, prune.rate)}
    plans["critic"] = pruning.schedule(prune.critic, prune.rate)
    return [
        {kind: plan[min(k, len(plan) - 1)] if plan else 0.0 for kind, plan in plans.items()}
        for k in range(max(map(len, plans.values())))
    ]


def _round_masks(
    config: TrainConfig,
    algorithm: Algorithm,
    prune: PruneConfig,
    source: Source,
    inside: Path,
    number: int,
    masks: Masks,
    last: AgentState,
    sparsities: Mapping[str, float],
) -> Masks:
    """What the weights of the round before leave over; nested in its masks."""
    found: dict[str, Any] = {}
    gradients = {}
    if prune.criterion in _NEED_GRADIENTS:
        gradients = rewind.saliency(algorithm, last, source.arrays("saliency"))
    for index, kind in enumerate(algorithm.prunable):
        if not sparsities[kind]:
            continue
        parameters = rewind.as_arrays(last.parameters[kind])
        scores = pruning.scores(
            prune.criterion,
            parameters,
            gradients=gradients.get(kind),
            rng=np.random.default_rng([config.seed, number, index]),
        )
        try:
            found[kind] = pruning.prune(
                masks.get(kind, {}), scores, sparsities[kind], prune.scope, min_kept=prune.min_kept
            )
        except ValueError as error:
            raise ConfigError([f"round {number} of {str(inside.parent)!r}, {kind}: {error}"]) from error
    return found


def _control(
    context: Context,
    path: Path,
    name: str,
    config: TrainConfig,
    algorithm: Algorithm,
    matrix: RewindConfig,
    source: Source,
    number: int,
    masks: Masks,
    last: AgentState,
) -> dict[str, Any]:
    seed = [config.seed, number, 1000 + CONTROLS.index(name)]
    control_masks, make = control_start(name, seed, config, algorithm, matrix, source, masks, last)
    facts = {"round": number, "control": name, "source": vars(source)}
    facts |= {} if name == "random-mask" else {"rewind": plain(matrix)}
    title = f"round {number} control {name}"
    summary = run_inside(context, path / f"round-{number}-{name}", title, config, make, **facts)
    return row(name, number, control_masks, summary)


def check_source(
    config: TrainConfig, source: Source, snapshots: Sequence[str], others: Sequence[str] = ()
) -> Algorithm:
    """Before a folder is made: raises ConfigError for artifacts that are missing, changed, or do not fit.

    Returns the algorithm in the source's spaces.
    """
    algorithm = source.algorithm(config)
    like = algorithm.init(config.seed)
    problems: list[str] = []
    for name in (*snapshots, *others):
        try:
            source.state(name, like) if name in snapshots else source.arrays(name)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return algorithm


# Summaries.


def row(name: str, number: int, masks: Masks, summary: Mapping[str, Any]) -> dict[str, Any]:
    """What a stage's summary says of one run inside it."""
    kept = {kind: mask_functions.counts(masks.get(kind, {})) for kind in NETWORKS}
    return {
        "name": name,
        "round": number,
        "sparsity": {kind: mask_functions.sparsity(masks.get(kind, {})) for kind in NETWORKS},
        "kept_weights": {kind: {"total": total, **leaves} for kind, (leaves, total) in kept.items()},
        "best": summary["best"],
        **{key: summary[key] for key in (*RESULTS, "reached")},
    }


def totals(rows: Sequence[Mapping[str, Any]], headline: Mapping[str, Any]) -> dict[str, Any]:
    """What a stage's summary says at its top: one row's results, and the time that all took together."""
    wanted = ("success_any", "success_last", "return_mean", "env_steps", "updates")
    density = {kind: 1 - value for kind, value in headline["sparsity"].items()}
    seconds = sum(each["wall_seconds"] for each in rows)
    return {**{key: headline[key] for key in wanted}, "density": density, "wall_seconds": seconds}
