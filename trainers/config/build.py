"""Configurations from plain data, every value checked against the type of its field."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from engine.algorithms import CONFIGS
from fastcollect.support.errors import ConfigError
from trainers.config.merge import Merged

_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", Path: "a path"}


def build(cls: type, merged: Merged, **missing: Any) -> Any:
    """An instance of the dataclass with these settings; what they do not name keeps its default.

    missing: values of fields without a default that may be unnamed. Raises ConfigError naming every name
    that no field has and every value of another type, with what is allowed and where it was given.
    """
    problems: list[str] = []
    settings, kinds = merged.settings, get_type_hints(cls)
    algo = settings.get("algo", getattr(cls, "algo", None))
    if algo in CONFIGS:
        # Which class the settings of an algorithm have depends on a value, not on a type.
        settings, kinds = {"algorithm": {}, **settings}, {**kinds, "algorithm": CONFIGS[algo]}
    built = _dataclass(cls, kinds, settings, "", problems, missing)
    if problems:
        raise ConfigError(merged.explained(problems))
    return built


def _dataclass(
    cls: type,
    kinds: Mapping[str, Any],
    settings: Mapping[str, Any],
    at: str,
    problems: list[str],
    missing: Mapping[str, Any],
) -> Any:
    values = dict(missing)
    for key, value in settings.items():
        name, kind = f"{at}{key}", kinds.get(key)
        if kind is None:
            problems.append(f"{name} is no setting; allowed: {', '.join(kinds)}")
        elif dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
            values[key] = _dataclass(kind, get_type_hints(kind), value, f"{name}.", problems, {})
        else:
            try:
                values[key] = _value(kind, value)
            except TypeError as error:
                problems.append(f"{name} is {value!r}; allowed: {error}")
    return None if problems else cls(**values)


def _value(kind: Any, value: Any) -> Any:
    """The value as a field of this type holds it. Raises TypeError saying what is allowed."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        (other,) = (each for each in inner if each is not type(None))
        return None if value is None else _value(other, value)
    if origin is Literal:
        if value not in inner:
            raise TypeError(", ".join(map(str, inner)))
        return value
    if origin is tuple:
        values = value if isinstance(value, (list, tuple)) else [value]
        return tuple(_value(inner[0], each) for each in values)
    if kind is float and type(value) is int:
        return float(value)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if type(value) is not kind:
        raise TypeError(_WORDS.get(kind, "settings with names of their own"))
    return value


def with_algorithm(cls: type, algo: str) -> type:
    """The class, with the settings of one algorithm in the field ``algorithm``.

    Raises ConfigError if there is none of that name.
    """
    if algo not in CONFIGS:
        raise ConfigError([f"algo is {algo!r}; allowed: {', '.join(CONFIGS)}"])
    own = [
        ("algo", Literal[tuple(CONFIGS)], field(default=algo)),
        ("algorithm", CONFIGS[algo], field(default_factory=CONFIGS[algo])),
    ]
    made = dataclasses.make_dataclass(cls.__name__, own, bases=(cls,), frozen=True, kw_only=True)
    made.__doc__ = cls.__doc__
    return made
