"""Shared memory without a name, and the layout of arrays inside it.

A segment is a memfd: the kernel frees it when its last process dies, whatever kills that process, so
nothing can leak and nothing depends on the size of /dev/shm.
"""

import math
import mmap
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

ALIGNMENT = 64
"""Bytes; one cache line, so that neighbouring arrays never share one."""


@dataclass(frozen=True)
class FieldSpec:
    """Shape and dtype of one array."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Bytes without padding."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


class Layout:
    """Named arrays packed one after another, each aligned to a cache line.

    nbytes: the size of the whole, a multiple of ALIGNMENT, so that layouts can be repeated.
    """

    def __init__(self, fields: Mapping[str, FieldSpec]) -> None:
        self.fields = dict(fields)
        self.offsets: dict[str, int] = {}
        self.nbytes = 0
        for name, field in self.fields.items():
            self.offsets[name] = self.nbytes
            self.nbytes = -(-(self.nbytes + field.nbytes) // ALIGNMENT) * ALIGNMENT

    def views(
        self, buffer: memoryview | np.ndarray, names: Iterable[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Writable arrays over ``buffer`` (bytes): those of these names, or all."""
        return {
            name: np.ndarray(self.fields[name].shape, self.fields[name].dtype, buffer, self.offsets[name])
            for name in (self.fields if names is None else names)
        }


class Segment:
    """Anonymous shared memory that travels as a file descriptor: ``nbytes`` new zeros, or what ``fd`` holds.

    The mapping lives as long as any array over ``buffer``; ``close`` gives up the descriptor only.
    """

    def __init__(self, nbytes: int, fd: int | None = None) -> None:
        if fd is None:
            fd = os.memfd_create("fastcollect", os.MFD_CLOEXEC)
            os.ftruncate(fd, nbytes)
        self.fd = fd
        self.buffer = memoryview(mmap.mmap(fd, 0))

    def close(self) -> None:
        """Close the descriptor; idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
