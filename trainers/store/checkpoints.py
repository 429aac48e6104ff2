"""Checkpoints of a whole run: entries of the array store in ``checkpoints/``, named by environment steps.

A checkpoint counts once the index names it, and in the same moment the oldest one ceases to count. So a kill
at any moment leaves the newest complete one to go on from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastcollect.support.errors import ConfigError
from trainers.store import artifacts

FOLDER = "checkpoints"
_KEPT = 2


class Checkpoints:
    """The newest checkpoints of one run folder.

    For the process that alone may write there: what a save that was killed left behind is removed.
    """

    def __init__(self, folder: Path) -> None:
        """Raises ConfigError if the folder cannot be written or its index is damaged."""
        self._folder, self._inside = folder, folder / FOLDER
        try:
            self._inside.mkdir(exist_ok=True)
            artifacts.sweep(folder, FOLDER)
        except OSError as error:
            raise ConfigError(
                [f"checkpoints cannot be written to {str(self._inside)!r}: {error.strerror or error}"]
            ) from error
        except ConfigError as error:
            advice = f"remove {str(self._inside)!r} to begin this run anew"
            raise ConfigError([f"{problem}; {advice}" for problem in error.problems]) from None

    def latest(self) -> int | None:
        """Environment steps of the newest one whose file is there, None if there is none."""
        return max(self._there(), default=None)

    def _there(self) -> dict[int, Path]:
        listed = artifacts.files(self._folder, FOLDER)
        return {int(name): file for name, file in listed.items() if name.isdecimal() and file.exists()}

    def save(self, step: int, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
        """Save named arrays and plain data. Raises ConfigError for a full disk; earlier ones stay."""
        there = sorted(self._there())
        if there and step == there[-1]:
            return
        kept = {str(each) for each in there[-(_KEPT - 1) :]}
        drop = [name for name in artifacts.files(self._folder, FOLDER) if name not in kept]
        # As a text, which unlike the store's own metadata may hold a return that is no finite number. Whose
        # checkpoint it is says the folder's manifest, which was compared before the run goes on.
        run = {"run": json.dumps(dict(meta))}
        artifacts.save(self._folder, str(step), arrays, run, config_hash="", store=FOLDER, drop=drop)

    def load(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and plain data of the newest one. Raises ConfigError if it is damaged or there is none."""
        there = self._there()
        if not there:
            raise ConfigError([f"{str(self._inside)!r} holds no checkpoint to resume from"])
        step = max(there)
        try:
            found = artifacts.load(self._folder, str(step), store=FOLDER)
        except ConfigError as error:
            advice = f"remove {str(there[step])!r} to go on from the checkpoint before it"
            raise ConfigError([f"{problem}; {advice}" for problem in error.problems]) from None
        return found.arrays, json.loads(found.meta["run"])
