"""Checkpoints of a whole run, written by Orbax: a folder each, complete or not there."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastcollect.support.errors import ConfigError

FOLDER = "checkpoints"
_KEPT = 2


class Checkpoints:
    """The newest checkpoints of one run folder, by environment steps.

    For the process that alone may write there: what a save that was killed left behind is removed.
    """

    def __init__(self, folder: Path) -> None:
        """Raises ConfigError if the folder cannot be written."""
        # Loading it takes seconds, and so it waits until a run really starts.
        import orbax.checkpoint as ocp

        logging.getLogger("absl").setLevel(logging.ERROR)
        self._ocp, self._folder = ocp, folder / FOLDER
        options = ocp.CheckpointManagerOptions(
            max_to_keep=_KEPT, enable_async_checkpointing=False, cleanup_tmp_directories=True
        )
        try:
            self._folder.mkdir(exist_ok=True)
            self._manager = ocp.CheckpointManager(self._folder.resolve(), options=options)
        except OSError as error:
            raise ConfigError(
                [f"checkpoints cannot be written to {str(self._folder)!r}: {error.strerror or error}"]
            ) from error

    def latest(self) -> int | None:
        """Environment steps of the newest one, None if there is none."""
        return self._manager.latest_step()

    def save(self, step: int, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
        """Save named arrays and plain data. Raises ConfigError for a full disk; earlier ones stay."""
        if step == self.latest():
            return
        arrays = {name: np.asarray(value) for name, value in arrays.items()}
        # Orbax has neither texts nor arrays without elements.
        texts = {name: value.tolist() for name, value in arrays.items() if value.dtype.kind == "U"}
        rest = {name: value for name, value in arrays.items() if name not in texts}
        empty = {k: [list(v.shape), str(v.dtype)] for k, v in rest.items() if not v.size}
        full = {name: value for name, value in rest.items() if value.size}
        content = {"run": dict(meta), "texts": texts, "empty": empty, "sha256": _digest(full)}
        where = f"checkpoint {step} cannot be written to {str(self._folder)!r}"
        need = sum(value.nbytes for value in full.values())
        if (free := shutil.disk_usage(self._folder).free) < need:
            raise ConfigError([f"{where}: it takes {need / 2**20:.0f} MiB, {free / 2**20:.0f} are free"])
        args = self._ocp.args
        try:
            with _quiet():
                self._manager.save(
                    step, args=args.Composite(arrays=args.StandardSave(full), meta=args.JsonSave(content))
                )
        except Exception as error:  # tensorstore reports a full disk as a ValueError, Orbax as others
            raise ConfigError([f"{where}: {_first_line(error)}"]) from error

    def load(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and plain data of the newest one. Raises ConfigError if it is damaged or there is none."""
        step, args = self.latest(), self._ocp.args
        if step is None:
            raise ConfigError([f"{str(self._folder)!r} holds no checkpoint to resume from"])
        where = f"checkpoint {str(self._folder / str(step))!r}"
        try:
            with _quiet():
                found = self._manager.restore(
                    step, args=args.Composite(arrays=args.StandardRestore(), meta=args.JsonRestore())
                )
            arrays = {name: np.asarray(value) for name, value in found["arrays"].items()}
            content = found["meta"]
            intact = _digest(arrays) == content["sha256"]
            for name, (shape, dtype) in content["empty"].items():
                arrays[name] = np.zeros(shape, dtype)
            arrays |= {name: np.array(text) for name, text in content["texts"].items()}
            meta = dict(content["run"])
        except Exception as error:  # whatever the parsers raise for content that is damaged
            raise ConfigError(
                [f"{where} is damaged: {_first_line(error)}; remove its folder to resume from an earlier one"]
            ) from error
        if not intact:
            raise ConfigError([f"{where} was changed: its arrays do not have the sha256 it was saved with"])
        return arrays, meta

    def close(self) -> None:
        """Let go of the folder."""
        self._manager.close()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what Orbax's threads print about a failure from the user, who gets one error instead."""
    sys.stderr.flush()
    saved = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(saved, 2)
        os.close(saved)


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    total = hashlib.sha256()
    for name in sorted(arrays):
        total.update(f"{name} {arrays[name].shape} {arrays[name].dtype}".encode())
        total.update(np.ascontiguousarray(arrays[name]))
    return total.hexdigest()


def _first_line(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    return text.splitlines()[0][:300]
