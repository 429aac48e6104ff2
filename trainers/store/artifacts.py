"""The array store: ``artifacts/NAME.npz`` of a run folder, vouched for by ``artifacts/index.json``.

The index is the commit point. It names the file of each artifact and that file's sha256, and is replaced
only after the file lies complete on disk. An artifact that is saved again goes into its other slot
(``NAME.npz`` and ``NAME~.npz`` take turns), so a save that ends early, by a full disk or a kill at any
moment, leaves what the index names untouched: one reads either the earlier artifact or the new one, each
with its own metadata. What an interrupted save left behind is no artifact, and the next save of that name
overwrites it. Files are written array by array and hashed on the way, so that an array as large as a replay
is copied in small pieces only. ``checkpoints`` keeps the same store in a folder of its own.

At most one process may write: the one that holds the run folder's lock. Any number may read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastcollect.support.errors import ConfigError
from fastcollect.support.files import write_file
from trainers.store import npz
from trainers.store.npz import Artifact

FOLDER = "artifacts"
INDEX = "index.json"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_FIELDS = frozenset({"file", "sha256", "bytes", "config_hash"})


def save(
    folder: Path | str,
    name: str,
    arrays: Mapping[str, Any],
    meta: Mapping[str, Any] | None = None,
    *,
    config_hash: str,
    store: str = FOLDER,
    drop: Sequence[str] = (),
) -> Path:
    """Save arrays and metadata as an artifact of this run folder, in place of an earlier one of that name.

    store: the folder's subfolder that holds the artifact. drop: names of artifacts that go in the same
    moment as this one comes. Raises ConfigError, with all earlier artifacts intact, for what cannot be saved
    and for a full disk.
    """
    plain, text = _checked(folder, name, arrays, meta, store)
    index = _read_index(folder, store)
    earlier = index.get(name, {}).get("file")
    first, second = _slots(folder, name, store)
    file = second if earlier == first.name else first
    _check_space(file, sum(array.nbytes for array in plain.values()))
    writer = npz.Writer(plain, text)
    write_file(file, writer)
    digest, size = writer.sha256.hexdigest(), writer.size
    gone = [index.pop(each)["file"] for each in drop if each in index and each != name]
    gone += [] if earlier is None else [earlier]
    index[name] = {"file": file.name, "sha256": digest, "bytes": size, "config_hash": config_hash}
    try:
        write_file(file.parent / INDEX, json.dumps(index, indent=2, sort_keys=True) + "\n")
    except ConfigError:
        # Not for any other exception: after an interrupt the index may already name this file.
        with contextlib.suppress(OSError):
            file.unlink()
        raise
    for each in gone:
        with contextlib.suppress(OSError):
            (file.parent / each).unlink()
    return file


def files(folder: Path | str, store: str = FOLDER) -> dict[str, Path]:
    """Name -> file of what the index lists, there or not. Raises ConfigError if the index is damaged."""
    return {name: Path(folder) / store / entry["file"] for name, entry in _read_index(folder, store).items()}


def sweep(folder: Path | str, store: str) -> None:
    """Remove the files that no entry of the index names: what saves that were killed left behind.

    For the process that alone may write there. Raises ConfigError if the index is damaged.
    """
    known = {entry["file"] for entry in _read_index(folder, store).values()} | {INDEX}
    for file in (Path(folder) / store).iterdir():
        if file.name not in known and not file.is_dir():
            with contextlib.suppress(OSError):
                file.unlink()


def load(folder: Path | str, name: str, config_hash: str | None = None, *, store: str = FOLDER) -> Artifact:
    """The artifact of that name, after its sha256 and, if one is given, its configuration's hash agreed.

    Raises ConfigError naming the file, whatever is in it; nothing in it is ever executed.
    """
    entry = _entry(folder, name, store)
    while True:
        try:
            return _load_entry(folder, name, entry, config_hash, store)
        except ConfigError:
            # The run that owns the folder may have saved it again while it was being read.
            now = _entry(folder, name, store)
            if now == entry:
                raise
            entry = now


def exists(folder: Path | str, name: str, config_hash: str) -> bool:
    """Whether a stage with this configuration is done: its artifact is there, is its own, and is unchanged.

    Raises ConfigError if the index itself cannot be read.
    """
    entry = _read_index(folder, FOLDER).get(_checked_name(name))
    if entry is None or entry["config_hash"] != config_hash:
        return False
    try:
        return _sha256(Path(folder) / FOLDER / entry["file"]) == entry["sha256"]
    except OSError:
        return False


def _slots(folder: Path | str, name: str, store: str) -> tuple[Path, Path]:
    # No name may hold a tilde, so no artifact's slot is another artifact's file.
    return Path(folder) / store / f"{name}.npz", Path(folder) / store / f"{name}~.npz"


def _called(folder: Path | str, name: str, store: str) -> str:
    return f"{store.removesuffix('s')} {name!r} of {str(folder)!r}"


def _check_space(file: Path, need: int) -> None:
    existing = next(parent for parent in file.absolute().parents if parent.exists())
    if (free := shutil.disk_usage(existing).free) < need:
        says = f"it takes {need / 2**20:.0f} MiB, {free / 2**20:.0f} are free"
        raise ConfigError([f"{str(file)!r} cannot be written: {says}"])


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ConfigError([f"artifact {name!r}: a name is letters, digits and ._-, beginning with no sign"])
    return name


def _checked(
    folder: Path | str, name: str, arrays: Mapping[str, Any], meta: Mapping[str, Any] | None, store: str
) -> tuple[dict[str, np.ndarray], bytes]:
    where = _called(folder, _checked_name(name), store)
    out, problems = {}, []
    for key, value in arrays.items():
        array = np.asarray(value)
        if not (isinstance(key, str) and 0 < len(key) <= 255 and key.isprintable()):
            problems.append(f"{where}: an array is named {key!r}; allowed: up to 255 printable characters")
        elif array.dtype.kind not in npz.KINDS:
            problems.append(f"{where}: {key!r} holds {array.dtype}; allowed: {npz.ALLOWED}")
        else:
            out[key] = array
    text = b""
    try:
        text = json.dumps(dict(meta or {}), allow_nan=False, default=_python_value).encode()
    except (TypeError, ValueError, RecursionError) as error:
        problems.append(f"{where}: its metadata is no JSON: {error}")
    if problems:
        raise ConfigError(problems)
    return out, text


def _python_value(value: Any) -> Any:
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise TypeError(f"{value!r} has no place in JSON")


def _read_index(folder: Path | str, store: str) -> dict[str, dict[str, Any]]:
    file = Path(folder) / store / INDEX
    try:
        index = json.loads(_regular(file).read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError([f"{str(file)!r} cannot be read: {error}"]) from None
    if not isinstance(index, dict):
        raise ConfigError([f"{str(file)!r} is no index of artifacts"])
    problems = [
        f"{str(file)!r} is no index of artifacts: its entry {name!r} is {entry!r}"
        for name, entry in index.items()
        if not _is_entry(name, entry)
    ]
    if problems:
        raise ConfigError(problems)
    return index


def _is_entry(name: str, entry: Any) -> bool:
    if not (_NAME.fullmatch(name) and isinstance(entry, dict) and entry.keys() == _FIELDS):
        return False
    texts = all(isinstance(entry[field], str) for field in ("file", "sha256", "config_hash"))
    return texts and entry["file"] in (f"{name}.npz", f"{name}~.npz")


def _entry(folder: Path | str, name: str, store: str) -> dict[str, Any]:
    entry = _read_index(folder, store).get(_checked_name(name))
    if entry is None:
        file = _slots(folder, name, store)[0]
        why = "the folder does not exist" if not Path(folder).is_dir() else "the index lists no such artifact"
        raise ConfigError([f"{_called(folder, name, store)} does not exist ({str(file)!r}): {why}"])
    return entry


def _sha256(file: Path) -> str:
    with open(_regular(file), "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _regular(file: Path) -> Path:
    # A pipe in a file's place would block whoever opens it.
    if file.exists() and not file.is_file():
        raise OSError(f"{str(file)!r} is no regular file")
    return file


def _load_entry(
    folder: Path | str, name: str, entry: dict[str, Any], config_hash: str | None, store: str
) -> Artifact:
    file = Path(folder) / store / entry["file"]
    where = _called(folder, name, store)
    if config_hash is not None and entry["config_hash"] != config_hash:
        raise ConfigError(
            [
                f"{where} ({str(file)!r}) was made with another configuration: "
                f"its hash is {entry['config_hash']}, this one's is {config_hash}"
            ]
        )
    try:
        with open(_regular(file), "rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            if digest != entry["sha256"]:
                says = f"sha256 is {digest}, the index says {entry['sha256']}"
                raise ConfigError([f"{where} was changed: {says} ({str(file)!r})"])
            # From the stream that was hashed, so that no other file can slip in between.
            return npz.read(stream, file.stat().st_size)
    except FileNotFoundError:
        raise ConfigError([f"{where} is gone: the index lists {str(file)!r}, which does not exist"]) from None
    except ConfigError:
        raise
    except Exception as error:
        # The parsers of zip and npy raise anything at all for content that is neither.
        why = f"{type(error).__name__}: {error}"
        raise ConfigError([f"{where} cannot be read: {str(file)!r} is no artifact: {why}"]) from error
