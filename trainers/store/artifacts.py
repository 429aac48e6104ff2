"""The array store: ``artifacts/NAME.npz`` of a run folder, vouched for by ``artifacts/index.json``.

The index is the commit point. It names the file of each artifact and that file's sha256, and is replaced
only after the file lies complete on disk. An artifact that is saved again goes into its other slot
(``NAME.npz`` and ``NAME~.npz`` take turns), so a save that ends early, by a full disk or a kill at any
moment, leaves what the index names untouched. What it left behind is no artifact, and the next save of that
name overwrites it. ``checkpoints`` keeps the same store in a folder of its own.

At most one process may write: the one that holds the run folder's lock. Any number may read.
"""

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
    at = Path(folder) / store
    plain, text = _checked(_called(at, name), arrays, meta)
    index = _read_index(at)
    # No name may hold a tilde, so no artifact's slot is another artifact's file.
    first = f"{name}.npz"
    file = at / (f"{name}~.npz" if name in index and index[name]["file"] == first else first)
    _check_space(file, sum(array.nbytes for array in plain.values()))
    sha256 = hashlib.sha256()
    write_file(file, lambda stream: npz.write(stream, plain, text, sha256))
    gone = [index.pop(each)["file"] for each in (*drop, name) if each in index]
    index[name] = {
        "file": file.name,
        "sha256": sha256.hexdigest(),
        "bytes": file.stat().st_size,
        "config_hash": config_hash,
    }
    try:
        write_file(at / INDEX, json.dumps(index, indent=2, sort_keys=True) + "\n")
    except ConfigError:
        # Not for any other exception: after an interrupt the index may already name this file.
        with contextlib.suppress(OSError):
            file.unlink()
        raise
    for each in gone:
        with contextlib.suppress(OSError):
            (at / each).unlink()
    return file


def files(folder: Path | str, store: str = FOLDER) -> dict[str, Path]:
    """Name -> file of what the index lists, there or not. Raises ConfigError if the index is damaged."""
    at = Path(folder) / store
    return {name: at / entry["file"] for name, entry in _read_index(at).items()}


def load(folder: Path | str, name: str, config_hash: str | None = None, *, store: str = FOLDER) -> Artifact:
    """The artifact of that name, after its sha256 and, if one is given, its configuration's hash agreed.

    Raises ConfigError naming the file, whatever is in it; nothing in it is ever executed.
    """
    at, entry = Path(folder) / store, None
    called = _called(at, name)
    while True:
        earlier, entry = entry, _read_index(at).get(name)
        if entry is None:
            why = "the index lists no such artifact" if at.parent.is_dir() else "the folder does not exist"
            raise ConfigError([f"{called} does not exist ({str(at / f'{name}.npz')!r}): {why}"])
        try:
            return _load_entry(called, at / entry["file"], entry, config_hash)
        except ConfigError:
            # The run that owns the folder may have saved it again while it was being read.
            if entry == earlier:
                raise


def _called(at: Path, name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ConfigError([f"artifact {name!r}: a name is letters, digits and ._-, beginning with no sign"])
    return f"{at.name.removesuffix('s')} {name!r} of {str(at.parent)!r}"


def _check_space(file: Path, need: int) -> None:
    existing = next(parent for parent in file.absolute().parents if parent.exists())
    if (free := shutil.disk_usage(existing).free) < need:
        says = f"it takes {need / 2**20:.0f} MiB, {free / 2**20:.0f} are free"
        raise ConfigError([f"{str(file)!r} cannot be written: {says}"])


def _checked(
    where: str, arrays: Mapping[str, Any], meta: Mapping[str, Any] | None
) -> tuple[dict[str, np.ndarray], bytes]:
    plain = {key: np.asarray(value) for key, value in arrays.items()}
    problems = []
    for key, array in plain.items():
        if not (0 < len(key) <= 255 and key.isprintable()):
            problems.append(f"{where}: an array is named {key!r}; allowed: up to 255 printable characters")
        if array.dtype.kind not in npz.KINDS:
            problems.append(f"{where}: {key!r} holds {array.dtype}; allowed: {npz.ALLOWED}")
    text = ""
    try:
        text = json.dumps(dict(meta or {}), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        problems.append(f"{where}: its metadata is no JSON: {error}")
    if problems:
        raise ConfigError(problems)
    return plain, text.encode()


def _read_index(at: Path) -> dict[str, dict[str, Any]]:
    file = at / INDEX
    try:
        index = json.loads(_regular(file).read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError([f"{str(file)!r} cannot be read: {error}"]) from None
    if not isinstance(index, dict):
        raise ConfigError([f"{str(file)!r} is no index of artifacts"])
    for name, entry in index.items():
        whole = isinstance(entry, dict) and entry.keys() == _FIELDS
        if not (whole and _NAME.fullmatch(name) and entry["file"] in (f"{name}.npz", f"{name}~.npz")):
            raise ConfigError([f"{str(file)!r} is no index of artifacts: its entry {name!r} is {entry!r}"])
    return index


def _regular(file: Path) -> Path:
    # A pipe in a file's place would block whoever opens it.
    if file.exists() and not file.is_file():
        raise OSError(f"{str(file)!r} is no regular file")
    return file


def _load_entry(called: str, file: Path, entry: Mapping[str, Any], config_hash: str | None) -> Artifact:
    if config_hash not in (None, entry["config_hash"]):
        its = f"its hash is {entry['config_hash']}, this one's is {config_hash}"
        raise ConfigError([f"{called} ({str(file)!r}) was made with another configuration: {its}"])
    try:
        with open(_regular(file), "rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            if digest == entry["sha256"]:
                # From the stream that was hashed, so that no other file can slip in between.
                return npz.read(stream, file.stat().st_size)
    except FileNotFoundError:
        raise ConfigError(
            [f"{called} is gone: the index lists {str(file)!r}, which does not exist"]
        ) from None
    except Exception as error:
        # The parsers of zip and npy raise anything at all for content that is neither.
        why = f"{type(error).__name__}: {error}"
        raise ConfigError([f"{called} cannot be read: {str(file)!r} is no artifact: {why}"]) from error
    says = f"sha256 is {digest}, the index says {entry['sha256']}"
    raise ConfigError([f"{called} was changed: {says} ({str(file)!r})"])
