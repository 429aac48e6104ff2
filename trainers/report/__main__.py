"""One page about any number of runs: curves, sparsity, masks, inputs, costs, transfers, manifests.

python -m trainers.report RUN... [--out DIR]

RUN is a dense run, a ticket, a transfer, a run inside one of them, or a whole study of --stage all. DIR gets
report.html, which needs no other file, and its pictures.
"""

from __future__ import annotations

import fastcollect.support.project_environment  # noqa: F401  (first: it may change the interpreter)

# isort: split
import contextlib
import datetime
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from fastcollect.support.command import check_folder, run
from fastcollect.support.errors import ConfigError
from fastcollect.support.machine import commit
from trainers.export import folded_actor
from trainers.report import numbers, page, sections, tables
from trainers.report.repetitions import repetitions
from trainers.store.reader import Container, SavedRun, load

PAGE = "report.html"
_PICTURES = "figure-*"


@dataclass(frozen=True, kw_only=True)
class ReportArguments:
    """What ``python -m trainers.report`` takes."""

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN")]
    """SavedRun folders of any stage; those inside them are found."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder of the report; default: report/ in the first RUN."""


def report(arguments: ReportArguments) -> Path:
    """Write the report; returns its page's file. Raises ConfigError, with nothing written."""
    if not arguments.runs:
        raise ConfigError(["no run folder is named; at least one is needed"])
    runs, folders = load(arguments.runs)
    if not runs:
        raise ConfigError([f"{str(path)!r} holds no run that has begun" for path in arguments.runs])
    out = arguments.out or arguments.runs[0] / "report"
    check_out(out)
    text, pictures = build(runs, folders)
    publish(out, {**pictures, PAGE: text.encode()})
    print(f"report: {out / PAGE}")
    return out / PAGE


def build(runs: Sequence[SavedRun], folders: Sequence[Container]) -> tuple[str, dict[str, bytes]]:
    """The page, and the pictures in it by the names of their files."""
    groups = repetitions(runs)
    families = numbers.families(groups)
    pictures: sections.Pictures = {}
    parts = {
        "results": ("Results", sections.results(groups)),
        "curves": ("Learning curves", sections.curves(groups, pictures)),
        "sparsity": ("Success against sparsity", sections.sparsity(families, pictures)),
        "transfer": ("Transfer", sections.transfer(groups)),
        "masks": ("Masks", sections.masks(families, pictures)),
        "inputs": ("Inputs", sections.inputs(families, pictures)),
        "costs": ("Costs", tables.costs(groups, families, runs)),
        "episode": ("An episode", sections.episode(runs, pictures, folded_actor)),
        "runs": ("Every run", tables.every_run(runs)),
        "manifests": ("Manifests", tables.manifests(runs, folders)),
        "limits": ("What this does not show", tables.limits(groups, families)),
    }
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    seeds = len({each.seed for each in runs})
    lead = [
        page.paragraph(
            f"{len(runs)} runs, {seeds} seed{'s' * (seeds != 1)}, {len({each.env for each in runs})} "
            f"environments. Written {now} at {commit()}."
        ),
        *(page.paragraph(text) for text in tables.provenance(runs)),
        tables.unfinished(runs, folders),
        tables.repeated(groups),
    ]
    whole = [(key, title, page.section(key, title, content)) for key, (title, content) in parts.items()]
    title = "Runs on " + ", ".join(dict.fromkeys(each.env for each in runs))
    return page.document(title, "".join(lead), whole), pictures


def check_out(out: Path) -> None:
    """Raises ConfigError unless the folder is new, empty, or holds an earlier report."""
    check_folder(out)
    if not out.exists() or not os.listdir(out):
        return
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if page.GENERATOR in (out / PAGE).read_text():
            return
    raise ConfigError([f"{str(out)!r} holds other files and no {PAGE} of ours"])


def publish(out: Path, files: Mapping[str, bytes]) -> None:
    """Put the files into the folder, in place of an earlier report's; they are all written before one is.

    Raises ConfigError if that fails.
    """
    with _os_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
        try:
            for name, content in files.items():
                (made / name).write_bytes(content)
            made.chmod(0o755)
            if not out.exists():
                made.rename(out)
                return
            for old in out.glob(_PICTURES):
                if old.name not in files:
                    old.unlink()
            for name in files:  # the page comes last
                os.replace(made / name, out / name)
        finally:
            shutil.rmtree(made, ignore_errors=True)


@contextlib.contextmanager
def _os_errors(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError([f"{str(out)!r} cannot be written: {error.strerror or error}"]) from error


if __name__ == "__main__":
    given = tyro.cli(ReportArguments, description=__doc__, prog="python -m trainers.report")
    run(lambda: report(given) and None)
