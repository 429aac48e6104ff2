"""What is trained beside a ticket: the matched controls of its rounds, and the variants of its transfer.

Each is a function of the ticket and of a seed, for what it leaves to chance, that gives what it begins with.
Vischer, Lange and Sprekeler 2022 (arXiv:2105.01648, figure 1) tell by the controls what is in a ticket's mask
and what in its weights.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from engine.algorithms.base import Masks, map_weights
from engine.sparse import masks as mask_functions
from fastcollect.support.plain import plain
from trainers.config.training import RewindConfig
from trainers.run.learner import Start
from trainers.store.layout import NETWORKS
from trainers.study.rewind import Ticket


def derive(seed: int, *names: str | int) -> list[int]:
    """Four words of 32 bits for ``numpy.random.default_rng``: a function of the run's seed and the names.

    The names are those of the choice and of the round, network or run that it is made for, so that a new
    choice changes no other.
    """
    digest = hashlib.sha256(json.dumps([seed, *names]).encode()).digest()
    return [int.from_bytes(digest[i : i + 4], "little") for i in range(0, 16, 4)]


def random_masks(ticket: Ticket, seed: Sequence[int]) -> Masks:
    """Random masks with as many weights in each layer of each network as the ticket's, of live inputs."""
    rng = np.random.default_rng(seed)
    return {
        kind: mask_functions.random_like(rng, mask, ticket.live[kind]) for kind, mask in ticket.masks.items()
    }


def _permuted(ticket: Ticket, seed: Sequence[int], onto: Masks) -> Start:
    """The ticket's start with its weights in random order within each layer, where ``onto`` keeps them.

    What belongs to a weight goes with it: its target and its moments.
    """

    def permuted(kind: str, tree: Mapping[str, Any]) -> Mapping[str, Any]:
        if not ticket.masks.get(kind):
            return tree
        rng = np.random.default_rng([*seed, NETWORKS.index(kind)])  # the same order in every tree
        moved = mask_functions.permute_weights(rng, tree, ticket.masks[kind], onto[kind])
        return {name: jax.numpy.array(value) for name, value in moved.items()}

    start = ticket.rewound(onto)
    assert start.state is not None, "a rewound start has a state"
    return replace(start, state=map_weights(start.state, permuted))


CONTROLS: dict[str, Callable[[Ticket, Sequence[int]], Start]] = {
    # The ticket's mask, its weights in random order within each layer.
    "permuted-weights": lambda ticket, seed: _permuted(ticket, seed, ticket.masks),
    # The mask and its weights in random order within each layer, each in one of its own.
    "permuted-mask": lambda ticket, seed: _permuted(ticket, seed, random_masks(ticket, seed)),
    # A random mask as dense in each layer, else as the ticket: the anchor's weights where it keeps them.
    "random-mask-anchor": lambda ticket, seed: ticket.rewound(random_masks(ticket, seed)),
    # A random mask as dense in each layer with a fresh actor, else as the ticket.
    "random-mask-fresh-actor": lambda ticket, seed: ticket.rewound_but_actor(random_masks(ticket, seed)),
    # From scratch: a random mask as dense in each layer, with fresh weights and nothing of the source, which
    # also goes without the anchor's critics, replay, normaliser and steps.
    "random-mask": lambda ticket, seed: ticket.fresh(random_masks(ticket, seed), other_seed=True),
    # No mask, else as the ticket.
    "dense": lambda ticket, seed: ticket.rewound({}),
}
"""Every control by its name, in the order in which they are trained."""

VARIANTS: dict[str, Callable[[Ticket, Sequence[int]], Start]] = {
    # The mask with the source's rewound weights and normaliser.
    "mask-anchor": lambda ticket, seed: ticket.restarted(ticket.matrix.parameters, ticket.masks),
    # The source's rewound weights and normaliser, no mask.
    "anchor-dense": lambda ticket, seed: ticket.restarted(ticket.matrix.parameters, {}),
    # The mask with the target's own fresh weights, those that its dense run begins with.
    "mask-only": lambda ticket, seed: ticket.fresh(ticket.masks),
    # The source's final weights and normaliser, no mask.
    "dense-finetuned": lambda ticket, seed: ticket.restarted("final", {}),
    # The source's final actor and normaliser with the target's own fresh critic, no mask.
    "final-fresh-critic": lambda ticket, seed: ticket.restarted("final", {}, networks=("actor",)),
    # A random mask as dense in each layer, with the same fresh weights as mask-only.
    "random-mask": lambda ticket, seed: ticket.fresh(random_masks(ticket, seed)),
}
"""Every variant by its name. All begin at step 0 with a fresh optimizer, temperature and replay, and all act
at random until ``start_steps``, since none has seen the target. Those with weights of the source once acted
with them from the first step: their older results do not compare with these."""


def planned(
    rounds: Collection[int], matrix: RewindConfig, there: Sequence[Mapping[str, Any]]
) -> dict[int, list[str]]:
    """Round -> its controls: those asked for, and those among the rows that an earlier summary has.

    Rewound to the anchor and without a mask, the dense control is the same in every round: it is trained in
    one, the last, unless it is there already.
    """
    shared = "final" not in plain(matrix).values()
    have = {(row["round"], row["name"]) for row in there if row["name"] in CONTROLS}
    wanted = {*rounds, *(number for number, _ in have)}
    there_dense = {number for number, name in have if name == "dense"} or {max(wanted, default=0)}
    dense_in = there_dense if shared else wanted
    return {number: [n for n in CONTROLS if n != "dense" or number in dense_in] for number in wanted}
