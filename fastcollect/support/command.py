"""What the command lines share: values from text, errors to exit codes."""

import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from fastcollect.support import errors
from fastcollect.support.errors import ConfigError


def parse_kwargs(pairs: Sequence[str]) -> dict[str, Any]:
    """Keyword arguments from "name=value" texts; a value is JSON if it reads as such, else a string.

    Raises ConfigError naming every text that is not a pair.
    """
    if problems := [f"{pair!r} is not of the form name=value" for pair in pairs if "=" not in pair]:
        raise ConfigError(problems)
    out: dict[str, Any] = {}
    for name, value in (pair.split("=", 1) for pair in pairs):
        try:
            out[name] = json.loads(value)
        except ValueError:
            out[name] = value
    return out


def check_writable(*files: Path | None) -> None:
    """Raises ConfigError naming every file that could not be written, before any work is done."""
    problems = []
    for file in filter(None, files):
        parent = file.resolve().parent
        if file.is_dir():
            problems.append(f"{str(file)!r} is a folder")
        elif not parent.is_dir():
            problems.append(f"the folder of {str(file)!r} does not exist")
        elif not os.access(file if file.exists() else parent, os.W_OK):
            problems.append(f"{str(file)!r} cannot be written")
    if problems:
        raise ConfigError(problems)


def check_folder(folder: Path) -> None:
    """Raises ConfigError if this folder could not be made or written to."""
    existing = next(p for p in (folder.resolve(), *folder.resolve().parents) if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ConfigError([f"{str(folder)!r} cannot be written: {str(existing)!r} is no writable folder"])


def run(command: Callable[[], None]) -> NoReturn:
    """Call it and exit: 0, 2 for what the user can mend, 1 for a worker that raised, 130 after Ctrl-C."""
    # As Ctrl-C: context managers get to close what they opened.
    signal.signal(signal.SIGTERM, lambda signum, _: sys.exit(128 + signum))
    try:
        command()
    except ConfigError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        sys.exit(errors.CONFIG_EXIT_CODE)
    except (errors.WorkerError, errors.StallError, errors.LauncherLostError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    sys.exit(0)
