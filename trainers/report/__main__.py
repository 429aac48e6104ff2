"""One page about any number of runs: curves, sparsity, masks, inputs, costs, transfers, manifests.

python -m trainers.report RUN... [--out DIR]

RUN is a dense or sparse run, a ticket, a transfer, a run inside one of them, or a whole study of --stage all.
DIR gets report.html, which needs no other file, and its pictures.
"""

import fastcollect.support.project_environment  # noqa: F401  (first: it may change the interpreter)

# isort: split
import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from fastcollect.support.command import check_folder, run
from fastcollect.support.errors import ConfigError
from fastcollect.support.files import write_file
from trainers.report import page, sections, tables, topologies
from trainers.report.repetitions import families, repetitions
from trainers.store.reader import Container, SavedRun, load

PAGE = "report.html"


@dataclass(frozen=True, kw_only=True)
class ReportArguments:
    """What ``python -m trainers.report`` takes."""

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN")]
    """Run folders of any stage; those inside them are found."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder of the report; default: report/ in the first RUN."""


def report(arguments: ReportArguments) -> Path:
    """Write the report and return its page's file. Raises ConfigError; its checks precede all writing."""
    runs, folders = load(arguments.runs)
    if not runs:
        problems = [f"{str(path)!r} holds no run that has begun" for path in arguments.runs]
        raise ConfigError(problems or ["no run folder is named; at least one is needed"])
    out = arguments.out or arguments.runs[0] / "report"
    check_out(out)
    text, pictures = build(runs, folders)
    # The page first: it needs no other file, and makes the folder ours.
    for name, content in {PAGE: text.encode(), **pictures}.items():
        write_file(out / name, content)
    for old in out.glob("figure-*"):
        if old.name not in pictures:
            try:
                old.unlink()
            except OSError as error:
                raise ConfigError([f"{str(old)!r} cannot be removed: {error.strerror or error}"]) from error
    return out / PAGE


def build(runs: Sequence[SavedRun], folders: Sequence[Container]) -> tuple[str, sections.Pictures]:
    """The page, and the pictures in it by the names of their files."""
    groups = repetitions(runs)
    tickets = families(groups)
    pictures: sections.Pictures = {}
    parts = [
        ("results", "Results", sections.results(groups)),
        ("curves", "Learning curves", sections.curves(groups, pictures)),
        ("sparsity", "Success against sparsity", sections.sparsity(tickets, pictures)),
        ("topologies", "Sparse from the start", topologies.topologies(groups, pictures)),
        ("transfer", "Transfer", sections.transfer(groups)),
        ("masks", "Masks", sections.masks(tickets, pictures)),
        ("inputs", "Inputs", sections.inputs(tickets, pictures)),
        ("costs", "Costs", tables.costs(groups, tickets, runs)),
        ("episode", "An episode", sections.episode(runs, pictures)),
        ("runs", "Every run", tables.every_run(runs)),
        ("manifests", "Manifests", tables.manifests(runs, folders)),
        ("limits", "What this does not show", tables.limits(groups, tickets)),
    ]
    title = "Runs on " + ", ".join(dict.fromkeys(each.env for each in runs))
    return page.document(title, tables.lead(runs, folders, groups), parts), pictures


def check_out(out: Path) -> None:
    """Raises ConfigError unless the folder is new, empty, or holds an earlier report."""
    check_folder(out)
    ours = False
    with contextlib.suppress(OSError, UnicodeDecodeError):
        ours = page.GENERATOR in (out / PAGE).read_text()
    if out.exists() and os.listdir(out) and not ours:
        raise ConfigError([f"{str(out)!r} holds other files and no {PAGE} of ours"])


if __name__ == "__main__":
    given = tyro.cli(ReportArguments, description=__doc__, prog="python -m trainers.report")
    run(lambda: print(f"report: {report(given)}"))
