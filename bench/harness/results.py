"""The arithmetic of interleaved rounds, and how it is shown in tables and pictures.

A row is what a table or a result file says about one method: a dict with a "label", and either numbers or
an "error".
"""

import io
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from bench.methods import METHODS

Row = dict[str, Any]
Columns = Mapping[str, Callable[[Row], str]]
"""By a column's name: the text of its cell in a row."""


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, min and max of the rounds."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratios(rounds: Mapping[str, Sequence[float] | None]) -> dict[str, dict[str, float]]:
    """ratios[a][b]: median over the rounds of a's rate by b's rate in the same round.

    rounds: by label, the rate of each round, or None for what could not be measured. A machine that drifts
    from round to round changes both rates, so it cancels; a ratio of medians would not.
    """
    found = {label: values for label, values in rounds.items() if values}

    def ratio(a: str, b: str) -> float:
        return statistics.median(x / y for x, y in zip(found[a], found[b], strict=True))

    return {a: {b: ratio(a, b) for b in found if b != a} for a in found}


def measured(rows: Sequence[Row], outcomes: Mapping[str, Any], rate: str) -> list[Row]:
    """The rows with what their turns gave, by label: see ``bench.harness.measure.take_turns``.

    row[rate] is the summary, None beside an "error"; row[rate + "_rounds"] every round's rate, "ratios" those
    to the other rows by label, "start_seconds" a median; the other facts are the last round's.
    """
    done = {label: got for label, got in outcomes.items() if not isinstance(got, str)}
    rates = {label: [each["rate"] for each in got] for label, got in done.items()}
    among, found = ratios(rates), []
    for row in rows:
        if (label := row["label"]) not in done:
            found.append({**row, rate: None, "error": outcomes[label]})
            continue
        facts = {name: value for name, value in done[label][-1].items() if name != "rate"}
        facts["start_seconds"] = statistics.median(each["start_seconds"] for each in done[label])
        numbers = {rate: summary(rates[label]), f"{rate}_rounds": rates[label], "ratios": among[label]}
        found.append({**row, **numbers, **facts})
    return found


def rate_table(
    title: str, rows: Sequence[Row], rate: str, head: Sequence[str], tail: Columns, digits: int = 0
) -> Table:
    """A line for each row: its values of ``head``; of the rate median, min, max, ratios to others; its tail.

    The others are every peer and limit that was measured; without any, the first row. A row that was not
    measured shows its head and "none".
    """
    found, numbers = [row for row in rows if row[rate]], ("median", "min", "max")
    others = [row["label"] for row in found if METHODS[row["method"]].role != "ours"]
    against, lines = others or [row["label"] for row in found[:1]], []
    for row in rows:
        line = [str(row[name]) for name in head]
        if row[rate] is None:
            lines.append([*line, "none"])
            continue
        line += [f"{row[rate][key]:,.{digits}f}" for key in numbers]
        line += [f"{row['ratios'][label]:.2f}" if label in row["ratios"] else "" for label in against]
        lines.append([*line, *(text(row) for text in tail.values())])
    return plain_table(title, [*head, *numbers, *(f"\u00d7 {label}" for label in against), *tail], lines)


def plain_table(title: str, names: Sequence[str], lines: Sequence[Sequence[str]], left: int = 1) -> Table:
    """A table whose first ``left`` columns are texts and whose others are numbers."""
    columns = [Column(name, justify="left" if at < left else "right") for at, name in enumerate(names)]
    table = Table(*columns, title=title, title_justify="left")
    for line in lines:
        table.add_row(*line)
    return table


def machine_line(machine: Mapping[str, Any]) -> str:
    """Where it was measured, in one line."""
    versions = " ".join(f"{name} {version}" for name, version in machine["versions"].items())
    size = f"{machine['cpus']} CPUs, {machine['memory_gib']} GiB"
    return f"{machine['cpu']}, {size}, {machine['system']}; {versions}; commit {machine['commit']}"


def console(stderr: bool = False) -> Console:
    """A console that is wide enough for a table when its output goes to a file."""
    found = Console(stderr=stderr, highlight=False)
    return found if found.is_terminal else Console(stderr=stderr, highlight=False, width=140)


def show(result: Mapping[str, Any], *parts: Table | str) -> None:
    """Print tables and sentences, why each row without numbers has none, and where it was measured."""
    missing = [row for row in result.get("rows", ()) if "error" in row]
    why = [f"{row['label']} was not measured: {row['error']}" for row in missing]
    for part in (*parts, *why, machine_line(result["machine"])):
        console().print(part, markup=False)


def panels(rows: int, columns: int, size: tuple[float, float], **options: Any) -> tuple[Any, Any]:
    """A figure and its (rows, columns) panels. size: inches."""
    from matplotlib.figure import Figure  # needs no display, unlike pyplot

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def png(figure: Any) -> bytes:
    """The figure as a PNG file's content."""
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110)
    return image.getvalue()
