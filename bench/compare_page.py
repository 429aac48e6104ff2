"""What ``bench.compare`` found, as Markdown, CSV and a picture.

A document is {"machine", "command", "seconds", "rounds", "envs"}; each of "envs" is {"env", "rows",
"ratios"} as ``bench.fps`` reports them. A row is found by its label, which is the same in every column.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bench.table import machine_line

TUNED = "engine, tuned"
_CSV = (
    *("env", "label", "n", "N", "M", "policy", "fps_median", "fps_min", "fps_max", "tuned_over_this"),
    *("start_seconds", "cpus_busy", "num_envs", "memory_mib_per_env", "error"),
)

Document = Mapping[str, Any]
Row = Mapping[str, Any]


def labels(document: Document) -> list[str]:
    """Every label, in the order of the first column that has it."""
    return list(dict.fromkeys(row["label"] for column in document["envs"] for row in column["rows"]))


def cell(column: Mapping[str, Any], label: str) -> Row | None:
    """The row of this label in this column, or None."""
    return next((row for row in column["rows"] if row["label"] == label), None)


def over(column: Mapping[str, Any], label: str) -> float | None:
    """The tuned engine's speed by this row's: the median of the rounds' ratios."""
    return column["ratios"].get(TUNED, {}).get(label)


def markdown(document: Document) -> str:
    """Steps a second; ratios; the winner's settings and what each method costs; what was not measured."""
    envs = document["envs"]
    names = [column["env"] for column in envs]
    rounds = f"Medians of {document['rounds']} interleaved rounds of {document['seconds']:g} s"
    parts = [
        f"{rounds}, (min \u2013 max).",
        _table(["steps per second", *names], _speeds(document)),
        "The tuned engine over each method, ratios taken within a round:",
        _table(["engine, tuned \u00f7", *names], _ratios(document)),
        "n environments in each of N workers, M model workers, as the tuner chose them:",
        _table(["environment", "n", "N", "M", "policy"], _settings(envs)),
        "Start-up in seconds / processors in use / MiB an environment (shared pages counted once):",
        _table(["costs", *names], _costs(document)),
        *_missing(envs),
        f"{machine_line(document['machine'])}.  `{document['command']}`",
    ]
    return "\n\n".join(parts) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _speeds(document: Document) -> list[list[str]]:
    def text(row: Row) -> str:
        fps = row["fps"]
        return f"{fps['median']:,.0f} ({fps['min']:,.0f} \u2013 {fps['max']:,.0f})"

    return _cells(document, text)


def _ratios(document: Document) -> list[list[str]]:
    rows = []
    for label in labels(document):
        found = [over(column, label) for column in document["envs"]]
        if label != TUNED:
            rows.append([label, *("" if ratio is None else f"{ratio:.2f}" for ratio in found)])
    return rows


def _settings(envs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    found = [(column["env"], cell(column, TUNED)) for column in envs]
    return [
        [name, *(str(row[key]) for key in ("n", "N", "M")), str(row["policy"])] for name, row in found if row
    ]


def _costs(document: Document) -> list[list[str]]:
    def text(row: Row) -> str:
        memory = row["memory_mib"] / row["num_envs"]
        return f"{row['start_seconds']:.1f} / {row['cpus_busy']:.1f} / {memory:.1f}"

    return _cells(document, text)


def _cells(document: Document, text: Callable[[Row], str]) -> list[list[str]]:
    """A line for each label, its text in each column; empty where it was not measured."""
    lines = []
    for label in labels(document):
        rows = [cell(column, label) for column in document["envs"]]
        lines.append([label, *(text(row) if row and row["fps"] else "" for row in rows)])
    return lines


def _missing(envs: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line for each method and reason, with the environments it holds for."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for column in envs:
        for row in column["rows"]:
            if not row["fps"]:
                reasons.setdefault((row["label"], row["error"]), []).append(column["env"])
    if not reasons:
        return []
    lines = [f"- {label} ({', '.join(names)}): {why}" for (label, why), names in reasons.items()]
    return ["Not measured:", "\n".join(lines)]


def csv_text(document: Document) -> str:
    """One line for each method and environment."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(_CSV)
    for column in document["envs"]:
        for row in column["rows"]:
            writer.writerow(_csv_row(column, row))
    return stream.getvalue()


def _csv_row(column: Mapping[str, Any], row: Row) -> list[Any]:
    head = [column["env"], row["label"], row["n"], row["N"], row["M"], row["policy"] or ""]
    if not row["fps"]:
        return [*head, *[""] * (len(_CSV) - len(head) - 1), row["error"]]
    ratio = over(column, row["label"])
    return [
        *head,
        *(round(row["fps"][key], 1) for key in ("median", "min", "max")),
        "" if ratio is None else round(ratio, 3),
        round(row["start_seconds"], 2),
        round(row["cpus_busy"], 2),
        row["num_envs"],
        round(row["memory_mib"] / row["num_envs"], 2),
        "",
    ]


def picture(document: Document) -> bytes:
    """A PNG: each environment a panel, each method a bar of its steps per second."""
    # The object interface needs no display, unlike pyplot.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    envs = document["envs"]
    figure = Figure(figsize=(2.4 + 2.3 * len(envs), 0.9 + 0.33 * len(labels(document))), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(envs), squeeze=False)[0]
    for panel, column in zip(panels, envs, strict=True):
        _bars(panel, column, labels(document))
    for panel in panels[1:]:
        panel.set_yticklabels([])
    machine = document["machine"]
    figure.supxlabel(
        f"environment steps per second, {machine['cpus']} processors ({machine['cpu']})", fontsize=9
    )
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110)
    return image.getvalue()


def _bars(panel: Any, column: Mapping[str, Any], names: Sequence[str]) -> None:
    rows = [cell(column, label) for label in names]
    values = [row["fps"]["median"] if row and row["fps"] else 0.0 for row in rows]
    colours = ["#2f7ebc" if label.startswith("engine") else "#b0b0b0" for label in names]
    panel.barh(range(len(names)), values, color=colours)
    panel.set_yticks(range(len(names)), names, fontsize=8)
    panel.invert_yaxis()
    panel.set_title(column["env"], fontsize=9)
    panel.tick_params(axis="x", labelsize=7)
    panel.ticklabel_format(axis="x", style="plain")
    panel.locator_params(axis="x", nbins=3)
    for at, value in enumerate(values):
        panel.text(value, at, f" {value:,.0f}" if value else " none", va="center", fontsize=6.5)
    panel.set_xlim(0, 1.35 * max(values, default=1.0) or 1.0)
