"""What the command lines share: values from text, errors to exit codes, atomic files."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from fastcollect.envs.registry import CRAFTER, METAWORLD_TASKS
from fastcollect.errors import CONFIG_EXIT_CODE, ConfigError, StallError, WorkerError
from fastcollect.launcher import LauncherLostError
from fastcollect.policies.base import PolicyConfig, cnn_policy, mlp_policy, random_policy

_SMALL = {"CartPole-v1": (16, 16), "HalfCheetah-v5": (64, 64)}


def parse_policy(text: str | None, env_id: str) -> PolicyConfig:
    """A policy from "cnn", "random" or hidden widths such as "256,256"; None: what suits the environment.

    Raises ConfigError.
    """
    if text == "cnn" or (text is None and _gives_images(env_id)):
        return cnn_policy()
    if text is None:
        wide = (256, 256) if env_id in METAWORLD_TASKS else (64, 64)
        return mlp_policy(_SMALL.get(env_id, wide))
    if text == "random":
        return random_policy()
    try:
        widths = tuple(int(part) for part in text.split(","))
    except ValueError:
        widths = ()
    if not widths or min(widths) < 1:
        allowed = '"cnn", "random", or hidden widths such as "256,256"'
        raise ConfigError([f"policy is {text!r}; allowed: {allowed}"])
    return mlp_policy(widths)


def _gives_images(env_id: str) -> bool:
    """By name, because building the environment would load its simulator into the calling process."""
    return env_id in CRAFTER or env_id.startswith("gameboy:")


def parse_kwargs(pairs: Sequence[str]) -> dict[str, Any]:
    """Keyword arguments from "name=value" texts; a value is JSON if it reads as such, else a string.

    Raises ConfigError naming every text that is not a pair.
    """
    problems = [f"{p!r} is not of the form name=value" for p in pairs if not p.partition("=")[1]]
    if problems:
        raise ConfigError(problems)
    out = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        try:
            out[name] = json.loads(value)
        except ValueError:
            out[name] = value
    return out


def check_writable(*files: Path | None) -> None:
    """Raises ConfigError naming every file that could not be written, before any work is done."""
    problems = []
    for file in files:
        if file is None:
            continue
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


def write_atomically(file: Path, content: str | bytes) -> None:
    """The whole content or nothing; parent folders are made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    fd, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(fd, "wb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, file)
    except BaseException:
        os.unlink(temporary)
        raise


def run(command: Callable[[], None]) -> NoReturn:
    """Call it and exit: 0, 2 for what the user can mend, 1 for a worker that raised, 130 after Ctrl-C."""
    # As Ctrl-C: context managers get to close what they opened.
    signal.signal(signal.SIGTERM, _terminate)
    try:
        command()
    except ConfigError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        sys.exit(CONFIG_EXIT_CODE)
    except (WorkerError, StallError, LauncherLostError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    sys.exit(0)


def _terminate(signum: int, _: object) -> NoReturn:
    sys.exit(128 + signum)
