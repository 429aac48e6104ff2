"""From the command line to a result file: the flags that commands share, and everything wrong at once."""

import contextlib
import json
import math
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import tyro

from fastcollect import ConfigError
from fastcollect.support.command import check_writable, run
from fastcollect.support.files import write_file
from fastcollect.support.machine import machine

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Output:
    """The flag of every command that writes a result."""

    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Also write the result here; whole or not at all."""


@dataclass(frozen=True, kw_only=True)
class Turns:
    """The flags of every command that measures methods in turns."""

    seconds: float = 3.0
    """Seconds on the clock for each method in each round, after start-up and a warm-up."""
    rounds: int = 3
    """Rounds in which every method has its turn; the median, the slowest and the fastest are shown."""


class Problems:
    """Everything that is wrong with what the user asked for, beginning with the flags that commands share."""

    def __init__(self, arguments: Any) -> None:
        self.found: list[str] = []
        if isinstance(arguments, Output):
            with self.kept("--json: "):
                check_writable(arguments.json)
        if isinstance(arguments, Turns):
            self.require(1 <= arguments.rounds <= 1000, "rounds", arguments.rounds, "1 to 1000")
            self.positive("seconds", arguments.seconds, 3600)

    @contextlib.contextmanager
    def kept(self, prefix: str = "") -> Iterator[None]:
        """A ConfigError ends what is done within and no more; its problems are kept behind the prefix."""
        try:
            yield
        except ConfigError as error:
            self.found += [prefix + problem for problem in error.problems]

    def require(self, holds: bool, flag: str, value: object, allowed: str) -> None:
        """Keep a problem that names the flag, its value and what is allowed, unless the condition holds."""
        if not holds:
            self.found.append(f"--{flag} is {value!r}; allowed: {allowed}")

    def positive(self, flag: str, value: float, most: float = math.inf) -> None:
        """Check that a number is finite, above 0, and at most ``most``."""
        allowed = "above 0" + (f", at most {most:g}" if most < math.inf else "")
        self.require(0 < value <= most and math.isfinite(value), flag, value, allowed)

    def raise_any(self) -> None:
        """Raises ConfigError with all problems, each once, if there are any."""
        if self.found:
            raise ConfigError(list(dict.fromkeys(self.found)))


def main(arguments: type[T], act: Callable[[T], None], description: str | None) -> NoReturn:
    """Be a command: read the flags, call ``act`` with them, exit."""
    chosen = tyro.cli(arguments, prog=shlex.join(["python", *sys.orig_argv[1:3]]), description=description)
    run(lambda: act(chosen))


def save(arguments: Any, file: Path | None, **content: Any) -> dict[str, Any]:
    """A result: the machine, the command, its settings, what was found; written as JSON if there is a file.

    Raises ConfigError naming a file that cannot be written.
    """
    chosen = vars(arguments).items()
    settings = {name: value for name, value in chosen if name != "json" and not isinstance(value, Path)}
    command = shlex.join(["python", *sys.orig_argv[1:]])
    result = {"machine": machine(), "command": command, **settings, **content}
    if file is not None:
        write_file(file, json.dumps(result, indent=2) + "\n")
    return result
