"""What a run folder says of itself: the manifest with the configuration, and the summary."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastcollect.support.errors import ConfigError
from trainers.config import yaml_file
from trainers.store.identity import Identity

MANIFEST = "manifest.yaml"
SUMMARY = "summary.json"
RESERVED = "manifest"


def read_config(path: Path | str) -> dict[str, Any]:
    """The configuration in a YAML file or in a run folder, without what a manifest says beside it.

    Raises ConfigError naming the file and the line of what cannot be read.
    """
    path = Path(path)
    config = yaml_file.read(path / MANIFEST if path.is_dir() else path)
    config.pop(RESERVED, None)
    return config


def read_manifest(folder: Path | str) -> dict[str, Any]:
    """What a run folder's manifest says beside the configuration. Raises ConfigError if it is none."""
    return _split(folder)[1]


def _split(folder: Path | str) -> tuple[dict[str, Any], dict[str, Any]]:
    file = Path(folder) / MANIFEST
    if not file.is_file():
        raise ConfigError([f"{str(folder)!r} is no run folder: it has no {MANIFEST}"])
    config = yaml_file.read(file)
    manifest = config.pop(RESERVED, None)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("facts"), dict):
        raise ConfigError([f"{str(file)!r} is not the manifest of a run"])
    return config, manifest


def read_identity(folder: Path | str) -> tuple[Identity, dict[str, Any]]:
    """What the run in a folder is, and its manifest.

    Raises ConfigError if it is none, or if it has not the hash that the manifest says.
    """
    config, manifest = _split(folder)
    changed = f"{str(Path(folder) / MANIFEST)!r} was changed"
    try:
        identity = Identity.of(config, manifest)
        if not isinstance(manifest["resumed"], list) or not isinstance(manifest["started"], str):
            raise ValueError("it does not say when it was started and resumed")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError([f"{changed}: {type(error).__name__}: {error}"]) from None
    if (actual := identity.hash()) != manifest.get("config_hash"):
        says = f"the hash of its configuration is {actual}, it says {manifest.get('config_hash')}"
        raise ConfigError([f"{changed}: {says}"])
    return identity, manifest


def read_summary(folder: Path | str, needs: Sequence[str] = ()) -> dict[str, Any]:
    """The results of a finished run. needs: names that must be in it, nested ones with dots.

    Raises ConfigError if there are none, the file cannot be read, or something is missing in it.
    """
    file = Path(folder) / SUMMARY
    try:
        summary = json.loads(file.read_text())
    except FileNotFoundError:
        raise ConfigError([f"{str(file)!r} does not exist: the run is not finished"]) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError([f"{str(file)!r} cannot be read: {error}"]) from None
    if not isinstance(summary, dict) or not summary:
        raise ConfigError([f"{str(file)!r} is no summary"])
    if missing := [name for name in needs if not _has(summary, name)]:
        raise ConfigError([f"{str(file)!r} is no summary of such a run: it lacks {', '.join(missing)}"])
    return summary


def _has(value: Any, name: str) -> bool:
    head, _, rest = name.partition(".")
    return isinstance(value, dict) and head in value and (not rest or _has(value[head], rest))


def differences(folder: Path, there: Identity, here: Identity) -> list[str]:
    """One sentence for every value in which two runs differ, nested ones by their dotted name."""
    old, new = _values(there), _values(here)
    another = f"run folder {str(folder)!r} holds a run of another configuration"
    return [
        f"{another}: {key} is {old.get(key, 'absent')} there and {new.get(key, 'absent')} here"
        for key in {**old, **new}
        if key != "from" and old.get(key) != new.get(key)
    ] or [another]


def _values(identity: Identity) -> dict[str, str]:
    hashes = {f"the hash of the {each.role} source": each.config_hash for each in identity.sources}
    return dict(_shown({**identity.config, **identity.facts()["run"], **hashes}))


def _shown(settings: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, str]]:
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _shown(value, f"{at}{key}.")
        else:
            yield f"{at}{key}", json.dumps(value, sort_keys=True)
