"""The matched controls of a ticket: what each keeps of its mask and of its weights.

Vischer, Lange and Sprekeler 2022 (arXiv:2105.01648, figure 1) tell by them what is in a ticket's mask and
what in its weights.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from engine.algorithms.base import AgentState, Algorithm, Masks, map_weights
from engine.sparse import masks as mask_functions
from fastcollect.support.plain import plain
from trainers.config.training import RewindConfig, TrainConfig
from trainers.run.start import Start
from trainers.store.layout import NETWORKS
from trainers.study import rewind
from trainers.study.rewind import Source

CONTROLS = ("permuted-weights", "permuted-mask", "random-mask", "dense")


def control_start(
    name: str,
    seed: Sequence[int],
    config: TrainConfig,
    algorithm: Algorithm,
    matrix: RewindConfig,
    source: Source,
    masks: Masks,
    last: AgentState,
) -> tuple[Masks, Callable[[], Start]]:
    """The masks of a control, and what makes its start.

    permuted-weights: the ticket's mask, its weights in random order within each layer. permuted-mask: mask
    and weights both. random-mask: a mask as dense in each layer, with fresh weights and nothing of the
    source. dense: no mask, else as the ticket. seed: of every choice by chance. last: the round before.
    """
    if name == "dense":
        return {}, lambda: rewind.rewound(config, algorithm, matrix, source, last, {})
    onto = masks if name == "permuted-weights" else random_masks(np.random.default_rng(seed), masks)
    if name == "random-mask":
        return onto, lambda: Start(onto, rewind.fresh(config, algorithm, other_seed=True), keep=())
    return onto, lambda: _permuted(
        seed, rewind.rewound(config, algorithm, matrix, source, last, {}), masks, onto
    )


def _permuted(seed: Sequence[int], start: Start, masks: Masks, onto: Masks) -> Start:
    """The start with the weights of ``masks`` in random order within each layer, where ``onto`` keeps them.

    What belongs to a weight goes with it: its target and its moments.
    """

    def permuted(kind: str, tree: Mapping[str, Any]) -> Mapping[str, Any]:
        if not masks.get(kind):
            return tree
        rng = np.random.default_rng([*seed, NETWORKS.index(kind)])  # the same order in every tree
        moved = mask_functions.permute_weights(rng, rewind.as_arrays(tree), masks[kind], onto[kind])
        return {name: jax.numpy.array(value) for name, value in moved.items()}

    assert start.state is not None
    return replace(start, masks=onto, state=map_weights(start.state, permuted))


def random_masks(rng: np.random.Generator, masks: Masks) -> dict[str, mask_functions.Mask]:
    """Random masks with the same number of weights in each layer of each network."""
    return {kind: mask_functions.random_like(rng, mask) for kind, mask in masks.items()}


def planned(
    rounds: Collection[int], matrix: RewindConfig, there: Sequence[Mapping[str, Any]]
) -> dict[int, list[str]]:
    """Round -> its controls: those asked for, and those among the rows that an earlier summary has.

    Rewound to the anchor and without a mask, the dense control is the same in every round: it is trained in
    one, the last, unless it is there already.
    """
    have = {(row["round"], row["name"]) for row in there if row["name"] in CONTROLS}
    wanted = {*rounds, *(number for number, _ in have)}
    if "final" in plain(matrix).values():
        return {number: list(CONTROLS) for number in wanted}
    dense = {number for number, name in have if name == "dense"} or {max(wanted, default=0)}
    return {number: [n for n in CONTROLS if n != "dense" or number in dense] for number in wanted}
