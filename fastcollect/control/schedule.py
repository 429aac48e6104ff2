"""When a published block is handed out, and when published weights begin to act."""

from collections import deque

from fastcollect.control.crew import PublishedBlock, Workers


class Arrivals(deque[PublishedBlock]):
    """The schedule "asynchronous": blocks come as they were published."""

    def next(self) -> PublishedBlock | None:
        """The block to hand out now, if there is one."""
        return self.popleft() if self else None


class Rounds:
    """The schedule "rounds": one block of every group, in the order of environments, then the next round.

    A round begins with the first ``next`` after every block of the round before was handed out. Only then do
    staged weights act and do the groups get their rings back, so that nobody runs ahead.
    turn: how many blocks of the round at hand were handed out; all of them in a state that is restored.
    """

    def __init__(self, workers: Workers, restored: bool) -> None:
        self._workers, self.turn = workers, workers.config.blocks_per_round * restored
        self._blocks: dict[tuple[int, int], PublishedBlock] = {}  # by position and group

    def append(self, block: PublishedBlock) -> None:
        """Note that a worker published its block of this round."""
        worker, group, _ = block
        self._blocks[worker.position, group] = block

    def next(self) -> PublishedBlock | None:
        """The block whose turn it is, if it was published."""
        workers = self._workers
        if self.turn == workers.config.blocks_per_round:
            self.turn = 0
            workers.board.publish_staged()
            for worker in workers.in_order():
                for group, written in enumerate(worker.written):
                    worker.free(group, written - 1)
        block = self._blocks.pop(divmod(self.turn, len(workers.ring_config.envs)), None)
        self.turn += block is not None
        return block
