"""The weights board: versioned policy parameters in shared memory, one writer, any number of readers.

Versions rotate through a few buffers. The writer announces a version before it touches that version's
buffer and again when it is complete; a reader that finds its buffer announced anew after its copy reads
again (Lamport 1977, "Concurrent reading and writing"). A checksum beside each buffer makes the promise
independent of the processor's memory order and of a writer killed half-way.
"""

import zlib
from collections.abc import Mapping

import numpy as np

from fastcollect.memory.segment import FieldSpec, Layout, Segment

_BUFFERS = 3
_STARTED, _FINISHED = 0, 1


class WeightsBoard:
    """Parameters of fixed names and shapes; version 0 means that nothing was published yet."""

    def __init__(self, parameters: Mapping[str, FieldSpec], fd: int | None = None) -> None:
        self._parameters = Layout(parameters)
        layout = Layout(
            {
                "versions": FieldSpec((2,), np.dtype(np.int64)),
                "checksums": FieldSpec((_BUFFERS,), np.dtype(np.uint32)),
                "buffers": FieldSpec((_BUFFERS, max(1, self._parameters.nbytes)), np.dtype(np.uint8)),
            }
        )
        self.segment = Segment(layout.nbytes, fd)
        self._versions, self._checksums, self._buffers = layout.views(self.segment.buffer).values()
        self._arrays = [self._parameters.views(buffer) for buffer in self._buffers]
        self._staged: dict[str, np.ndarray] | None = None
        self._copy = np.empty_like(self._buffers[0])

    @property
    def version(self) -> int:
        """The newest complete version."""
        return int(self._versions[_FINISHED])

    def publish(self, parameters: Mapping[str, np.ndarray]) -> int:
        """Write the next version and return its number. Raises ValueError on other names or shapes."""
        self._check(parameters)
        version = self.version + 1
        index = version % _BUFFERS
        self._versions[_STARTED] = version
        for name, array in self._arrays[index].items():
            array[...] = parameters[name]
        self._checksums[index] = zlib.crc32(self._buffers[index])
        self._versions[_FINISHED] = version
        return version

    def stage(self, parameters: Mapping[str, np.ndarray]) -> int:
        """Keep a copy for ``publish_staged``; returns the version it will have. Raises as publish does."""
        self._check(parameters)
        self._staged = {name: np.array(parameters[name]) for name in self._parameters.fields}
        return self.version + 1

    def get_state(self) -> dict[str, np.ndarray]:
        """version () int64, published/NAME; staged () bool: whether staged/NAME wait to be published."""
        version, published = self.read()
        staged = self._staged or {}
        return {
            "version": np.array(version),
            "staged": np.array(self._staged is not None),
            **{f"published/{name}": array.copy() for name, array in published.items()},
            **{f"staged/{name}": array.copy() for name, array in staged.items()},
        }

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Publish and stage what ``get_state`` returned, with its version, before anybody reads."""
        fields = self._parameters.fields
        self._versions[:] = int(state["version"]) - 1
        self.publish({name: state[f"published/{name}"] for name in fields})
        if state["staged"]:
            self.stage({name: state[f"staged/{name}"] for name in fields})

    def publish_staged(self) -> None:
        """Publish what was staged last, if anything was since."""
        if self._staged is not None:
            self.publish(self._staged)
            self._staged = None

    def read(self) -> tuple[int, dict[str, np.ndarray]]:
        """The newest version and its parameters, whole; the arrays are valid until the next read."""
        while True:
            version = self.version
            index = version % _BUFFERS
            checksum = self._checksums[index]
            np.copyto(self._copy, self._buffers[index])
            overtaken = self._versions[_STARTED] >= version + _BUFFERS
            if not overtaken and (version == 0 or zlib.crc32(self._copy) == checksum):
                return version, self._parameters.views(self._copy)

    def _check(self, parameters: Mapping[str, np.ndarray]) -> None:
        if problems := mismatches(parameters, self._parameters.fields):
            raise ValueError("; ".join(problems))


def mismatches(parameters: Mapping[str, np.ndarray], fields: Mapping[str, FieldSpec]) -> list[str]:
    """Sentences that say how parameters differ from a policy's fields in names and shapes; sorted."""
    problems = [f"unknown parameter {name!r}" for name in parameters.keys() - fields.keys()]
    problems += [f"missing parameter {name!r}" for name in fields.keys() - parameters.keys()]
    problems += [
        f"parameter {name!r} has shape {np.shape(parameters[name])}, the policy has {field.shape}"
        for name, field in fields.items()
        if name in parameters and np.shape(parameters[name]) != field.shape
    ]
    return sorted(problems)
