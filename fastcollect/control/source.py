"""Sources of blocks: what a learner needs of one, and what the collector and its serial twin share.

A state is a flat dict of named plain arrays, with nothing kept by worker. The keys:

- ``config/NAME``: what must be the same where it is restored; ``life``: see EnvWorkerConfig.
- ``version``, ``published/NAME``, ``staged`` (bool), ``staged/NAME``: see WeightsBoard.get_state.
- ``group/FIRST/NAME``: see Group.get_state, FIRST being the global index of the group's first environment;
  of a reproducible collector only.
"""

import contextlib
import itertools
import json
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol, Self

import numpy as np

from fastcollect.control.config import CollectorConfig, check_memory
from fastcollect.control.stats import Stats
from fastcollect.envs.base import EnvSpec, State
from fastcollect.envs.registry import EnvConfig
from fastcollect.memory.block import Block, check_written, copy_block
from fastcollect.memory.board import WeightsBoard, mismatches
from fastcollect.memory.ring import Ring
from fastcollect.policies.base import Policy
from fastcollect.support.errors import ConfigError
from fastcollect.support.named import below
from fastcollect.workers.group import build_policy


class BlockSource(Protocol):
    """Yields self-contained blocks of transitions of environments with global indices.

    The collector and its serial twin are such sources. A source is a context manager: leaving it closes it.
    """

    @property
    def config(self) -> CollectorConfig:
        """What it was started with, its environment resolved; ``blocks_per_round`` blocks make a round."""

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


class CommonCollector:
    """What both collectors share. opened: what frees everything in the end; they keep it as ``_opened``."""

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
        check_memory(self._ring_config, config.num_env_workers, self.policy.parameters)
        self._first_life = 0 if state is None else _check_fits(state, config, self.policy)
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

    def _state(self, life: int, turn: int, save_groups: Callable[[], State]) -> State:
        """The state, with that of the groups if reproducible. turn: how many blocks were taken of a round."""
        state = {f"config/{name}": np.asarray(value) for name, value in _identity(self.config).items()}
        state |= {"life": np.array(life), **self._board.get_state()}
        if not self.config.reproducible:
            return state
        if turn != (blocks := self.config.blocks_per_round):
            raise RuntimeError(
                "a reproducible collector has a state only between two rounds of blocks, and of this round "
                f"{turn} of {blocks} were taken: take the others first"
            )
        return state | save_groups()


def _check_fits(state: Mapping[str, np.ndarray], config: CollectorConfig, policy: Policy) -> int:
    """The life that its environments go on with: of a reproducible collector the saved one, else the next.

    Raises ConfigError that names everything in which the state differs from this configuration.
    """
    problems = [
        f"the saved state has no {name!r}" for name in ("life", "version", "staged") if name not in state
    ]
    for name, value in _identity(config).items():
        saved = state.get(f"config/{name}")
        if saved is None or not np.array_equal(saved, value):
            here, there = (np.array2string(np.asarray(each), threshold=8) for each in (value, saved))
            there = "missing" if saved is None else there
            problems.append(f"{name} is {here} here, {there} in the saved state")
    for kind in ("published", "staged"):
        parameters = below(state, f"{kind}/")
        if kind == "published" or parameters:
            problems += [f"{kind} weights: {text}" for text in mismatches(parameters, policy.parameters)]
    if config.reproducible and not problems:
        ends = itertools.accumulate(config.groups * config.num_env_workers, initial=config.first_env)
        keys = [f"group/{first}/first_step" for first in [*ends][:-1]]
        problems = [f"the saved state has no {key!r}" for key in keys if key not in state]
    if problems:
        raise ConfigError(problems)
    return int(state["life"]) + (not config.reproducible)


def _identity(config: CollectorConfig) -> dict[str, Any]:
    """What must be the same where a state is restored."""
    names = ["seed", "first_env", "schedule", "reproducible"]
    names += ["block_length", "total_envs"] if config.reproducible else []
    same = {"env": _describe(config.env), **{name: getattr(config, name) for name in names}}
    return same | ({"group_sizes": config.groups * config.num_env_workers} if config.reproducible else {})


def _describe(env: EnvConfig) -> str:
    """A text that is the same in every process. What JSON does not know counts by its name or type."""

    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray | np.generic):
            return value.tolist()
        return getattr(value, "__qualname__", type(value).__qualname__)

    kwargs = dict(sorted(env.kwargs.items()))
    return json.dumps([env.id, env.entry_point, kwargs], default=plain, skipkeys=True)
