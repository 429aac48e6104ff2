"""Rows of JSON lines: what training and evaluations measured, as a run folder keeps it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from fastcollect.support.errors import ConfigError

METRICS = "metrics.jsonl"
EVALUATIONS = "evaluations.jsonl"
TOPOLOGY = "topology.jsonl"

Row = TypeVar("Row")


def read_rows(path: Path | str) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines; see ``read_lines``."""
    return read_lines(Path(path), read_row, "row")


def read_lines(file: Path, parsed: Callable[[bytes], Row], what: str, advice: str = "") -> list[Row]:
    """What the lines of a file say, without a last line that was cut off while it was written.

    Raises ConfigError naming the file and the line of anything else that is not ``what`` it should be.
    """
    try:
        *whole, _ = file.read_bytes().split(b"\n")
    except OSError as error:
        raise ConfigError([f"{str(file)!r} cannot be read: {error.strerror or error}"]) from None
    found = []
    for number, line in enumerate(whole, 1):
        try:
            found.append(parsed(line))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ConfigError([f"{str(file)!r}, line {number} is no {what}: {error}{advice}"]) from None
    return found


def read_row(line: bytes) -> dict[str, Any]:
    """The row that one line says. Raises ValueError if it is none."""
    row = json.loads(line, parse_constant=_no_constant)
    if not isinstance(row, dict):
        raise ValueError(repr(line[:80]))
    return row


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not of its standard")
