"""The collector's serial twin: the same groups, rings and blocks in this process, for debugging."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Self

import numpy as np
from threadpoolctl import threadpool_limits

from fastcollect.control.config import CollectorConfig, build_policy, check_memory, groups_config, resolve_env
from fastcollect.control.state import between_rounds_only, check_fits, common_state, restore_board
from fastcollect.control.stats import Stats
from fastcollect.envs.base import EnvSpec, State
from fastcollect.envs.registry import EnvConfig, make_env, select_rows
from fastcollect.memory.block import Block, check_written, copy_block
from fastcollect.memory.board import WeightsBoard
from fastcollect.memory.ring import Ring
from fastcollect.workers.group import Group
from fastcollect.workers.group_state import restore_groups, save_groups
from fastcollect.workers.groups import make_groups
from fastcollect.workers.inference import Inference


class SerialCollector:
    """Same configuration, same API and, if reproducible, same blocks as ``Collector``, in one process.

    Environments are stepped group after group, actions come from the NumPy policy. An exception in an
    environment surfaces where it happens, under a debugger if you like.
    state, parameters: as for ``Collector``.
    """

    def __init__(
        self,
        config: CollectorConfig,
        state: Mapping[str, np.ndarray] | None = None,
        parameters: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.config = config = resolve_env(config)
        self.spec = _spec(config.env)
        self.policy = build_policy(config, self.spec)
        ring = config.ring(self.spec, self.policy)
        check_memory(ring, config.num_env_workers, dict(self.policy.parameters))
        self._life = 0 if state is None else check_fits(state, config, self.policy)
        self._board = WeightsBoard(self.policy.parameters)
        if state is None:
            self._board.publish(parameters or self.policy.initial_parameters(config.seed))
        else:
            restore_board(self._board, state, config)
        self._inference = Inference(self.policy, self._board)
        self._rings = [Ring(ring) for _ in range(config.num_env_workers)]
        self._groups: list[tuple[int, Group]] = []
        # The parallel workers compute with one thread; more would split sums in other places.
        self._limits = threadpool_limits(1, "blas")
        try:
            for position, memory in enumerate(self._rings):
                groups = make_groups(groups_config(config, self.policy, ring, position, self._life), memory)
                self._groups += [(position, group) for group in groups]
                if state is not None and config.reproducible:
                    restore_groups(groups, config.env.id, state)
        except BaseException:
            self.close()
            raise
        self._turn = 0
        self._taken = 0
        self._stepping = self._inferring = 0.0
        self._start = time.perf_counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every environment and free everything; idempotent."""
        for _, group in self._groups:
            group.env.close()
        for ring in self._rings:
            ring.segment.close()
        self._groups, self._rings = [], []
        self._limits.restore_original_limits()
        self._board.segment.close()

    @property
    def version(self) -> int:
        """See Collector.version."""
        return self._board.version

    @property
    def env_indices(self) -> range:
        """See BlockSource.env_indices."""
        return self.config.env_indices

    def publish(self, parameters: Mapping[str, np.ndarray]) -> int:
        """See Collector.publish."""
        if self.config.rounds:
            return self._board.stage(parameters)
        return self._board.publish(parameters)

    def take(self, timeout: float | None = None) -> Block:
        """Step the next group for one block; blocks come in the order of environments."""
        if not self._groups:
            raise RuntimeError("this collector is closed")
        worker, group = self._groups[self._turn]
        if self._turn == 0 and group.complete:
            self._board.publish_staged()
        self._turn = (self._turn + 1) % len(self._groups)
        if group.complete:
            group.index = group.index.free(group.index.written)
            group.open_block()
        while not group.complete:
            start = time.perf_counter()
            self._inference.act(group)
            acted = time.perf_counter()
            group.step()
            self._inferring += acted - start
            self._stepping += time.perf_counter() - acted
        number = group.publish()
        block = copy_block(self._rings[worker], group.number, number, worker, group.first_env)
        if self.config.check:
            check_written(block)
        self._taken += len(block)
        return block

    def get_state(self) -> State:
        """See Collector.get_state."""
        if not self._groups:
            raise RuntimeError("this collector is closed")
        state = common_state(self.config, self._life, self._board)
        if not self.config.reproducible:
            return state
        groups = [group for _, group in self._groups]
        if self._turn or not all(group.complete for group in groups):
            raise between_rounds_only(self._turn, len(groups))
        return state | save_groups(groups, self.config.env.id)

    def stats(self) -> Stats:
        """See Collector.stats."""
        return Stats(
            seconds=time.perf_counter() - self._start,
            env_steps=sum(int(ring.rows.sum()) for ring in self._rings),
            taken=self._taken,
            stepping=self._stepping,
            inferring_inline=self._inferring,
        )


def _spec(config: EnvConfig) -> EnvSpec:
    env = make_env(select_rows(config, 0, 1), np.zeros(1, np.int64))
    env.close()
    return env.spec
