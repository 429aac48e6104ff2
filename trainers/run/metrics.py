"""What a run measures: rows of ``metrics.jsonl`` and its like, and the same in ``tensorboard/``.

The JSON lines are the record. The event file of TensorBoard is drawn from them: a resumed run writes it anew
from the rows that it keeps.
"""

import contextlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import Any, Self

from fastcollect import ConfigError
from fastcollect.support.files import write_file
from fastcollect.support.plain import plain
from trainers.store.rows import EVALUATIONS, METRICS, TOPOLOGY, read_lines, read_row

TENSORBOARD = "tensorboard"
_REQUIRED = ("env_steps", "updates", "wall_seconds")

_LARGEST = 3.4e38  # of what an event file can hold
_TAGS = {METRICS: "training", EVALUATIONS: "evaluation", TOPOLOGY: "topology"}


class MetricsWriter:
    """Appends rows to the files of one run.

    Each row is in its file when the call returns. A row holds at least env_steps, updates and wall_seconds.
    Texts, lists and what is null stay out of TensorBoard, whose one event file is written without a thread:
    the library's own SummaryWriter has one, and waits forever once that died of a full disk.

    resume_at: the env_steps of the checkpoint that the run goes on from. Rows beyond it, which a killed run
    may have written, are dropped; those of that very step are kept, so write them before the checkpoint.
    None: the run starts at its beginning, and no earlier row is kept.
    evolving: whether its topology changes, which has a file of its own.
    """

    def __init__(self, folder: Path | str, resume_at: int | None = None, *, evolving: bool = False) -> None:
        # Loading it takes longer than everything else here; commands that only read have no use for it.
        from tensorboardX.event_file_writer import EventsWriter

        folder = Path(folder)
        names = [name for name in _TAGS if evolving or name != TOPOLOGY]
        kept = {name: _keep(folder / name, resume_at) for name in names}
        self._board = folder / TENSORBOARD
        with _writing(self._board):
            self._board.mkdir(parents=True, exist_ok=True)
            for old in self._board.glob("*.tfevents.*"):
                old.unlink()
            self._events = EventsWriter(str(self._board / "events"))
        flat = sorted(((n, r) for n in kept for r in kept[n]), key=lambda pair: pair[1]["env_steps"])
        # The wall clock of rows from before is not recorded; that they lie back to back suits every plot.
        origin = time.time() - max((row["wall_seconds"] for _, row in flat), default=0.0)
        self._draw((origin + row["wall_seconds"], name, row) for name, row in flat)
        with _writing(folder):
            # Unbuffered: a row that did not fit on the disk must not be tried again when the file is closed.
            self._streams = {name: FileIO(folder / name, "a") for name in names}

    def write_metrics(self, row: Mapping[str, Any]) -> None:
        """Append what training measured. Raises ConfigError, with the file as it was, if the disk is full."""
        self._write(METRICS, row)

    def write_evaluation(self, row: Mapping[str, Any]) -> None:
        """Append what an evaluation measured. Raises as ``write_metrics``."""
        self._write(EVALUATIONS, row)

    def write_topology(self, row: Mapping[str, Any]) -> None:
        """Append how masks changed. Raises as ``write_metrics``."""
        self._write(TOPOLOGY, row)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for stream in self._streams.values():
            stream.close()
        with _writing(self._board):
            self._events.close()

    def _write(self, name: str, row: Mapping[str, Any]) -> None:
        if missing := [key for key in _REQUIRED if key not in row]:
            raise ValueError(f"a row for {name} lacks {', '.join(missing)}")
        strict = plain(row)
        if not _is_step(strict["env_steps"]):
            raise ValueError(f"a row for {name} has env_steps {strict['env_steps']!r}; allowed: a count")
        line = json.dumps(strict, allow_nan=False).encode() + b"\n"
        stream = self._streams[name]
        end = stream.seek(0, 2)
        with _writing(str(stream.name)):
            try:
                while line:
                    line = line[stream.write(line) :]
            except OSError:
                stream.truncate(end)
                raise
        self._draw([(time.time(), name, strict)])

    def _draw(self, rows: Iterable[tuple[float, str, Mapping[str, Any]]]) -> None:
        """Append rows to the event file, each as (wall-clock time, name of its file, row)."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        for wall_time, name, row in rows:
            values = [
                Summary.Value(tag=f"{_TAGS[name]}/{key}", simple_value=value)
                for key, value in row.items()
                if _is_scalar(value) and key != "env_steps"
            ]
            summary = Summary(value=values)
            self._events.write_event(Event(wall_time=wall_time, step=row["env_steps"], summary=summary))
        with _writing(self._board):
            self._events.flush()


def _keep(file: Path, resume_at: int | None) -> list[dict[str, Any]]:
    """Rewrite the file without the rows beyond this step; returns the rows that stay."""
    there = resume_at is not None and file.exists()
    found = read_lines(file, lambda line: (line, read_row(line)), "row") if there else []
    problems = [
        f"{str(file)!r}, line {number}: env_steps is {row.get('env_steps')!r} and wall_seconds "
        f"{row.get('wall_seconds')!r}; allowed: a count and a number"
        for number, (_, row) in enumerate(found, 1)
        if not (_is_step(row.get("env_steps")) and _is_scalar(row.get("wall_seconds")))
    ]
    if problems:
        raise ConfigError(problems)
    kept = [(line, row) for line, row in found if resume_at is not None and row["env_steps"] <= resume_at]
    write_file(file, b"".join(line + b"\n" for line, _ in kept))
    return [row for _, row in kept]


def _is_step(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_scalar(value: Any) -> bool:
    return isinstance(value, (int, float)) and abs(value) < _LARGEST


@contextlib.contextmanager
def _writing(file: Path | str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError([f"{str(file)!r} cannot be written: {error.strerror or error}"]) from error
