"""Rows of JSON lines: what training and evaluations measured, as a run folder keeps it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastcollect.support.errors import ConfigError

METRICS = "metrics.jsonl"
EVALUATIONS = "evaluations.jsonl"


def read_rows(path: Path | str) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines, without a last line that was cut off while it was written.

    Raises ConfigError naming the file and the line of anything else that is no row.
    """
    return [row for _, row in read_lines(Path(path))]


def read_lines(file: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """As ``read_rows``, each row behind the line that it was read from."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ConfigError([f"{str(file)!r} cannot be read: {error.strerror or error}"]) from None
    *whole, _ = content.split(b"\n")
    out = []
    for number, line in enumerate(whole, 1):
        try:
            row = json.loads(line, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise ConfigError([f"{str(file)!r}, line {number} is no JSON: {error}"]) from None
        if not isinstance(row, dict):
            raise ConfigError([f"{str(file)!r}, line {number} is no row: {line[:80]!r}"])
        out.append((line, row))
    return out


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not of its standard")
