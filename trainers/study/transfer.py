"""Stage transfer: a ticket's mask on another task, and what tells its mask from its weights there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from engine.algorithms.base import Algorithm, Masks
from fastcollect.support.errors import ConfigError
from trainers.config.training import RewindConfig, TrainConfig
from trainers.run.learner import Start
from trainers.store.layout import unpack_masks
from trainers.store.manifest import SUMMARY, read_summary
from trainers.study import rewind, stages
from trainers.study.controls.base import random_masks
from trainers.study.rewind import Source
from trainers.study.seeds import derive

VARIANTS = ("mask-anchor", "mask-only", "dense-finetuned", "random-mask")


def transfer(
    context: stages.Context,
    path: Path,
    config: TrainConfig,
    matrix: RewindConfig,
    ticket_source: Source,
    dense: Source,
) -> dict[str, Any]:
    """A ticket's mask on another task, in four variants; see ``variant_start``.

    ticket_source: a finished ticket. dense: the run it was drawn from. Of the matrix only the parameters
    count: all else begins anew. Returns the summary with a row each.
    """
    if matrix.parameters == "final":
        raise ConfigError(["rewind.parameters is final; allowed for a transfer: anchor, initial"])
    if not (path / SUMMARY).exists():
        algorithm = stages.check_source(config, dense, ["final", matrix.parameters])
        masks = unpack_masks(ticket_source.arrays("mask"))
        rewind.check_mask(masks, algorithm.init(config.seed), f"the mask of {ticket_source.path!r}")
    with context.open(path) as folder:
        if folder.finished():
            return context.finished(path)
        rows = []
        for name in VARIANTS:
            seed = derive(config.seed, "transfer", name)
            chosen, make = variant_start(name, seed, config, matrix, dense, masks, algorithm)
            place = {"kind": "variant", "name": name}
            summary = stages.run_inside(context, folder, name, name, config, make, **place)
            rows.append(stages.row(name, 0, chosen, summary))
        folder.write_summary({"stage": "transfer", "variants": rows} | stages.totals(rows, rows[0]))
        return read_summary(path)


def variant_start(
    name: str,
    seed: Sequence[int],
    config: TrainConfig,
    matrix: RewindConfig,
    dense: Source,
    masks: Masks,
    algorithm: Algorithm,
) -> tuple[Masks, Callable[[], Start]]:
    """The masks of a variant, and what makes its start on the target task.

    mask-anchor: the mask with the source's rewound weights and normaliser. mask-only: the mask with the
    target's own fresh weights, those its dense run begins with. dense-finetuned: the source's final weights
    and normaliser, no mask. random-mask: a mask as dense in each layer, with the same fresh weights as
    mask-only. All begin at step 0 with a fresh optimizer, temperature and replay.
    """
    like = algorithm.init(config.seed)
    if name == "mask-anchor":
        return masks, lambda: rewind.restarted(config, algorithm, dense.state(matrix.parameters, like), masks)
    if name == "dense-finetuned":
        return {}, lambda: rewind.restarted(config, algorithm, dense.state("final", like), {})
    chosen = masks if name == "mask-only" else random_masks(seed, masks)
    return chosen, lambda: Start(chosen, rewind.fresh(config, algorithm, other_seed=False), keep=())
