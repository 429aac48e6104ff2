"""The stages of a lottery-ticket study: dense, and ticket with its controls; ``transfer`` is the third.

A stage is a run folder; what it trains lies in run folders inside it, each finished, resumable and skipped by
itself. Dense: round 0. Ticket: prune, rewind, retrain, round after round (Frankle and Carbin 2019; Yu et
al. 2020 for reinforcement learning).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from engine.algorithms.base import AgentState, Algorithm, Masks
from engine.sparse import masks as mask_functions
from engine.sparse import pruning
from fastcollect.control.config import resolve_env
from fastcollect.support.errors import ConfigError
from fastcollect.support.plain import plain
from trainers.config.training import PruneConfig, RewindConfig, StudyConfig, TrainConfig
from trainers.run.learner import Start
from trainers.run.progress import Progress
from trainers.run.training import collector_config, train
from trainers.store import artifacts
from trainers.store.folder import RunFolder
from trainers.store.identity import Identity
from trainers.store.layout import NETWORKS, pack_masks
from trainers.store.manifest import SUMMARY, read_config, read_summary
from trainers.study import rewind
from trainers.study.controls import CONTROLS, planned
from trainers.study.controls.base import Round
from trainers.study.rewind import Source
from trainers.study.seeds import derive

RESULTS = ("success_any", "success_last", "return_mean", "env_steps", "updates", "wall_seconds")
"""What every summary says at its top."""
_NEED_GRADIENTS = ("taylor", "gradient")


@dataclass(frozen=True)
class Context:
    """What every stage carries along.

    identity: of the stage's own folder. command: what the user typed. title: what the progress calls this
    stage. parent: the study that it is a part of.
    """

    identity: Identity
    command: Sequence[str]
    progress: Progress
    resume: bool
    title: str
    parent: RunFolder | None = None

    def open(self, path: Path) -> RunFolder:
        """The stage's folder. Raises ConfigError; see ``RunFolder.create``."""
        return RunFolder.create(path, self.identity, self.command, parent=self.parent, resume=self.resume)

    def finished(self, path: Path) -> dict[str, Any]:
        """The summary of a stage that there is nothing left to do for, which is said."""
        self.progress.say(f"{str(path)!r} is finished already")
        return read_summary(path)


def run_inside(
    context: Context,
    around: RunFolder,
    folder_name: str,
    title: str,
    config: TrainConfig,
    make_start: Callable[[], Start],
    **place: Any,
) -> dict[str, Any]:
    """Train in a run folder inside a stage's, unless that is finished; returns its summary.

    place: kind, name and round of its identity. Raises as ``train``; ConfigError where the folder is another
    run's.
    """
    path, identity = around.path / folder_name, replace(context.identity, **place)
    with RunFolder.create(path, identity, context.command, parent=around, resume=True) as folder:
        if not folder.finished():
            start = make_start()
            kept = {kind: mask_functions.counts(mask)[1] for kind, mask in start.masks.items()}
            folder.annotate(kept_weights=kept)
            if any(start.masks.values()):
                _save_masks(folder, start.masks)
            context.progress.run(f"{context.title} {title}".strip(), config.env_steps)
            train(folder, config, start, context.progress, resume=True)
        return read_summary(path, [*RESULTS, "best", "reached"])


def _save_masks(folder: RunFolder, masks: Masks) -> None:
    artifacts.save(folder.path, "mask", pack_masks(masks), config_hash=folder.config_hash)


def collectable(config: TrainConfig) -> TrainConfig:
    """The configuration. Raises ConfigError if what it names cannot be collected from."""
    collection = collector_config(config)
    resolve_env(collection)
    return config


def dense(context: Context, path: Path, config: TrainConfig) -> dict[str, Any]:
    """Round 0: a dense run that keeps its initial, anchor, best and final states and saliency batches."""
    if config.anchor_steps > config.env_steps:
        raise ConfigError([f"anchor_steps is {config.anchor_steps}; allowed: 1 to env_steps"])
    with context.open(path) as folder:
        if folder.finished():
            return context.finished(path)
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
    with context.open(path) as folder:
        there = read_summary(path, ["rounds", *RESULTS])["rounds"] if folder.finished() else []
        chosen = planned(controls, matrix, there)
        if there and all((n, name) in _trained(there) for n, names in chosen.items() for name in names):
            return context.finished(path)
        algorithm = source.algorithm(config)
        like = algorithm.init(config.seed)
        last = source.state("final", like)
        targets = rounds(prune)
        rows: list[dict[str, Any]] = []
        masks: Masks = {}
        for number, sparsities in enumerate(targets, 1):
            inside = f"round-{number}"
            masks = _round_masks(config, algorithm, prune, source, path, number, masks, last, sparsities)
            ticket_round = Round(config, algorithm, matrix, source, number, masks, last)
            summary = run_inside(
                context,
                folder,
                inside,
                f"round {number}/{len(targets)}",
                config,
                partial(ticket_round.rewound, masks),
                kind="round",
                round=number,
            )
            rows.append(row("ticket", number, masks, summary))
            last = rewind.open_source(str(path / inside)).state("final", like)
            rows += [_control(context, folder, name, ticket_round) for name in chosen.get(number, ())]
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


def control_problems(study: StudyConfig) -> list[str]:
    """What is wrong with the rounds that are to get controls."""
    last = len(rounds(study.prune))
    wrong = [number for number in study.control_rounds if not 1 <= number <= last]
    return [f"control_rounds has {wrong}; allowed: 1 to {last}"] if wrong else []


def control_rounds(study: StudyConfig) -> tuple[int, ...]:
    """The rounds that get controls."""
    return (study.control_rounds or (len(rounds(study.prune)),)) if study.controls else ()


def _round_masks(
    config: TrainConfig,
    algorithm: Algorithm,
    prune: PruneConfig,
    source: Source,
    path: Path,
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
    for kind in algorithm.prunable:
        if not sparsities[kind]:
            continue
        parameters = rewind.as_arrays(last.parameters[kind])
        scores = pruning.scores(
            prune.criterion,
            parameters,
            gradients=gradients.get(kind),
            rng=np.random.default_rng(derive(config.seed, "pruning", number, kind)),
        )
        try:
            found[kind] = pruning.prune(
                masks.get(kind, {}), scores, sparsities[kind], prune.scope, min_kept=prune.min_kept
            )
        except ValueError as error:
            raise ConfigError([f"round {number} of {str(path)!r}, {kind}: {error}"]) from error
    return found


def _control(context: Context, around: RunFolder, name: str, ticket_round: Round) -> dict[str, Any]:
    number, config = ticket_round.number, ticket_round.config
    masks, make = CONTROLS[name](ticket_round, derive(config.seed, "control", number, name))
    place = {"kind": "control", "round": number, "name": name}
    title = f"round {number} control {name}"
    summary = run_inside(context, around, f"round-{number}-{name}", title, config, make, **place)
    return row(name, number, masks, summary)


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
