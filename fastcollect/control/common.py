"""What the collector and its serial twin have in common: configuration, policy, weights, state."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Self

import numpy as np

from fastcollect.control.config import CollectorConfig, check_memory
from fastcollect.control.state import check_fits, identity
from fastcollect.envs.base import EnvSpec, State
from fastcollect.memory.block import Block, check_written, copy_block
from fastcollect.memory.board import WeightsBoard
from fastcollect.memory.ring import Ring
from fastcollect.workers.group import build_policy


class CommonCollector:
    """A source of blocks without what collects them; see BlockSource for what it offers.

    config: with its environment resolved. opened: what frees everything in the end, which an inheriting class
    keeps as ``_opened`` once it is complete.
    """

    _opened: contextlib.ExitStack

    def __init__(
        self,
        config: CollectorConfig,
        spec: EnvSpec,
        state: Mapping[str, np.ndarray] | None,
        parameters: Mapping[str, np.ndarray] | None,
        opened: contextlib.ExitStack,
    ) -> None:
        self.config, self.spec = config, spec
        self.policy = build_policy(config.policy, spec, batched=False)
        self._ring_config = config.ring(spec, self.policy)
        check_memory(self._ring_config, config.num_env_workers, dict(self.policy.parameters))
        self._first_life = 0 if state is None else check_fits(state, config, self.policy)
        self._board = WeightsBoard(self.policy.parameters)
        opened.callback(self._board.segment.close)
        if state is None:
            self._board.publish(parameters or self.policy.initial_parameters(config.seed))
        else:
            self._board.set_state(state)
            if not config.reproducible:  # the environments begin anew, and staged weights act at once
                self._board.publish_staged()
        self._taken, self._start, self._closed = 0, time.perf_counter(), False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop every worker, close every environment and free everything; idempotent."""
        self._closed = True
        self._opened.close()

    @property
    def version(self) -> int:
        """See BlockSource.version."""
        return self._board.version

    def publish(self, parameters: Mapping[str, np.ndarray]) -> int:
        """See BlockSource.publish."""
        return self._board.stage(parameters) if self.config.rounds else self._board.publish(parameters)

    def _require_open(self) -> None:
        if self._closed:
            raise RuntimeError("this collector is closed")

    def _copy(self, ring: Ring, group: int, number: int, worker: int, first_env: int) -> Block:
        block = copy_block(ring, group, number, worker, first_env)
        if self.config.check:
            check_written(block)
        self._taken += len(block)
        return block

    def _state(self, life: int, complete: bool, turn: int, save_groups: Callable[[], State]) -> State:
        """The state, with that of the groups if reproducible.

        complete: whether every block of the round was handed out. turn: else, how many of them.
        """
        state = {f"config/{name}": np.asarray(value) for name, value in identity(self.config).items()}
        state |= {"life": np.array(life), **self._board.get_state()}
        if not self.config.reproducible:
            return state
        if not complete:
            raise RuntimeError(
                "a reproducible collector has a state only between two rounds of blocks, and of this round "
                f"{turn} of {self.config.blocks_per_round} were taken: take the others first"
            )
        return state | save_groups()
