"""Flat dicts of named arrays, whose names are paths: "group/0/observation"."""

from collections.abc import Mapping
from typing import TypeVar

Value = TypeVar("Value")


def below(arrays: Mapping[str, Value], prefix: str) -> dict[str, Value]:
    """The entries whose names begin with a prefix, under their names without it."""
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
