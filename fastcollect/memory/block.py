"""What the collector hands out: one block of consecutive steps of one group, owned by the receiver."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fastcollect.memory.ring import Ring, find_poison
from fastcollect.support.errors import WorkerError
from fastcollect.support.named import below

_STEPS = ("observation", "action", "reward", "terminated", "truncated", "success")


@dataclass(frozen=True)
class Episodes:
    """The episodes that ended in a block, in the order of their last step; k of them.

    row: (k,) flat row t * envs + i of the last step. episode_return, length: (k,).
    success_any, success_last: (k,) bool: at any step, at the last step.
    success_first: (k,) the 0-based step of the first success, -1 for none.
    final_observation: (k, *observation_shape) the true last observations.
    """

    row: np.ndarray
    episode_return: np.ndarray
    length: np.ndarray
    success_any: np.ndarray
    success_last: np.ndarray
    success_first: np.ndarray
    final_observation: np.ndarray

    def __len__(self) -> int:
        return len(self.row)


@dataclass(frozen=True)
class Block:
    """B steps of b environments; row (t, i) is one step of environment ``env_index[i]``.

    observation: (B + 1, b, ...); observation[t + 1] follows observation[t], or, where an episode ended at
        t, is the first observation of the next episode. ``next_observation`` never crosses an episode.
    action, reward (float64), terminated, truncated, success: (B, b, ...). extras: (B, b, ...) by name.
    number: 0, 1, 2 ... for each group of each worker life. first_step: the environments' own step count
        at row 0. worker, group: where it came from; worker numbers are never used twice.
    """

    worker: int
    group: int
    number: int
    first_step: int
    env_index: np.ndarray
    observation: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    success: np.ndarray
    extras: Mapping[str, np.ndarray]
    episodes: Episodes

    def __len__(self) -> int:
        """Transitions: B * b."""
        return self.reward.size

    @cached_property
    def next_observation(self) -> np.ndarray:
        """(B, b, ...): what each action led to, the true last observation where an episode ended."""
        following = self.observation[1:].copy()
        flat = following.reshape(len(self), *following.shape[2:])
        flat[self.episodes.row] = self.episodes.final_observation
        return following


def copy_block(ring: Ring, group: int, number: int, worker: int, first_env: int) -> Block:
    """Copy a published block out of its ring: one contiguous copy, then the few rows of its table of ends.

    first_env: global index of the group's first environment.
    """
    layout, position = ring.layouts[group], number % ring.config.capacity
    copied = ring.raw[group][position][: layout.offsets["end_row"]].copy()
    views = layout.views(copied, (name for name in layout.fields if not name.startswith("end_")))
    number, first_step, ends, _ = (int(x) for x in views["header"])
    table = below(ring.blocks[group][position], "end_")  # in the order of Episodes
    return Block(
        worker=worker,
        group=group,
        number=number,
        first_step=first_step,
        env_index=np.arange(first_env, first_env + views["reward"].shape[1]),
        **{name: views[name] for name in _STEPS},
        extras=below(views, "extra/"),
        episodes=Episodes(*(column[:ends].copy() for column in table.values())),
    )


def check_written(block: Block) -> None:
    """Raises WorkerError if anything in a block from a poisoned ring was never written."""
    if name := find_poison({**{name: getattr(block, name) for name in _STEPS}, **block.extras}):
        raise WorkerError(f"block {block.number} of group {block.group} holds rows of {name!r} nobody wrote")
