"""Where a replay's wide arrays lie: in the host's memory or in the device's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from engine.data.transition import Batch

_FIRST_FINALS = 64
"""Final observations that there is room for at first; the room doubles when it is full."""


class Draw(NamedTuple):
    """Which transitions make up K batches; every array is (K, batch) but rewards, (K, batch, n).

    row: where the observation and the action lie. next_row: where the next observation lies. final: its
    place among the final observations, or -1. rewards, steps, terminated: as in Batch.
    """

    row: np.ndarray
    next_row: np.ndarray
    final: np.ndarray
    rewards: np.ndarray
    steps: np.ndarray
    terminated: np.ndarray


class Storage(Protocol):
    """Rows of observations and actions, and a table of final observations that grows as it has to."""

    def write(self, name: str, rows: np.ndarray, values: np.ndarray) -> None:
        """Overwrite these rows of "observation", "action" or "final" with values (rows, width)."""

    def read(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Copies of these rows on the host, float32."""

    def gather(self, draw: Draw) -> Batch:
        """Arrays of their own, (K, batch, ...)."""

    @property
    def nbytes(self) -> int:
        """The memory that all of it takes."""


class HostStorage:
    """Batches are gathered by NumPy and sent to the device."""

    def __init__(self, rows: int, observations: int, actions: int) -> None:
        self._arrays = _zeros(np.zeros, rows, observations, actions)

    def write(self, name: str, rows: np.ndarray, values: np.ndarray) -> None:
        """See Storage."""
        if name == "final" and len(rows) and (more := _growth(rows, len(self._arrays[name]))):
            self._arrays[name] = np.pad(self._arrays[name], ((0, more), (0, 0)))
        self._arrays[name][rows] = values

    def read(self, name: str, rows: np.ndarray) -> np.ndarray:
        """See Storage."""
        return self._arrays[name][rows]

    def gather(self, draw: Draw) -> Batch:
        """See Storage."""
        following = self._arrays["observation"][draw.next_row]
        ended = draw.final >= 0
        following[ended] = self._arrays["final"][draw.final[ended]]
        return Batch(
            observation=self._arrays["observation"][draw.row],
            action=self._arrays["action"][draw.row],
            rewards=draw.rewards,
            steps=draw.steps,
            next_observation=following,
            terminated=draw.terminated,
        )

    @property
    def nbytes(self) -> int:
        """See Storage."""
        return sum(array.nbytes for array in self._arrays.values())


class DeviceStorage:
    """Only indices, rewards and new rows travel."""

    def __init__(self, rows: int, observations: int, actions: int) -> None:
        self._arrays = _zeros(jnp.zeros, rows, observations, actions)

    def write(self, name: str, rows: np.ndarray, values: np.ndarray) -> None:
        """See Storage."""
        values = np.asarray(values, np.float32)
        if name == "final":
            if not len(rows):
                return
            size = len(self._arrays[name])
            if more := _growth(rows, size):
                self._arrays[name] = jnp.pad(self._arrays[name], ((0, more), (0, 0)))
            # Compiled for powers of two, not for every number of ends: rows beyond the table are dropped.
            spare = (1 << (len(rows) - 1).bit_length()) - len(rows)
            rows = np.concatenate([rows, size + more + np.arange(spare)])
            values = np.pad(values, ((0, spare), (0, 0)))
        self._arrays[name] = _write(self._arrays[name], rows, values)

    def read(self, name: str, rows: np.ndarray) -> np.ndarray:
        """See Storage."""
        return np.array(self._arrays[name][rows])

    def gather(self, draw: Draw) -> Batch:
        """See Storage."""
        return _gather(self._arrays, draw)

    @property
    def nbytes(self) -> int:
        """See Storage."""
        return sum(array.nbytes for array in self._arrays.values())


def _zeros(zeros: Callable, rows: int, observations: int, actions: int) -> dict[str, Any]:
    sizes = {
        "observation": (rows, observations),
        "action": (rows, actions),
        "final": (_FIRST_FINALS, observations),
    }
    return {name: zeros(size, np.float32) for name, size in sizes.items()}


def _growth(rows: np.ndarray, size: int) -> int:
    """How much longer a table of this size has to be to have these rows: it doubles until it does."""
    longer = size
    while longer <= rows.max():
        longer *= 2
    return longer - size


@partial(jax.jit, donate_argnums=0)
def _write(array: jax.Array, rows: jax.Array, values: jax.Array) -> jax.Array:
    return array.at[rows].set(values, unique_indices=True)


@jax.jit
def _gather(arrays: Mapping[str, jax.Array], draw: Draw) -> Batch:
    following = arrays["observation"][draw.next_row]
    return Batch(
        observation=arrays["observation"][draw.row],
        action=arrays["action"][draw.row],
        rewards=draw.rewards,
        steps=draw.steps,
        next_observation=jnp.where(draw.final[..., None] >= 0, arrays["final"][draw.final], following),
        terminated=draw.terminated,
    )


STORAGES: dict[str, Callable[[int, int, int], Storage]] = {"host": HostStorage, "device": DeviceStorage}
