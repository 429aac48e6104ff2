"""The stages of a lottery-ticket study: dense, ticket with its controls, and transfer.

A stage is a run folder; what it trains lies in run folders inside it, each finished, resumable and skipped by
itself. Dense: round 0. Ticket: prune, rewind, retrain, round after round (Frankle and Carbin 2019; Yu et
al. 2020 for reinforcement learning). Transfer: a ticket's mask on another task, and what tells its mask from
its weights there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from engine.algorithms.base import AgentState, Masks
from engine.algorithms.saliency import mean_absolute_gradients
from engine.data.transition import Batch
from engine.networks import Parameters
from engine.sparse import masks as mask_functions
from engine.sparse import pruning
from fastcollect import ConfigError
from fastcollect.control.config import resolve_env
from fastcollect.support.plain import plain
from trainers.config.training import PruneConfig, RewindConfig, StudyConfig, TrainConfig
from trainers.run.learner import Start
from trainers.run.progress import Progress
from trainers.run.training import collector_config, train
from trainers.store import artifacts
from trainers.store.folder import RunFolder
from trainers.store.identity import Identity
from trainers.store.layout import NETWORKS, pack_masks, unpack_masks
from trainers.store.manifest import SUMMARY, read_config, read_summary
from trainers.study.controls import CONTROLS, VARIANTS, derive, planned
from trainers.study.rewind import Source, Ticket, open_source

RESULTS = ("success_any", "success_last", "return_mean", "env_steps", "updates", "wall_seconds")
"""What every summary says at its top; of a stage, the seconds of all that is inside it."""

_WHOLE = 10
"""How often a last step must go into what a whole round would prune, to be none of its own."""


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
    inside: str,
    title: str,
    config: TrainConfig,
    start: Start,
    **place: Any,
) -> dict[str, Any]:
    """Train in a run folder inside a stage's, unless that is finished.

    place: kind, name and round of its identity. Returns what the stage's summary says of it. Raises as
    ``train``; ConfigError where the folder is another run's.
    """
    path, identity = around.path / inside, replace(context.identity, **place)
    masks = {kind: start.masks.get(kind, {}) for kind in NETWORKS}
    counts = {kind: mask_functions.counts(mask) for kind, mask in masks.items()}
    with RunFolder.create(path, identity, context.command, parent=around, resume=True) as folder:
        if not folder.finished():
            folder.annotate(kept_weights={kind: counts[kind][1] for kind in start.masks})
            if any(start.masks.values()):
                _save_masks(folder, start.masks)
            context.progress.run(f"{context.title} {title}", config.env_steps)
            train(folder, config, start, context.progress, resume=True)
    summary = read_summary(path, [*RESULTS, "best", "reached"])
    return {
        "name": identity.name or "ticket",
        "round": identity.round,
        "sparsity": {kind: mask_functions.sparsity(mask) for kind, mask in masks.items()},
        "kept_weights": {kind: {"total": total, **leaves} for kind, (leaves, total) in counts.items()},
        **{key: summary[key] for key in ("best", *RESULTS, "reached")},
    }


def totals(rows: Sequence[Mapping[str, Any]], headline: Mapping[str, Any]) -> dict[str, Any]:
    """What a stage's summary says at its top: one row's results, and the time that all took together."""
    density = {kind: 1 - value for kind, value in headline["sparsity"].items()}
    seconds = sum(each["wall_seconds"] for each in rows)
    return {**{key: headline[key] for key in RESULTS[:-1]}, "density": density, "wall_seconds": seconds}


def _save_masks(folder: RunFolder, masks: Masks) -> None:
    artifacts.save(folder.path, "mask", pack_masks(masks), config_hash=folder.config_hash)


def collectable(config: TrainConfig) -> TrainConfig:
    """The configuration. Raises ConfigError if what it names cannot be collected from."""
    resolve_env(collector_config(config))
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
        trained = {(each["round"], each["name"]) for each in there}
        if there and trained.issuperset((n, name) for n, names in chosen.items() for name in names):
            return context.finished(path)
        drawn = Ticket.begin(config, matrix, source, {})
        targets = rounds(prune)
        rows: list[dict[str, Any]] = []
        for number, sparsities in enumerate(targets, 1):
            drawn = replace(drawn, number=number)
            drawn = replace(drawn, masks=_pruned(drawn, prune, sparsities, path))
            inside, title = f"round-{number}", f"round {number}/{len(targets)}"
            start = drawn.rewound(drawn.masks)
            headline = run_inside(context, folder, inside, title, config, start, kind="round", round=number)
            rows.append(headline)
            for name in chosen.get(number, ()):
                start = CONTROLS[name](drawn, derive(config.seed, "control", number, name))
                place = {"kind": "control", "round": number, "name": name}
                title = f"round {number} control {name}"
                rows.append(run_inside(context, folder, f"{inside}-{name}", title, config, start, **place))
            drawn = replace(drawn, last=open_source(str(path / inside)).state("final", drawn.last))
        _save_masks(folder, drawn.masks)
        anchor = source.state("anchor", drawn.last)
        summary = {
            "stage": "ticket",
            "dense": read_summary(source.path),
            "anchor": {"env_steps": int(anchor.env_steps), "updates": int(anchor.updates)},
            "rounds": rows,
        }
        folder.write_summary(summary | totals(rows, headline))
        return read_summary(path)


def _check_ticket(config: TrainConfig, prune: PruneConfig, matrix: RewindConfig, source: Source) -> None:
    """Before a folder is made: raises ConfigError where the source cannot be what a ticket begins from."""
    needs = ["final", "anchor"]
    needs += ["initial"] if matrix.parameters == "initial" else []
    needs += ["anchor-replay"] if matrix.replay == "anchor" else []
    needs += ["saliency"] if pruning.CRITERIA[prune.criterion].needs == "gradients" else []
    like = source.check(config, needs)
    its, mine = read_config(source.path), plain(config)
    # A count of steps that goes on has to have been counted in the same way.
    counted = ("start_steps", "updates_per_step") if matrix.step == "anchor" else ()
    problems = [
        f"{name} is {mine[name]}; the dense run {source.path!r} has {its.get(name)}"
        + ("; --stage transfer takes a ticket to another task" if name.startswith("env") else "")
        for name in ("env", "env_kwargs", *counted)
        if mine[name] != its.get(name)
    ]
    anchor = int(source.state("anchor", like).env_steps)
    if matrix.step == "anchor" and config.env_steps <= anchor:
        problems.append(f"env_steps is {config.env_steps}; allowed: more than the anchor's {anchor}")
    if problems:
        raise ConfigError(problems)


def rounds(prune: PruneConfig) -> list[dict[str, float]]:
    """{"actor", "critic"} -> sparsity after each round; the one that is there first waits for the other.

    A last step that is less than a tenth of a whole one is part of the one before: 33, 55, 70, 80 % and not
    79.8, 80 %, which differ by a hundred weights and cost a run.
    """
    plans = {"actor": _plan(prune.actor, prune.rate), "critic": _plan(prune.critic, prune.rate)}
    return [
        {kind: plan[min(k, len(plan) - 1)] if plan else 0.0 for kind, plan in plans.items()}
        for k in range(max(map(len, plans.values())))
    ]


def _plan(target: float, rate: float) -> list[float]:
    plan = pruning.schedule(target, rate)
    short = len(plan) > 1 and plan[-1] - plan[-2] < (1 - plan[-2]) * rate / _WHOLE
    return [*plan[:-2], target] if short else plan


def control_problems(study: StudyConfig) -> list[str]:
    """What is wrong with the rounds that are to get controls."""
    last = len(rounds(study.prune))
    wrong = [number for number in study.control_rounds if not 1 <= number <= last]
    return [f"control_rounds has {wrong}; allowed: 1 to {last}"] if wrong else []


def control_rounds(study: StudyConfig) -> tuple[int, ...]:
    """The rounds that get controls."""
    return (study.control_rounds or (len(rounds(study.prune)),)) if study.controls else ()


def _pruned(
    drawn: Ticket, prune: PruneConfig, sparsities: Mapping[str, float], path: Path
) -> dict[str, mask_functions.Mask]:
    """What the weights of the round before leave over; nested in its masks. Raises ConfigError."""
    found: dict[str, mask_functions.Mask] = {}
    gradients: dict[str, Parameters] = {}
    if pruning.CRITERIA[prune.criterion].needs == "gradients":
        batches = Batch(**drawn.source.arrays("saliency"))
        gradients = mean_absolute_gradients(drawn.algorithm, drawn.last, batches)
    for kind in drawn.algorithm.prunable:
        if not sparsities[kind]:
            continue
        rng = np.random.default_rng(derive(drawn.config.seed, "pruning", drawn.number, kind))
        scores = pruning.scores(
            prune.criterion, drawn.last.parameters[kind], gradients=gradients.get(kind), rng=rng
        )
        try:
            found[kind] = pruning.prune(
                drawn.masks.get(kind, {}),
                scores,
                sparsities[kind],
                prune.scope,
                min_kept=prune.min_kept,
                live=drawn.live[kind],
            )
        except ValueError as error:
            raise ConfigError([f"round {drawn.number} of {str(path)!r}, {kind}: {error}"]) from error
    return found


def transfer(
    context: Context, path: Path, config: TrainConfig, matrix: RewindConfig, source: Source, dense: Source
) -> dict[str, Any]:
    """A ticket's mask on another task, in the variants of ``controls.VARIANTS``.

    config: of the runs on the other task. source: a finished ticket. dense: the run that it was drawn from.
    Of the matrix only parameters and rescale_fresh count: all else begins anew. Returns the summary with a
    row each.
    """
    if matrix.parameters == "final":
        raise ConfigError(["rewind.parameters is final; allowed for a transfer: anchor, initial"])
    if not (path / SUMMARY).exists():
        like = dense.check(config, ["final", matrix.parameters])
        masks = unpack_masks(source.arrays("mask"))
        _check_masks(masks, like, f"the mask of {source.path!r}")
    with context.open(path) as folder:
        if folder.finished():
            return context.finished(path)
        drawn = Ticket.begin(config, matrix, dense, masks)
        rows = []
        for name, make_start in VARIANTS.items():
            start = make_start(drawn, derive(config.seed, "transfer", name))
            rows.append(run_inside(context, folder, name, name, config, start, kind="variant", name=name))
        folder.write_summary({"stage": "transfer", "variants": rows} | totals(rows, rows[0]))
        return read_summary(path)


def _check_masks(masks: Masks, state: AgentState, where: str) -> None:
    """Raises ConfigError naming every leaf, and both shapes, where masks are of another architecture."""
    problems = []
    for name in state.masks:
        try:
            mask_functions.check_matches(masks.get(name, {}), state.parameters[name])
        except ValueError as error:
            problems.append(f"{where}, {name}: {error}")
    if problems:
        raise ConfigError(problems)
