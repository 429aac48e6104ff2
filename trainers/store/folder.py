"""A run's folder: what was run, whether it is finished, and that no two processes write there at once."""

import contextlib
import datetime
import fcntl
import json
import os
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from fastcollect.support.errors import ConfigError
from fastcollect.support.files import write_file
from fastcollect.support.machine import commit, machine
from fastcollect.support.plain import plain
from trainers.config import yaml_file
from trainers.store import index
from trainers.store.checkpoints import FOLDER as CHECKPOINTS
from trainers.store.identity import Identity, as_json
from trainers.store.manifest import MANIFEST, RESERVED, SUMMARY, differences, read_identity, read_summary

README = "README.md"
_LOCK = ".lock"

_EXPLANATION = """# {name}

    {command}

| file | what it holds |
|---|---|
| `manifest.yaml` | the configuration, ready for `--config`; under `manifest:` what, where, when, how |
| `index.jsonl` | every run in here, a JSON object a line; a later line of a path replaces an earlier one |
| `summary.json` | the results; it appears when the run is finished |
| `metrics.jsonl` | what training measured: one JSON object a line, by `env_steps` |
| `evaluations.jsonl` | what evaluations measured, in the same form |
| `topology.jsonl` | how masks changed, in the same form; of a run whose topology evolves |
| `tensorboard/` | the scalars of these, for `tensorboard --logdir` |
| `artifacts/NAME.npz` | arrays, for `numpy.load`; `NAME~.npz` after every other save of that name |
| `artifacts/index.json` | which of the two counts, its sha256, and the hash of the run |
| `checkpoints/` | what an unfinished run goes on from; removed once it is finished |
| `.lock` | held by the process that writes here; it may stay when that one is gone |

A file `.NAME.tmp` is what a killed process had not finished writing; it means nothing.
"""


class RunFolder(contextlib.ExitStack):
    """A run folder that this process alone may write to, until it is closed or the process ends.

    It comes from ``create``. path: the folder. identity: what the run is.
    """

    def __init__(self, path: Path, identity: Identity, manifest: dict[str, Any]) -> None:
        super().__init__()
        self.path, self.identity, self._manifest = path, identity, manifest

    @classmethod
    def create(
        cls,
        path: Path | str,
        identity: Identity,
        command: Sequence[str],
        *,
        parent: "RunFolder | None" = None,
        resume: bool = False,
    ) -> "RunFolder":
        """A new run folder, or with ``resume`` one of the same identity if it is there.

        parent: the run that it is a part of. A finished one is returned with or without ``resume``: ask
        ``finished``. Raises ConfigError, and leaves nothing new behind, if it is another run's, in use,
        unfinished, or cannot be written.
        """
        path = Path(path)
        identity.hash()  # which refuses what is not plain data before anything is made
        if RESERVED in identity.config:
            raise ConfigError([f"a configuration has no key {RESERVED!r}: a run folder's manifest needs it"])
        with _made(path), _locked(path) as lock:
            if (path / MANIFEST).exists():
                run = cls._again(path, identity, command, resume)
            else:
                run = cls._new(path, identity, command, parent)
            run.callback(os.close, lock)
            return run

    @classmethod
    def _new(
        cls, path: Path, identity: Identity, command: Sequence[str], parent: "RunFolder | None"
    ) -> "RunFolder":
        # A creation that was killed leaves at most these.
        if set(os.listdir(path)) - {_LOCK, f".{MANIFEST}.tmp"}:
            raise ConfigError([f"{str(path)!r} is no run folder: it has no {MANIFEST}, but other files"])
        manifest = {
            "config_hash": identity.hash(),
            **identity.facts(),
            "parent": None if parent is None else index.relative(parent.path, path),
            "command": shlex.join(command),
            "started": _now(),
            "machine": machine(),
            "resumed": [],
            "facts": {},
        }
        run = cls(path, identity, manifest)
        try:
            run._write(manifest)
            run._add_to_index()
        except BaseException:
            for name in (MANIFEST, README, index.INDEX):
                with contextlib.suppress(OSError):
                    (path / name).unlink()
            raise
        return run

    @classmethod
    def _again(cls, path: Path, identity: Identity, command: Sequence[str], resume: bool) -> "RunFolder":
        there, manifest = read_identity(path)
        # By the defaults of its time, as what counts is that all values are the same.
        identity = replace(identity, defaults=there.defaults)
        if identity.hash() != there.hash():
            raise ConfigError(differences(path, there, identity))
        run = cls(path, there, manifest)
        if run.finished():
            run._remove_checkpoints()  # where the process ended between the summary and their removal
        elif not resume:
            says = f"run folder {str(path)!r} holds an unfinished run; go on with it by --resume"
            raise ConfigError([says])
        else:
            # What it begins from may lie elsewhere now.
            run.identity, manifest["sources"] = identity, identity.facts()["sources"]
            manifest["resumed"].append({"time": _now(), "command": shlex.join(command), "commit": commit()})
            run._write(manifest)
        run._mend_index()
        return run

    @cached_property
    def root(self) -> Path:
        """The folder of the study that this run is in, or the run's own."""
        return index.root_of(self.path)

    @property
    def config_hash(self) -> str:
        """The hash that the run's artifacts carry."""
        return self._manifest["config_hash"]

    def annotate(self, **facts: Any) -> None:
        """Add facts to the manifest, such as a rewind matrix; one of the same name is replaced."""
        facts = plain(facts)
        as_json(facts, "a fact")
        self._write({**self._manifest, "facts": {**self._manifest["facts"], **facts}})

    def finished(self) -> bool:
        """Whether the run has its summary. Raises ConfigError if that cannot be read."""
        return (self.path / SUMMARY).exists() and read_summary(self.path) is not None

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Save the results, which makes the run a finished one, without its checkpoints."""
        write_file(self.path / SUMMARY, json.dumps(plain(summary), indent=2, allow_nan=False) + "\n")
        self._remove_checkpoints()
        self._add_to_index()

    def _remove_checkpoints(self) -> None:
        # Only ever after the summary is on the disk: from then on nothing reads them, and they are large.
        shutil.rmtree(self.path / CHECKPOINTS, ignore_errors=True)

    def _add_to_index(self) -> None:
        index.add(self.root, index.entry(self.root, self.path, self.identity, self.config_hash))

    def _mend_index(self) -> None:
        """Have the index say what is so, whenever its last writer ended."""
        root = self.root
        if root == self.path:
            try:
                complete = (root / index.INDEX).exists() and index.entries(root)
            except ConfigError:
                complete = []
            if not complete:
                index.rebuild(root)
        if index.entry(root, self.path, self.identity, self.config_hash) not in index.entries(root):
            self._add_to_index()

    def _write(self, manifest: dict[str, Any]) -> None:
        """The manifest, and the text that explains the folder."""
        write_file(self.path / MANIFEST, yaml_file.dump({**self.identity.config, RESERVED: manifest}))
        self._manifest = manifest
        text = _EXPLANATION.format(name=self.path.resolve().name, command=manifest["command"])
        write_file(self.path / README, text)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make a folder and its parents; if the rest fails, those that were not there go again."""
    missing = [parent for parent in (folder, *folder.parents) if not os.path.exists(parent)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException as error:
        for parent in missing:
            with contextlib.suppress(OSError):
                parent.rmdir()
        if not isinstance(error, OSError):
            raise
        says = f"run folder {str(folder)!r} cannot be written: {error.strerror or error}"
        raise ConfigError([says]) from error


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[int]:
    """Lock the folder for this process: for good, or until the rest fails."""
    file = folder / _LOCK
    with contextlib.ExitStack() as undo:
        lock = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        undo.callback(os.close, lock)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever fails to create a folder takes the lock file away, perhaps after it was opened here.
            taken = file.exists() and os.path.samestat(os.fstat(lock), file.stat())
        except BlockingIOError:
            taken = False
        if not taken:
            holder = os.read(lock, 20).decode(errors="replace").strip() or "unknown"
            raise ConfigError([f"run folder {str(folder)!r} is in use by process {holder}"])
        if not (folder / MANIFEST).exists():
            # While it is held, as nobody else can be creating a run here.
            undo.callback(file.unlink, missing_ok=True)
        os.truncate(lock, 0)
        os.write(lock, f"{os.getpid()}\n".encode())
        yield lock
        undo.pop_all()
