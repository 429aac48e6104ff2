"""How the masks of a run change while it learns, and what its updates would cost without the zeros."""

from typing import Any

import jax
import numpy as np

from engine.sparse import flops
from engine.sparse import masks as mask_functions
from trainers.run.learner import Learner
from trainers.run.record import Record
from trainers.run.session import Observer, Session
from trainers.store import artifacts
from trainers.store.folder import RunFolder
from trainers.store.layout import network

Masks = dict[str, dict[str, np.ndarray]]


class Evolution(Observer):
    """Writes a row whenever a topology has changed, with what an update costs from there on.

    first: the masks that the run began with. Growth by gradients takes those of pruned weights, too, at each
    change: one more product for each of them (Evci et al. 2020, appendix H).
    """

    def __init__(self, learner: Learner, record: Record, first: Masks) -> None:
        self._record, self._first, self._topology = record, first, jax.device_get(learner.state.topology)
        self._last, self._seen = self._masks(learner), self._changes(learner)
        if not record.costs:
            self._write(learner, self._seen)

    def between(self, session: Session) -> None:
        """Look at the masks, which waits for them, if one was to change since they were looked at."""
        if (changes := self._changes(session.learner)) != self._seen:
            self._write(session.learner, changes)

    def end(self, session: Session) -> None:
        """Look once more."""
        self.between(session)

    def _changes(self, learner: Learner) -> dict[str, int]:
        """How often each network's topology has changed."""
        return {
            name: topology.changes(learner.updates // learner.algorithm.period(name))
            for name, topology in self._topology.items()
        }

    def _masks(self, learner: Learner) -> Masks:
        return {name: jax.device_get(learner.state.masks[name]) for name in self._topology}

    def _write(self, learner: Learner, changes: dict[str, int]) -> None:
        now, row, growth = self._masks(learner), dict[str, Any](), 0
        moved = [name for name in now if changes[name] != self._seen[name] or not self._record.costs]
        for name, mask in ((name, now[name]) for name in moved):
            row[f"{name}_changed"] = 1 - mask_functions.overlap(self._last[name], mask)[1].fraction
            row[f"{name}_overlap_first"] = mask_functions.overlap(self._first[name], mask)[1].jaccard
            row[f"{name}_density"] = 1 - mask_functions.sparsity(mask)
            row[f"{name}_layers"] = {leaf: float(np.mean(kept)) for leaf, kept in mask.items()}
            if self._topology[name].method == "rigl":
                operations = flops.forward(mask, learner.state.parameters[name])
                rows = learner.config.algorithm.batch_size * (changes[name] - self._seen[name])
                growth += rows * (operations["dense"] - operations["masked"])
        self._last, self._seen = now, changes
        update = learner.algorithm.flops(learner.state)["update"]["masked"]
        self._record.evolved(row, {"updates": learner.updates, "update": update, "growth": growth})


def first_masks(folder: RunFolder, learner: Learner, *, resumed: bool) -> Masks:
    """The masks of networks with a topology that a run begins with, or began with if it is resumed.

    Raises ConfigError if the artifact that keeps them is missing or was changed.
    """
    names = learner.state.topology
    if not resumed:
        return {name: jax.device_get(learner.state.masks[name]) for name in names}
    kept = artifacts.load(folder.path, "initial", folder.config_hash).arrays if names else {}
    return {name: network(kept, name, "masks") for name in names}
