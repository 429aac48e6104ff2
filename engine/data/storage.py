"""Where a replay's wide arrays lie: in the host's memory or in the device's."""

import abc
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from engine.data.transition import Batch

_FIRST_FINALS = 64
"""Final observations that there is room for at first; the room doubles when it is full."""


class Draw(NamedTuple):
    """Which transitions make up K batches; every array is (K, batch) but rewards, (K, batch, n).

    row: where the observation and the action lie. next_row: where the next observation lies. final: its
    place among the final observations, or -1. rewards, steps, terminated: as in Batch. between: (K, batch,
    n - 1) where the observations between lie, or None.
    """

    row: np.ndarray
    next_row: np.ndarray
    final: np.ndarray
    rewards: np.ndarray
    steps: np.ndarray
    terminated: np.ndarray
    between: np.ndarray | None = None


class Storage(abc.ABC):
    """Rows of observations, actions and more, and a table of final observations that grows as it has to.

    widths: numbers in a row of each, by name; there are "observation" and "action". Everything is float32
    and lies in arrays of ``_numpy``: NumPy's, or JAX's.
    """

    _numpy: Any

    def __init__(self, rows: int, widths: Mapping[str, int]) -> None:
        sizes = {name: (rows, width) for name, width in widths.items()}
        sizes["final"] = (_FIRST_FINALS, widths["observation"])
        self._arrays: dict[str, Any] = {n: self._numpy.zeros(size, np.float32) for n, size in sizes.items()}

    def write(self, name: str, rows: np.ndarray, values: np.ndarray) -> None:
        """Overwrite these rows of one of ``widths``, or of "final", with values (rows, width)."""
        if name == "final":
            if not len(rows):
                return
            longer = size = len(self._arrays[name])
            while longer <= rows.max():
                longer *= 2
            if longer > size:
                self._arrays[name] = self._numpy.pad(self._arrays[name], ((0, longer - size), (0, 0)))
        self._set(name, rows, values)

    def read(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Copies of these rows on the host."""
        return np.require(self._arrays[name][rows], requirements="W")

    @abc.abstractmethod
    def _set(self, name: str, rows: np.ndarray, values: np.ndarray) -> None:
        """Overwrite rows that there are."""

    @abc.abstractmethod
    def gather(self, draw: Draw) -> Batch:
        """Arrays of their own, (K, batch, ...)."""


class _HostStorage(Storage):
    """Batches are gathered by NumPy and sent to the device."""

    _numpy = np

    def _set(self, name: str, rows: np.ndarray, values: np.ndarray) -> None:
        self._arrays[name][rows] = values

    def gather(self, draw: Draw) -> Batch:
        following = self._arrays["observation"][draw.next_row]
        ended = draw.final >= 0
        following[ended] = self._arrays["final"][draw.final[ended]]
        return _batch(self._arrays, draw, following)


class _DeviceStorage(Storage):
    """Only indices, rewards and new rows travel."""

    _numpy = jnp

    def _set(self, name: str, rows: np.ndarray, values: np.ndarray) -> None:
        values = np.asarray(values, np.float32)
        if name == "final":
            # Compiled for powers of two, not for every number of ends: rows beyond the table are dropped.
            spare = (1 << (len(rows) - 1).bit_length()) - len(rows)
            rows = np.concatenate([rows, len(self._arrays[name]) + np.arange(spare)])
            values = np.pad(values, ((0, spare), (0, 0)))
        self._arrays[name] = _write(self._arrays[name], rows, values)

    def gather(self, draw: Draw) -> Batch:
        return _gather(self._arrays, draw)


@partial(jax.jit, donate_argnums=0)
def _write(array: jax.Array, rows: jax.Array, values: jax.Array) -> jax.Array:
    return array.at[rows].set(values, unique_indices=True)


@jax.jit
def _gather(arrays: Mapping[str, jax.Array], draw: Draw) -> Batch:
    following = arrays["observation"][draw.next_row]
    following = jnp.where(draw.final[..., None] >= 0, arrays["final"][draw.final], following)
    return _batch(arrays, draw, following)


def _batch(arrays: Mapping[str, Any], draw: Draw, following: Any) -> Batch:
    return Batch(
        observation=arrays["observation"][draw.row],
        action=arrays["action"][draw.row],
        rewards=draw.rewards,
        steps=draw.steps,
        next_observation=following,
        terminated=draw.terminated,
        between=None if draw.between is None else arrays["observation"][draw.between],
    )


STORAGES: dict[str, type[Storage]] = {"host": _HostStorage, "device": _DeviceStorage}
