"""A run's folder: what was run, whether it is finished, and that no two processes write there at once."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import hashlib
import json
import os
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastcollect.support.errors import ConfigError
from fastcollect.support.files import write_file
from fastcollect.support.machine import commit, machine
from trainers.run.metrics import plain
from trainers.store import yaml_file
from trainers.store.checkpoints import FOLDER as CHECKPOINTS

MANIFEST = "manifest.yaml"
SUMMARY = "summary.json"
README = "README.md"

_RESERVED = "manifest"
_LOCK = ".lock"
_ABSENT = object()

_EXPLANATION = """# {name}

    {command}

| file | what it holds |
|---|---|
| `manifest.yaml` | the configuration, ready for `--config`; under `manifest:` where, when, how it was run |
| `summary.json` | the results; it appears when the run is finished |
| `metrics.jsonl` | what training measured: one JSON object a line, by `env_steps` |
| `evaluations.jsonl` | what evaluations measured, in the same form |
| `tensorboard/` | the scalars of both, for `tensorboard --logdir` |
| `artifacts/NAME.npz` | arrays, for `numpy.load`; `NAME~.npz` after every other save of that name |
| `artifacts/index.json` | which of the two counts, its sha256, and the hash of the configuration |
| `checkpoints/` | what an unfinished run goes on from; removed once it is finished |
| `.lock` | held by the process that writes here; it may stay when that one is gone |

A file `.NAME.tmp` is what a killed process had not finished writing; it means nothing.
"""


def config_hash(config: Mapping[str, Any]) -> str:
    """16 digits that name a configuration, whatever the order of its keys.

    Raises ConfigError for what is not plain data.
    """
    return hashlib.sha256(_canonical(config).encode()).hexdigest()[:16]


def read_config(path: Path | str) -> dict[str, Any]:
    """The configuration in a YAML file or in a run folder, without what a manifest says beside it.

    Raises ConfigError naming the file and the line of what cannot be read.
    """
    path = Path(path)
    config = yaml_file.read(path / MANIFEST if path.is_dir() else path)
    config.pop(_RESERVED, None)
    return config


def read_manifest(folder: Path | str) -> dict[str, Any]:
    """What a run folder's manifest says beside the configuration. Raises ConfigError if it is none."""
    file = Path(folder) / MANIFEST
    return _checked(file, yaml_file.read(file).get(_RESERVED))


def _checked(file: Path, manifest: Any) -> dict[str, Any]:
    if not isinstance(manifest, dict) or not isinstance(manifest.get("facts"), dict):
        raise ConfigError([f"{str(file)!r} is not the manifest of a run"])
    return manifest


def read_identity(folder: Path | str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Configuration and manifest of a run folder.

    Raises ConfigError if it is none, or if the configuration has not the hash that the manifest says.
    """
    file = Path(folder) / MANIFEST
    if not file.is_file():
        raise ConfigError([f"{str(folder)!r} is no run folder: it has no {MANIFEST}"])
    config = yaml_file.read(file)
    manifest = _checked(file, config.pop(_RESERVED, None))
    if (actual := config_hash(config)) != manifest.get("config_hash"):
        says = f"the hash of its configuration is {actual}, it says {manifest.get('config_hash')}"
        raise ConfigError([f"{str(file)!r} was changed: {says}"])
    return config, manifest


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


class RunFolder:
    """A run folder that this process alone may write to, until it is closed or the process ends.

    Comes from ``create``. path: the folder. config: the configuration. config_hash: its hash.
    """

    def __init__(self, path: Path, config: dict[str, Any], manifest: dict[str, Any], lock: int) -> None:
        self.path, self.config, self._manifest, self._lock = path, config, manifest, lock

    @classmethod
    def create(
        cls,
        path: Path | str,
        config: Mapping[str, Any],
        command: Sequence[str],
        *,
        resume: bool = False,
    ) -> RunFolder:
        """A new run folder, or with ``resume`` one of the same configuration if it is there.

        A finished one is returned with or without ``resume``: ask ``finished``. Raises ConfigError, and
        leaves nothing new behind, if it is another run's, in use, unfinished, or cannot be written.
        """
        path, config = Path(path), _plain_config(config)
        with _os_errors(path), _new_folders(path), _locked(path) as lock:
            if (path / MANIFEST).exists():
                return cls._again(path, config, command, resume, lock)
            return cls._new(path, config, command, lock)

    @classmethod
    def _new(cls, path: Path, config: dict[str, Any], command: Sequence[str], lock: int) -> RunFolder:
        # A creation that was killed leaves at most these.
        if set(os.listdir(path)) - {_LOCK, f".{MANIFEST}.tmp"}:
            raise ConfigError([f"{str(path)!r} is no run folder: it has no {MANIFEST}, but other files"])
        manifest = {
            "config_hash": config_hash(config),
            "command": shlex.join(command),
            "started": _now(),
            "machine": machine(),
            "resumed": [],
            "facts": {},
        }
        run = cls(path, config, manifest, lock)
        try:
            run._write_manifest()
            run._explain()
        except BaseException:
            for name in (MANIFEST, README):
                with contextlib.suppress(OSError):
                    (path / name).unlink()
            raise
        return run

    @classmethod
    def _again(
        cls, path: Path, config: dict[str, Any], command: Sequence[str], resume: bool, lock: int
    ) -> RunFolder:
        there, manifest = read_identity(path)
        if not isinstance(manifest.get("resumed"), list):
            raise ConfigError([f"{str(path / MANIFEST)!r} was changed: it does not say when it was resumed"])
        if manifest["config_hash"] != config_hash(config):
            raise ConfigError(_differences(path, there, config))
        run = cls(path, there, manifest, lock)
        if run.finished():
            run._remove_checkpoints()  # where the process ended between the summary and their removal
            return run
        if not resume:
            raise ConfigError(
                [f"run folder {str(path)!r} holds an unfinished run; go on with it by --resume"]
            )
        manifest["resumed"].append({"time": _now(), "command": shlex.join(command), "commit": commit()})
        run._write_manifest()
        run._explain()
        return run

    @property
    def config_hash(self) -> str:
        """The hash that the run's artifacts carry."""
        return self._manifest["config_hash"]

    @property
    def facts(self) -> dict[str, Any]:
        """What was annotated so far."""
        return dict(self._manifest["facts"])

    def annotate(self, **facts: Any) -> None:
        """Add facts to the manifest, such as a rewind matrix; one of the same name is replaced."""
        manifest = {**self._manifest, "facts": {**self._manifest["facts"], **_plain(plain(facts), "a fact")}}
        self._write_manifest(manifest)
        self._manifest = manifest

    def finished(self) -> bool:
        """Whether the run has its summary. Raises ConfigError if that cannot be read."""
        return (self.path / SUMMARY).exists() and read_summary(self.path) is not None

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Save the results, which makes the run a finished one, without its checkpoints."""
        write_file(self.path / SUMMARY, json.dumps(plain(summary), indent=2, allow_nan=False) + "\n")
        self._remove_checkpoints()

    def _remove_checkpoints(self) -> None:
        # Only ever after the summary is on the disk: from then on nothing reads them, and they are large.
        shutil.rmtree(self.path / CHECKPOINTS, ignore_errors=True)

    def close(self) -> None:
        """Let another process write here."""
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = -1

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write_manifest(self, manifest: dict[str, Any] | None = None) -> None:
        content = {**self.config, _RESERVED: manifest or self._manifest}
        write_file(self.path / MANIFEST, yaml_file.dump(content))

    def _explain(self) -> None:
        text = _EXPLANATION.format(name=self.path.resolve().name, command=self._manifest["command"])
        write_file(self.path / README, text)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _canonical(value: Any) -> str:
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError([f"the configuration is not plain data: {error}"]) from None


def _plain(value: Mapping[str, Any], what: str) -> dict[str, Any]:
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError([f"{what} is not plain data: {error}"]) from None


def _plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    if _RESERVED in config:
        raise ConfigError([f"a configuration has no key {_RESERVED!r}: a run folder's manifest needs it"])
    return _plain(dict(config), "the configuration")


def _differences(folder: Path, there: Mapping, here: Mapping) -> list[str]:
    """One sentence for every value that differs, nested ones by their dotted name."""
    old, new = dict(_flat(there)), dict(_flat(here))
    pairs = [(key, old.get(key, _ABSENT), new.get(key, _ABSENT)) for key in {**old, **new}]
    return [
        f"run folder {str(folder)!r} holds a run of another configuration: "
        f"{key} is {_shown(before)} there and {_shown(after)} here"
        for key, before, after in pairs
        if _shown(before) != _shown(after)
    ] or [f"run folder {str(folder)!r} holds a run of another configuration"]


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and (value or not name):
        for key, item in value.items():
            yield from _flat(item, f"{name}.{key}" if name else key)
    else:
        yield name, value


def _shown(value: Any) -> str:
    return "absent" if value is _ABSENT else json.dumps(value, sort_keys=True)


@contextlib.contextmanager
def _os_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(
            [f"run folder {str(folder)!r} cannot be written: {error.strerror or error}"]
        ) from error


@contextlib.contextmanager
def _new_folders(folder: Path) -> Iterator[None]:
    """Make a folder and its parents; if the rest fails, those that were not there go again."""
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for parent in missing:
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[int]:
    """Lock the folder for this process: for good, or until the rest fails."""
    file = folder / _LOCK
    lock = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not _taken(lock, file):
            holder = os.read(lock, 20).decode(errors="replace").strip() or "unknown"
            raise ConfigError([f"run folder {str(folder)!r} is in use by process {holder}"])
        try:
            os.truncate(lock, 0)
            os.write(lock, f"{os.getpid()}\n".encode())
            yield lock
        except BaseException:
            # While it is held, as nobody else can be creating a run here.
            if not (folder / MANIFEST).exists():
                file.unlink(missing_ok=True)
            raise
    except BaseException:
        os.close(lock)
        raise


def _taken(lock: int, file: Path) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    # Whoever fails to create a folder takes the lock file away, perhaps after it was opened here.
    return file.exists() and os.path.samestat(os.fstat(lock), file.stat())
