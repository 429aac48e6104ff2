"""The index of a study: ``index.jsonl`` in its root folder, a line for each run when it begins and ends.

The manifests are the truth, and the index says where they are: the last line of a path counts, a line that
was cut off does not, and where there is no index the manifests are searched for.
"""

import fcntl
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from fastcollect.support.errors import ConfigError
from fastcollect.support.files import write_file
from trainers.config.build import Merged, build
from trainers.store.identity import KINDS, Identity, SourceRef
from trainers.store.manifest import MANIFEST, SUMMARY, read_identity, read_manifest
from trainers.store.rows import read_lines

INDEX = "index.jsonl"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One run. path: that of its folder, relative to the root, which itself is "."."""

    path: str
    config_hash: str
    kind: str
    name: str
    round: int
    env: str
    seed: int
    finished: bool


def entry(root: Path, folder: Path, identity: Identity, config_hash: str) -> Entry:
    """What the index of this root says of a run folder."""
    where, finished = relative(folder, root), (folder / SUMMARY).exists()
    return Entry(path=where, config_hash=config_hash, finished=finished, **identity.facts()["run"])


def add(root: Path, new: Entry) -> None:
    """Append an entry, whoever else does.

    Raises ConfigError, with the index as it was, for a full disk and for an index that cannot be read.
    """
    file, lock = root / INDEX, os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            content = file.read_bytes() if file.exists() else b""
        except OSError as error:
            raise ConfigError([f"{str(file)!r} cannot be read: {error.strerror or error}"]) from error
        # Without a line that was cut off.
        write_file(file, content[: content.rfind(b"\n") + 1] + _line(new))
    finally:
        os.close(lock)


def entries(root: Path) -> list[Entry]:
    """Every run of a study, in the order of their beginnings; found by their manifests if there is no index.

    Raises ConfigError naming the file and the line of what is no entry.
    """
    if not (root / INDEX).exists():
        return scan(root)
    advice = "; remove the file, and the manifests are searched instead"
    return list({one.path: one for one in read_lines(root / INDEX, _parsed, "entry", advice)}.values())


def scan(root: Path) -> list[Entry]:
    """The entries that the manifests below a folder give. Raises ConfigError naming what was changed."""
    found: list[tuple[str, str, Entry]] = []
    problems: list[str] = []
    for file in sorted(root.rglob(MANIFEST)):
        try:
            identity, manifest = read_identity(file.parent)
        except ConfigError as error:
            problems += error.problems
        else:
            one = entry(root, file.parent, identity, manifest["config_hash"])
            found.append((manifest["started"], one.path, one))
    if problems:
        raise ConfigError(problems)
    return [one for *_, one in sorted(found)]


def rebuild(root: Path) -> None:
    """Write the index anew from the manifests; for the process that holds the root. Raises ConfigError."""
    write_file(root / INDEX, b"".join(map(_line, scan(root))))


def _line(one: Entry) -> bytes:
    return json.dumps(asdict(one)).encode() + b"\n"


def _parsed(line: bytes) -> Entry:
    one = build(Entry, Merged(dict(json.loads(line)), {}))
    parts = PurePosixPath(one.path).parts
    if one.kind not in KINDS or {"..", "/"} & {*parts} or "\0" in one.path:
        raise ValueError(f"kind is {one.kind!r} and path {one.path!r}")
    return one


def root_of(folder: Path) -> Path:
    """The folder of the study that a run folder was made in; its own if that is not around it any more."""
    while (parent := read_manifest(folder).get("parent")) is not None:
        # Only ever upwards, whatever is written there.
        if set(Path(str(parent)).parts) != {".."} or not (folder / parent / MANIFEST).is_file():
            break
        folder = Path(os.path.normpath(folder.absolute() / parent))
    return folder


def reference(role: str, folder: Path | str, root: Path) -> SourceRef:
    """A run as another one in the study at ``root`` refers to it. Raises ConfigError if it is none."""
    identity, _ = read_identity(folder)
    return SourceRef(
        role=role,
        path=relative(Path(folder), root),
        config_hash=identity.hash(),
        settings=identity.settings(),
        env=identity.env,
    )


def relative(folder: Path, root: Path) -> str:
    """The path of a folder from a root, both resolved."""
    return os.path.relpath(folder.resolve(), root.resolve())
