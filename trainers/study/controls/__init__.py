"""The matched controls of a ticket, one file each: what each keeps of its mask and of its weights.

Vischer, Lange and Sprekeler 2022 (arXiv:2105.01648, figure 1) tell by them what is in a ticket's mask and
what in its weights.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from fastcollect.support.plain import plain
from trainers.config.training import RewindConfig
from trainers.study.controls import fresh, permuted, without_mask
from trainers.study.controls.base import Control

CONTROLS: dict[str, Control] = {
    "permuted-weights": permuted.weights,
    "permuted-mask": permuted.mask,
    "random-mask": fresh.random_mask,
    "dense": without_mask.dense,
}
"""Every control by its name, in the order in which they are trained."""


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
