"""The defaults of every setting, in versions: ``VERSION.yaml``.

A run's hash covers the version and what differs from it, so that a new setting with a default leaves the
hashes of older runs as they are. A new setting is added to the newest file; for a default that changes there
is a new file, and the old one stays as it is.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from fastcollect.support.errors import ConfigError
from trainers.config import yaml_file

VERSION = 3
FOLDER = Path(__file__).parent


@cache
def defaults(algo: str, version: int = VERSION) -> Mapping[str, Any]:
    """The defaults of a version, with those of one algorithm. Not to be changed. Raises ConfigError."""
    file = FOLDER / f"{version}.yaml"
    if type(version) is not int or not file.is_file():
        raise ConfigError([f"defaults of version {version!r} are not known here; the newest is {VERSION}"])
    found = yaml_file.read(file)
    return {**found, "algorithm": found["algorithm"].get(algo, {})}


def differences(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are not, or are otherwise, among the defaults; nested ones name by name."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        default = defaults.get(key)
        if isinstance(value, Mapping) and isinstance(default, Mapping):
            if inner := differences(value, default):
                found[key] = inner
        elif key not in defaults or not _same(value, default):
            found[key] = value
    return found


def _same(left: Any, right: Any) -> bool:
    """Equal, and of one type: 1 is neither 1.0 nor true."""
    if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        return len(left) == len(right) and all(map(_same, left, right))
    return type(left) is type(right) and left == right
