"""Checkpoints of a whole run: entries of the array store in ``checkpoints/``, named by environment steps.

A checkpoint counts once the index names it, and in the same moment the oldest one ceases to count. So a kill
at any moment leaves the newest complete one to go on from.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastcollect.support.errors import ConfigError
from trainers.store import artifacts

FOLDER = "checkpoints"


class Checkpoints:
    """The two newest checkpoints of one run folder.

    For the process that alone may write there: what a save that was killed left behind is removed.
    """

    def __init__(self, folder: Path) -> None:
        """Raises ConfigError if the folder cannot be written or its index is damaged."""
        self._folder, self._inside = folder, folder / FOLDER
        try:
            self._inside.mkdir(exist_ok=True)
            known = {artifacts.INDEX, *(file.name for file in artifacts.files(folder, FOLDER).values())}
            for file in self._inside.iterdir():
                if file.name not in known and not file.is_dir():
                    file.unlink()
        except OSError as error:
            says = f"checkpoints cannot be written to {str(self._inside)!r}: {error.strerror or error}"
            raise ConfigError([says]) from error
        except ConfigError as error:
            advice = f"remove {str(self._inside)!r} to begin this run anew"
            raise ConfigError([f"{problem}; {advice}" for problem in error.problems]) from None

    def latest(self) -> int | None:
        """Environment steps of the newest one whose file is there, None if there is none."""
        listed = artifacts.files(self._folder, FOLDER).items()
        return max((int(name) for name, file in listed if name.isdecimal() and file.exists()), default=None)

    def save(self, step: int, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
        """Save named arrays and plain data. Raises ConfigError for a full disk; earlier ones stay."""
        newest = self.latest()
        if step == newest:
            return
        drop = [name for name in artifacts.files(self._folder, FOLDER) if name != str(newest)]
        # As a text, which unlike the store's own metadata may hold a return that is no finite number. Whose
        # checkpoint it is says the folder's manifest, which was compared before the run goes on.
        run = {"run": json.dumps(dict(meta))}
        artifacts.save(self._folder, str(step), arrays, run, config_hash="", store=FOLDER, drop=drop)

    def load(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and plain data of the newest one. Raises ConfigError if it is damaged or there is none."""
        name = str(self.latest())
        file = artifacts.files(self._folder, FOLDER).get(name)
        if file is None:
            raise ConfigError([f"{str(self._inside)!r} holds no checkpoint to resume from"])
        try:
            arrays, meta = artifacts.load(self._folder, name, store=FOLDER)
        except ConfigError as error:
            advice = f"remove {str(file)!r} to go on from the checkpoint before it"
            raise ConfigError([f"{problem}; {advice}" for problem in error.problems]) from None
        return arrays, json.loads(meta["run"])
