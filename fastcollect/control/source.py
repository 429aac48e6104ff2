"""What a learner needs of whoever collects for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, Self

import numpy as np

from fastcollect.control.config import CollectorConfig
from fastcollect.control.stats import Stats
from fastcollect.envs.base import EnvSpec, State
from fastcollect.memory.block import Block
from fastcollect.policies.base import Policy


class BlockSource(Protocol):
    """Yields self-contained blocks of transitions of environments with global indices.

    The collector and its serial twin are such sources. A source is a context manager: leaving it closes it.
    """

    @property
    def config(self) -> CollectorConfig:
        """What it was started with, its environment resolved."""

    @property
    def spec(self) -> EnvSpec:
        """The environment's spaces."""

    @property
    def policy(self) -> Policy:
        """The policy in NumPy; its ``parameters`` are what ``publish`` takes."""

    @property
    def version(self) -> int:
        """The newest version of the weights that acts; 1 is the initial one."""

    @property
    def env_indices(self) -> range:
        """The global indices of environments that a block can have.

        Every ``Block.env_index`` lies in it. It begins at ``config.first_env`` and never shrinks, but grows
        when a source gets more environments while it runs (see Collector.resize), before the first of their
        blocks is handed out. Whoever keeps something for each environment sizes it by this range.
        """

    def take(self, timeout: float | None = None) -> Block:
        """The next block, which is the caller's own.

        Raises TimeoutError after ``timeout`` seconds, WorkerError when a worker raised, StallError when one
        that could step did not for ``config.stall_seconds``, RuntimeError when the source is closed.
        """

    def publish(self, parameters: Mapping[str, np.ndarray]) -> int:
        """Give it new weights; returns the version that they have, or will have.

        They act at once, or from the next round on where the schedule is "rounds". Raises ValueError on other
        names or shapes than those of ``policy.parameters``.
        """

    def get_state(self) -> State:
        """Plain arrays from which a source of the same configuration goes on; see Collector.get_state."""

    def stats(self) -> Stats:
        """Counters since the start; subtract two of them for an interval."""

    def close(self) -> None:
        """Stop and free everything; idempotent."""

    def __enter__(self) -> Self:
        """The source itself."""

    def __exit__(self, *_: object) -> None:
        """See close."""
