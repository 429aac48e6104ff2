"""The collector's serial twin: the same groups, rings and blocks in this process, for debugging."""

import contextlib
import time
from collections.abc import Mapping

import numpy as np
from threadpoolctl import threadpool_limits

from fastcollect.control.config import CollectorConfig, env_worker_config, resolve_env
from fastcollect.control.probe import build_spec
from fastcollect.control.source import CommonCollector
from fastcollect.control.stats import Stats
from fastcollect.envs.base import State
from fastcollect.memory.block import Block
from fastcollect.memory.ring import Ring
from fastcollect.workers.group import Group, Inference
from fastcollect.workers.groups import make_groups, restore_groups, save_groups


class SerialCollector(CommonCollector):
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
        config = resolve_env(config)
        with contextlib.ExitStack() as opened:
            super().__init__(config, build_spec(config.env), state, parameters, opened)
            self._inference = Inference(self.policy, self._board)
            # The parallel workers compute with one thread; more would split sums in other places.
            opened.enter_context(threadpool_limits(1, "blas"))
            self._groups: list[tuple[int, Ring, Group]] = []  # with the position of a worker, and its ring
            opened.callback(self._groups.clear)
            for position in range(config.num_env_workers):
                ring = Ring(self._ring_config)
                opened.callback(ring.segment.close)
                worker = env_worker_config(config, self.policy, self._ring_config, position, self._first_life)
                groups = make_groups(worker, ring)
                for group in groups:
                    opened.callback(group.env.close)
                    self._groups.append((position, ring, group))
                if state is not None and config.reproducible:
                    restore_groups(groups, config.env.id, state)
            self._turn = len(self._groups) if state is not None and config.reproducible else 0
            self._stepping = self._inferring = 0.0
            self._opened = opened.pop_all()

    @property
    def env_indices(self) -> range:
        """See BlockSource.env_indices."""
        return self.config.env_indices

    def take(self, timeout: float | None = None) -> Block:
        """Step the next group for one block; blocks come in the order of environments."""
        self._require_open()
        if self._turn == len(self._groups):
            self._turn = 0
            self._board.publish_staged()
        worker, ring, group = self._groups[self._turn]
        self._turn += 1
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
        return self._copy(ring, group.number, group.publish(), worker, group.first_env)

    def get_state(self) -> State:
        """See Collector.get_state."""
        self._require_open()
        groups = [group for _, _, group in self._groups]
        return self._state(self._first_life, self._turn, lambda: save_groups(groups, self.config.env.id))

    def stats(self) -> Stats:
        """See Collector.stats."""
        return Stats(
            seconds=time.perf_counter() - self._start,
            env_steps=sum(int(ring.rows[group.number]) for _, ring, group in self._groups),
            taken=self._taken,
            stepping=self._stepping,
            inferring_inline=self._inferring,
        )
