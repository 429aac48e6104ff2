"""Named arrays of a run folder: ``artifacts/NAME.npz``, vouched for by ``artifacts/index.json``.

The index is the commit point. It names the file of each artifact and that file's sha256, and is replaced
only after the file lies complete on disk. An artifact that is saved again goes into its other slot
(``NAME.npz`` and ``NAME~.npz`` take turns), so a save that ends early, by a full disk or a kill at any
moment, leaves what the index names untouched: one reads either the earlier artifact or the new one, each
with its own metadata. What an interrupted save left behind is no artifact, and the next save of that name
overwrites it.

At most one process may write: the one that holds the run folder's lock. Any number may read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from fastcollect.support.errors import ConfigError
from fastcollect.support.files import write_file

FOLDER = "artifacts"
INDEX = "index.json"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_META = "meta.json"
_KINDS = "biufc"
_ALLOWED = "booleans, integers, floats and complex numbers"
_FIELDS = frozenset({"file", "sha256", "bytes", "config_hash"})


class Artifact(NamedTuple):
    """arrays: by name, as they were saved. meta: the JSON object saved with them."""

    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]


def save(
    folder: Path | str,
    name: str,
    arrays: Mapping[str, Any],
    meta: Mapping[str, Any] | None = None,
    *,
    config_hash: str,
) -> Path:
    """Save arrays and metadata as an artifact of this run folder, in place of an earlier one of that name.

    Raises ConfigError, with the earlier artifact intact, for what cannot be saved and for a full disk.
    """
    plain, text = _checked(folder, name, arrays, meta)
    index = _read_index(folder)
    earlier = index.get(name, {}).get("file")
    first, second = _slots(folder, name)
    file = second if earlier == first.name else first
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_file(file, lambda stream: _write_npz(stream, plain, text))
        digest, size = _sha256(file), file.stat().st_size
    except OSError as error:
        raise ConfigError([f"{str(file)!r} cannot be written: {error.strerror or error}"]) from error
    index[name] = {"file": file.name, "sha256": digest, "bytes": size, "config_hash": config_hash}
    try:
        write_file(file.parent / INDEX, json.dumps(index, indent=2, sort_keys=True) + "\n")
    except ConfigError:
        # Not for any other exception: after an interrupt the index may already name this file.
        with contextlib.suppress(OSError):
            file.unlink()
        raise
    if earlier is not None:
        with contextlib.suppress(OSError):
            (file.parent / earlier).unlink()
    return file


def load(folder: Path | str, name: str, config_hash: str | None = None) -> Artifact:
    """The artifact of that name, after its sha256 and, if one is given, its configuration's hash agreed.

    Raises ConfigError naming the file, whatever is in it; nothing in it is ever executed.
    """
    entry = _entry(folder, name)
    while True:
        try:
            return _load_entry(folder, name, entry, config_hash)
        except ConfigError:
            # The run that owns the folder may have saved it again while it was being read.
            now = _entry(folder, name)
            if now == entry:
                raise
            entry = now


def exists(folder: Path | str, name: str, config_hash: str) -> bool:
    """Whether a stage with this configuration is done: its artifact is there, is its own, and is unchanged.

    Raises ConfigError if the index itself cannot be read.
    """
    entry = _read_index(folder).get(_checked_name(name))
    if entry is None or entry["config_hash"] != config_hash:
        return False
    try:
        return _sha256(Path(folder) / FOLDER / entry["file"]) == entry["sha256"]
    except OSError:
        return False


def _slots(folder: Path | str, name: str) -> tuple[Path, Path]:
    # No name may hold a tilde, so no artifact's slot is another artifact's file.
    return Path(folder) / FOLDER / f"{name}.npz", Path(folder) / FOLDER / f"{name}~.npz"


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ConfigError([f"artifact {name!r}: a name is letters, digits and ._-, beginning with no sign"])
    return name


def _checked(
    folder: Path | str, name: str, arrays: Mapping[str, Any], meta: Mapping[str, Any] | None
) -> tuple[dict[str, np.ndarray], bytes]:
    where = f"artifact {_checked_name(name)!r} of {str(folder)!r}"
    out, problems = {}, []
    for key, value in arrays.items():
        array = np.asarray(value)
        if not (isinstance(key, str) and 0 < len(key) <= 255 and key.isprintable()):
            problems.append(f"{where}: an array is named {key!r}; allowed: up to 255 printable characters")
        elif array.dtype.kind not in _KINDS:
            problems.append(f"{where}: {key!r} holds {array.dtype}; allowed: {_ALLOWED}")
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


def _write_npz(stream: BinaryIO, arrays: Mapping[str, np.ndarray], meta: bytes) -> None:
    # By hand, as numpy.savez takes arrays as keyword arguments and cannot save one called "file".
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        with archive.open(_META, "w") as member:
            member.write(meta)
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, version=(1, 0), allow_pickle=False)


def _read_index(folder: Path | str) -> dict[str, dict[str, Any]]:
    file = Path(folder) / FOLDER / INDEX
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
        if not _is_entry(folder, name, entry)
    ]
    if problems:
        raise ConfigError(problems)
    return index


def _is_entry(folder: Path | str, name: str, entry: Any) -> bool:
    if not (_NAME.fullmatch(name) and isinstance(entry, dict) and entry.keys() == _FIELDS):
        return False
    texts = all(isinstance(entry[field], str) for field in ("file", "sha256", "config_hash"))
    return texts and entry["file"] in {slot.name for slot in _slots(folder, name)}


def _entry(folder: Path | str, name: str) -> dict[str, Any]:
    entry = _read_index(folder).get(_checked_name(name))
    if entry is None:
        file = _slots(folder, name)[0]
        why = "the folder does not exist" if not Path(folder).is_dir() else "the index lists no such artifact"
        raise ConfigError([f"artifact {name!r} of {str(folder)!r} does not exist ({str(file)!r}): {why}"])
    return entry


def _sha256(file: Path) -> str:
    with open(_regular(file), "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _regular(file: Path) -> Path:
    # A pipe in a file's place would block whoever opens it.
    if file.exists() and not file.is_file():
        raise OSError(f"{str(file)!r} is no regular file")
    return file


def _load_entry(folder: Path | str, name: str, entry: dict[str, Any], config_hash: str | None) -> Artifact:
    file = Path(folder) / FOLDER / entry["file"]
    where = f"artifact {name!r} of {str(folder)!r}"
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
            return _read_npz(stream, file.stat().st_size)
    except FileNotFoundError:
        raise ConfigError([f"{where} is gone: the index lists {str(file)!r}, which does not exist"]) from None
    except ConfigError:
        raise
    except Exception as error:
        # The parsers of zip and npy raise anything at all for content that is neither.
        why = f"{type(error).__name__}: {error}"
        raise ConfigError([f"{where} cannot be read: {str(file)!r} is no artifact: {why}"]) from error


def _read_npz(stream: BinaryIO, size: int) -> Artifact:
    with zipfile.ZipFile(stream) as archive:
        members = archive.infolist()
        if any(m.compress_type != zipfile.ZIP_STORED or m.compress_size != m.file_size for m in members):
            raise ValueError("it is compressed")
        if sum(m.file_size for m in members) > size:
            raise ValueError("its members are larger than the file")
        if len({m.filename for m in members}) != len(members):
            raise ValueError("it holds two members of one name")
        meta = json.loads(archive.read(_META))
        if not isinstance(meta, dict):
            raise ValueError("its metadata is no JSON object")
        arrays = {}
        for member in members:
            if member.filename == _META:
                continue
            if not member.filename.endswith(".npy"):
                raise ValueError(f"{member.filename!r} is no array")
            arrays[member.filename.removesuffix(".npy")] = _read_array(archive, member)
    return Artifact(arrays, meta)


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    # The header is judged before memory is set aside for what it promises.
    with archive.open(member) as stream:
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError(f"{member.filename!r} is of another version of the format")
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
        if dtype.kind not in _KINDS:
            raise ValueError(f"{member.filename!r} holds {dtype}; allowed: {_ALLOWED}")
        if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != member.file_size - stream.tell():
            raise ValueError(f"{member.filename!r} is of shape {shape}, and its size is not that of {dtype}")
    with archive.open(member) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)
