"""The stages of a lottery-ticket study: dense, ticket with its controls, transfer with its variants.

A stage is a run folder; what it trains lies in run folders inside it, each finished, resumable and skipped by
itself. Dense: round 0. Ticket: prune, rewind, retrain, round after round (Frankle and Carbin 2019; Yu et
al. 2020 for reinforcement learning). Controls: Vischer, Lange and Sprekeler 2022, figure 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine import masks as mask_functions
from engine import pruning
from engine.sac import DENSE, Masks, SACState
from fastcollect.errors import ConfigError
from trainers import artifacts, rewind
from trainers.config import PruneConfig, RewindConfig, TrainConfig, plain
from trainers.loop import Start, train
from trainers.progress import Progress
from trainers.rewind import NETWORKS, Source
from trainers.run_folder import SUMMARY, RunFolder, read_summary
from trainers.snapshots import Snapshot

CONTROLS = ("permuted-weights", "permuted-mask", "random-mask", "dense")
VARIANTS = ("mask-anchor", "mask-only", "dense-finetuned", "random-mask")
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
            kept = {kind: mask_functions.counts(start.masks[kind])[1] for kind in NETWORKS}
            folder.annotate(**facts, training=plain(config), kept_weights=kept)
            if any(start.masks.values()):
                _save_masks(folder, start.masks)
            context.progress.run(f"{context.title} {name}".strip(), config.env_steps)
            train(folder, config, start, context.progress, resume=True)
        return read_summary(path)


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

    Returns the summary: the source's, and one row for each round and control with its sparsities.
    """
    if not (path / SUMMARY).exists():
        snapshots = ["final", "anchor", *(["initial"] if matrix.parameters == "initial" else [])]
        others = ["anchor-replay"] if matrix.replay == "anchor" else []
        others += ["saliency"] if prune.criterion in _NEED_GRADIENTS else []
        _check_source(config, source, snapshots, others)
    with RunFolder.create(path, context.identity, context.command, resume=context.resume) as folder:
        if folder.finished():
            context.progress.say(f"{str(path)!r} is finished already")
            return read_summary(path)
        like = rewind.template(config, source.arrays("final"))
        last = source.snapshot("final", like)
        folder.annotate(stage="ticket", source=vars(source), rewind=plain(matrix), prune=plain(prune))
        targets = rounds(prune)
        rows: list[dict[str, Any]] = []
        masks: Masks = DENSE
        for number, sparsities in enumerate(targets, 1):
            inside = path / f"round-{number}"
            masks = _round_masks(config, prune, source, inside, number, masks, last, sparsities)
            facts = {"round": number, "source": vars(source), "rewind": plain(matrix)}
            title = f"round {number}/{len(targets)}"
            before, kept = last, masks
            summary = run_inside(
                context,
                inside,
                title,
                config,
                lambda: rewind.rewound(config, matrix, source, before, kept),  # noqa: B023
                **facts,
            )
            rows.append(_row("ticket", number, masks, summary))
            last = Source(str(inside), folder.config_hash).snapshot("final", like)
            if number in controls:
                # Rewound to the anchor and without a mask, the dense control is the same in every round.
                again = number != max(controls) and "final" not in plain(matrix).values()
                names = [name for name in CONTROLS if not (again and name == "dense")]
                rows += _controls(context, path, config, matrix, source, number, masks, before, names)
        _save_masks(folder, masks)
        anchor = source.snapshot("anchor", like)
        summary = {
            "stage": "ticket",
            "dense": read_summary(source.path),
            "anchor": {"env_steps": anchor.env_steps, "updates": anchor.updates},
            "rounds": rows,
        }
        folder.write_summary(summary | _of_last(rows))
        return read_summary(path)


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
    prune: PruneConfig,
    source: Source,
    inside: Path,
    number: int,
    masks: Masks,
    last: Snapshot,
    sparsities: Mapping[str, float],
) -> Masks:
    """What the weights of the round before leave over; nested in its masks."""
    found: dict[str, Any] = {}
    gradients = {}
    if prune.criterion in _NEED_GRADIENTS:
        gradients = rewind.saliency(config, last, source.arrays("saliency"))
    for index, kind in enumerate(NETWORKS):
        if not sparsities[kind]:
            found[kind] = {}
            continue
        parameters = rewind.as_arrays(getattr(last.state, kind))
        scores = pruning.scores(
            prune.criterion,
            parameters,
            gradients=gradients.get(kind),
            rng=np.random.default_rng([config.seed, number, index]),
        )
        try:
            found[kind] = pruning.prune(
                masks[kind], scores, sparsities[kind], prune.scope, min_kept=prune.min_kept
            )
        except ValueError as error:
            raise ConfigError([f"round {number} of {str(inside.parent)!r}, {kind}: {error}"]) from error
    return found


def _controls(
    context: Context,
    path: Path,
    config: TrainConfig,
    matrix: RewindConfig,
    source: Source,
    number: int,
    masks: Masks,
    last: Snapshot,
    names: Sequence[str],
) -> list[dict[str, Any]]:
    rows = []
    for name in names:
        rng = np.random.default_rng([config.seed, number, 1000 + CONTROLS.index(name)])
        control_masks, make = control_start(name, rng, config, matrix, source, masks, last)
        facts = {"round": number, "control": name, "source": vars(source), "rewind": plain(matrix)}
        inside = path / f"round-{number}-{name}"
        title = f"round {number} control {name}"
        summary = run_inside(context, inside, title, config, make, **facts)
        rows.append(_row(name, number, control_masks, summary))
    return rows


def control_start(
    name: str,
    rng: np.random.Generator,
    config: TrainConfig,
    matrix: RewindConfig,
    source: Source,
    masks: Masks,
    last: Snapshot,
) -> tuple[Masks, Callable[[], Start]]:
    """The masks of a control, and what makes its start.

    permuted-weights: the ticket's mask, its weights in random order within each layer. permuted-mask: mask
    and weights both. random-mask: a mask as dense in each layer, with fresh weights and nothing of the
    source. dense: no mask, else as the ticket, the same budget.
    """
    if name == "dense":
        return DENSE, lambda: rewind.rewound(config, matrix, source, last, DENSE)
    if name == "random-mask":
        chosen = random_masks(rng, masks)
        return chosen, lambda: Start(
            chosen, rewind.fresh(config, last.state, other_seed=True), random_actions=True, keep=()
        )
    onto = masks if name == "permuted-weights" else random_masks(rng, masks)

    def permuted(kind: str, parameters: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        if not masks[kind]:
            return parameters
        return mask_functions.permute_weights(rng, parameters, masks[kind], onto[kind])

    return onto, lambda: rewind.with_networks(
        config, rewind.rewound(config, matrix, source, last, DENSE), onto, permuted
    )


def random_masks(rng: np.random.Generator, masks: Masks) -> dict[str, mask_functions.Mask]:
    """Random masks with the same number of weights in each layer of each network."""
    return {kind: mask_functions.random_like(rng, masks[kind]) for kind in NETWORKS}


# Transfer.


def transfer(
    context: Context,
    path: Path,
    config: TrainConfig,
    matrix: RewindConfig,
    ticket_source: Source,
    dense: Source,
) -> dict[str, Any]:
    """A ticket's mask on another task, in four variants; see ``variant_start``.

    ticket_source: a finished ticket. dense: the run it was drawn from. Returns the summary with a row each.
    """
    if not (path / SUMMARY).exists():
        like = _check_source(config, dense, ["final", _rewound_to(matrix)])
        masks = rewind.unpack_masks(ticket_source.arrays("mask"))
        rewind.check_mask(masks, like, f"the mask of {ticket_source.path!r}")
    with RunFolder.create(path, context.identity, context.command, resume=context.resume) as folder:
        if folder.finished():
            context.progress.say(f"{str(path)!r} is finished already")
            return read_summary(path)
        sources = {"ticket": vars(ticket_source), "dense": vars(dense)}
        folder.annotate(stage="transfer", sources=sources, rewind=plain(matrix))
        rows = []
        for index, name in enumerate(VARIANTS):
            rng = np.random.default_rng([config.seed, 2000 + index])
            chosen, make = variant_start(name, rng, config, matrix, dense, masks, like)
            summary = run_inside(context, path / name, name, config, make, variant=name, sources=sources)
            rows.append(_row(name, 0, chosen, summary))
        folder.write_summary({"stage": "transfer", "variants": rows} | _of_last(rows[:1]))
        return read_summary(path)


def variant_start(
    name: str,
    rng: np.random.Generator,
    config: TrainConfig,
    matrix: RewindConfig,
    dense: Source,
    masks: Masks,
    like: Any,
) -> tuple[Masks, Callable[[], Start]]:
    """The masks of a variant, and what makes its start on the target task.

    mask-anchor: the mask with the source's rewound weights and normaliser. mask-only: the mask with the
    target's own fresh weights, those its dense run begins with. dense-finetuned: the source's final weights
    and normaliser, no mask. random-mask: a mask as dense in each layer, with the same fresh weights as
    mask-only. All begin at step 0 with a fresh optimizer, temperature and replay.
    """
    if name == "mask-anchor":
        return masks, lambda: rewind.restarted(config, dense.snapshot(_rewound_to(matrix), like), masks)
    if name == "dense-finetuned":
        return DENSE, lambda: rewind.restarted(config, dense.snapshot("final", like), DENSE)
    chosen = masks if name == "mask-only" else random_masks(rng, masks)
    return chosen, lambda: Start(chosen, rewind.fresh(config, like, other_seed=False), keep=())


def _rewound_to(matrix: RewindConfig) -> str:
    return "initial" if matrix.parameters == "initial" else "anchor"


def _check_source(
    config: TrainConfig, source: Source, snapshots: Sequence[str], others: Sequence[str] = ()
) -> SACState:
    """Before a folder is made: raises ConfigError for artifacts that are missing, changed, or do not fit.

    Returns a state of the source's shapes.
    """
    like = rewind.template(config, source.arrays("final"))
    problems: list[str] = []
    for name in (*snapshots, *others):
        try:
            source.snapshot(name, like) if name in snapshots else source.arrays(name)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return like


# Summaries.


def _row(name: str, number: int, masks: Masks, summary: Mapping[str, Any]) -> dict[str, Any]:
    chosen = ("success_any", "success_last", "return_mean", "env_steps", "updates", "wall_seconds", "reached")
    kept = {kind: mask_functions.counts(masks[kind]) for kind in NETWORKS}
    return {
        "name": name,
        "round": number,
        "sparsity": {kind: mask_functions.sparsity(masks[kind]) for kind in NETWORKS},
        "kept_weights": {kind: {"total": total, **leaves} for kind, (leaves, total) in kept.items()},
        "best": summary["best"],
        **{key: summary[key] for key in chosen},
    }


def _of_last(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a stage's summary says at its top: its last ticket's results."""
    last = [row for row in rows if row["name"] in ("ticket", VARIANTS[0])][-1]
    wanted = ("success_any", "success_last", "return_mean", "env_steps", "updates")
    density = {kind: 1 - value for kind, value in last["sparsity"].items()}
    total = sum(row["wall_seconds"] for row in rows)
    return {**{key: last[key] for key in wanted}, "density": density, "wall_seconds": total}
