"""The training loop: a source of blocks, a learner, and observers that look on.

Asynchronous by default: workers collect, the device updates and an evaluator tests at the same time, and this
process only moves blocks and weights. In rounds each waits for the others at defined points.
"""

from collections.abc import Sequence

import numpy as np

from fastcollect import POLICY_VERSION, Block, BlockSource
from trainers.run.learner import Learner, as_numpy

_VERSIONS = 1024


class Observer:
    """Looks on while a session runs. Every method does nothing unless a subclass says what."""

    def took(self, session: "Session", block: Block) -> None:
        """Called with every block, before it is learned from."""

    def between(self, session: "Session") -> None:
        """Called wherever everything can be saved: first, and after any block or, in rounds, any round."""

    def end(self, session: "Session") -> None:
        """Called once, after the last update."""


class Session:
    """Takes blocks, makes the updates that they bring, and publishes the resulting weights.

    source: is running, with the learner's weights or ones that explore. ended: an observer sets it to end
    the run before its budget does. signum: is set from outside to ask for an end at the next point where
    everything can be saved; an observer acts on it.
    """

    def __init__(self, source: BlockSource, learner: Learner, observers: Sequence[Observer] = ()) -> None:
        self.source, self.learner, self.observers = source, learner, observers
        self.blocks, self.ended = 0, False
        self.signum: int | None = None
        self.lag = PolicyLag(learner.updates)

    def run(self) -> None:
        """Run from the first block to the last update."""
        self._between()
        while self.learner.env_steps < self.learner.config.env_steps and not self.ended:
            self.turn()
            if self.complete:
                self._between()
        if remainder := self.learner.due():
            self._update(remainder)
        for observer in self.observers:
            observer.end(self)

    def turn(self) -> Block:
        """Take one block and make the updates that it brings; returns the block."""
        block = self.source.take()
        self.blocks += 1
        self.lag.took(block, self.learner.updates)
        for observer in self.observers:
            observer.took(self, block)
        self.learner.make_room(self.source.env_indices)  # of all workers that were added, at once
        self.learner.learn_from(block)
        count = self.learner.config.updates_per_dispatch
        while self.learner.due() >= count:
            self._update(count)
        return block

    @property
    def complete(self) -> bool:
        """Whether this is a point at which everything can be saved: any, or in rounds a round's end."""
        config = self.source.config
        return not config.rounds or self.blocks % config.blocks_per_round == 0

    def _update(self, count: int) -> None:
        before, made = self.learner.acting, self.learner.updates
        self.learner.update(count)
        # Weights of the dispatch before are there already, or soon: the device is never left without work,
        # and at most two dispatches are on their way. In rounds the newest ones are waited for.
        if self.source.config.rounds:
            before, made = self.learner.acting, self.learner.updates
        if not made:
            # What acts until then are the weights of the start, or ones at random: nothing was learned yet,
            # nor normalised by what was seen.
            return
        self.lag.published(self.source.publish(as_numpy(before)), made)

    def _between(self) -> None:
        for observer in self.observers:
            observer.between(self)


class PolicyLag:
    """How many updates the weights that acted were behind the newest ones when their block was taken.

    updates: how many the weights that act from the start had had.
    """

    def __init__(self, updates: int) -> None:
        self._first = updates
        self._updates: dict[int, int] = {}
        self._sum = self._rows = self._most = 0

    def published(self, version: int, updates: int) -> None:
        """Remember how many updates the weights of a version had had."""
        self._updates[version] = updates
        if len(self._updates) > _VERSIONS:
            del self._updates[next(iter(self._updates))]

    def took(self, block: Block, updates: int) -> None:
        """Count a block that was taken when the learner had made so many updates."""
        if POLICY_VERSION not in block.extras:
            return
        versions, counts = np.unique(block.extras[POLICY_VERSION], return_counts=True)
        for version, count in zip(versions.tolist(), counts.tolist(), strict=True):
            behind = updates - self._updates.get(version, self._first)
            self._sum, self._rows = self._sum + behind * count, self._rows + count
            self._most = max(self._most, behind)

    def read(self) -> dict[str, float | None]:
        """Mean and greatest over the rows since it was read before; None where there were none."""
        mean, most = (self._sum / self._rows, self._most) if self._rows else (None, None)
        self._sum = self._rows = self._most = 0
        return {"policy_lag": mean, "policy_lag_max": most}
