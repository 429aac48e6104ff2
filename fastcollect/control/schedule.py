"""When a published block is handed out and given back, and when published weights begin to act."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import numpy as np

from fastcollect.control.crew import Workers
from fastcollect.control.handles import EnvWorkerHandle
from fastcollect.memory.board import WeightsBoard

PublishedBlock = tuple[EnvWorkerHandle, int, int]
"""(worker, group, number of the block)."""


class Arrivals:
    """The schedule "asynchronous": blocks come as they were published, weights act at once."""

    def __init__(self, workers: Workers, board: WeightsBoard) -> None:
        self._workers, self._board = workers, board
        self._blocks: deque[tuple[int, int, int]] = deque()

    def publish(self, parameters: Mapping[str, np.ndarray]) -> int:
        """Let these weights act now; returns their version."""
        return self._board.publish(parameters)

    def begin(self) -> None:
        """Called before a block is waited for; nothing has to be begun here."""

    def add(self, ident: int, group: int, number: int) -> None:
        """Note that a worker published a block."""
        self._blocks.append((ident, group, number))

    def pop(self) -> PublishedBlock | None:
        """The next block to hand out, if there is one."""
        if not self._blocks:
            return None
        ident, group, number = self._blocks.popleft()
        return self._workers.env[ident], group, number

    def copied(self, worker: EnvWorkerHandle, group: int, number: int) -> None:
        """Give the ring its block back."""
        worker.free(group, number)

    def holds(self, ident: int) -> bool:
        """Whether blocks of this worker are still to be handed out."""
        return any(ident == each for each, _, _ in self._blocks)


class Rounds:
    """The schedule "rounds": one block of every group, in the order of environments, then the next round.

    A round begins with the first ``begin`` after every block of the round before was handed out. Only then do
    staged weights act and do the groups get their rings back, so that nobody runs ahead.

    complete: whether every block of the round at hand was handed out, as in a state that is restored.
    turn: how many were, until then.
    """

    def __init__(self, workers: Workers, board: WeightsBoard, complete: bool) -> None:
        self._workers, self._board = workers, board
        self._blocks: dict[tuple[int, int], tuple[int, int]] = {}  # (position, group) -> (worker, number)
        self._groups = len(workers.ring_config.envs)
        self.complete, self.turn = complete, 0

    def publish(self, parameters: Mapping[str, np.ndarray]) -> int:
        """Let these weights act from the next round on; returns the version that they will have."""
        return self._board.stage(parameters)

    def begin(self) -> None:
        """Begin the next round, if the one before was handed out."""
        if not self.complete:
            return
        self.complete = False
        self._board.publish_staged()
        for worker in self._workers.in_order():
            for group, written in enumerate(worker.written):
                worker.free(group, written - 1)

    def add(self, ident: int, group: int, number: int) -> None:
        """Note that a worker published its block of this round."""
        self._blocks[self._workers.env[ident].position, group] = ident, number

    def pop(self) -> PublishedBlock | None:
        """The block whose turn it is, if it was published."""
        position, group = divmod(self.turn, self._groups)
        block = self._blocks.pop((position, group), None)
        if block is None:
            return None
        self.turn = (self.turn + 1) % self._workers.config.blocks_per_round
        self.complete = self.turn == 0
        ident, number = block
        return self._workers.env[ident], group, number

    def copied(self, worker: EnvWorkerHandle, group: int, number: int) -> None:
        """The ring gets its block back when the next round begins."""

    def holds(self, ident: int) -> bool:
        """Whether blocks of this worker are still to be handed out."""
        return any(ident == each for each, _ in self._blocks.values())
