"""The arithmetic of interleaved rounds, and how results are shown and kept."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.methods import METHODS

_TIMES = "\u00d7"

Rounds = Mapping[str, Sequence[float] | None]
"""By label: the rate of each round, or None for what could not be measured."""


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, min and max of the rounds."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratios(rounds: Rounds) -> dict[str, dict[str, float]]:
    """ratios[a][b]: median over the rounds of a's rate by b's rate in the same round.

    A machine that drifts from round to round changes both, so it cancels; a ratio of medians would not.
    """
    measured = {label: values for label, values in rounds.items() if values}
    return {
        a: {
            b: statistics.median(x / y for x, y in zip(measured[a], measured[b], strict=True))
            for b in measured
            if b != a
        }
        for a in measured
    }


def references(labels: Sequence[str], methods: Mapping[str, str]) -> list[str]:
    """The rows that the others are compared with: every peer and limit; without any, the first row."""
    peers = [label for label in labels if METHODS[methods[label]].role != "ours"]
    return peers or list(labels[:1])


def machine_line(machine: Mapping[str, Any]) -> str:
    """Where it was measured, in one line."""
    versions = " ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"{machine['cpu']}, {machine['cpus']} CPUs, {machine['memory_gib']} GiB, {machine['system']}; "
        f"{versions}; commit {machine['commit']}"
    )


def fps_table(
    rows: Sequence[Mapping[str, Any]], ratio: Mapping[str, Mapping[str, float]], title: str
) -> Table:
    """rows: as in the JSON file, plus "label"."""
    methods = {row["label"]: row["method"] for row in rows}
    compared = references([row["label"] for row in rows if row["fps"]], methods)
    table = Table(title=title, title_justify="left")
    table.add_column("method")
    names = [
        "n",
        "N",
        "M",
        "median",
        "min",
        "max",
        *(f"{_TIMES} {label}" for label in compared),
        "start s",
        "CPUs",
        "MiB/env",
    ]
    for name in names:
        table.add_column(name, justify="right")
    for row in rows:
        head = [row["method"], str(row["n"]), str(row["N"]), str(row["M"])]
        if row["fps"] is None:
            table.add_row(*head, "none", *[""] * (len(names) - 4))
            continue
        own = ratio[row["label"]]
        table.add_row(
            *head,
            *(f"{row['fps'][key]:,.0f}" for key in ("median", "min", "max")),
            *(f"{own[label]:.2f}" if label in own else "" for label in compared),
            f"{row['start_seconds']:.1f}",
            f"{row['cpus_busy']:.1f}",
            f"{row['memory_mib'] / row['num_envs']:.1f}",
        )
    return table


def console(stderr: bool = False) -> Console:
    """A console that is wide enough for a table when its output goes to a file."""
    found = Console(stderr=stderr, highlight=False)
    return found if found.is_terminal else Console(stderr=stderr, highlight=False, width=140)
