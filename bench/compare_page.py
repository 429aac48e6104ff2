"""What ``bench.compare`` found, as Markdown, CSV and a picture.

A document is {"machine", "command", "seconds", "rounds", "envs"}; each of "envs" is a column, {"env",
"rows"}, with rows as ``bench.fps`` reports them. A row is found by its label, the same in every column.
"""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bench.harness.results import Row, machine_line, panels, png

DEFAULT, TUNED = "ours, default", "ours, tuned"
Document = Mapping[str, Any]
Column = Mapping[str, Any]
_SPEED = "{median:,.0f} ({min:,.0f} \u2013 {max:,.0f})"
_COST = "{start_seconds:.1f} / {cpus_busy:.1f} / {each:.1f}"


def labels(document: Document) -> list[str]:
    """Every label, in the order of the first column that has it."""
    return list(dict.fromkeys(row["label"] for column in document["envs"] for row in column["rows"]))


def cell(column: Column, label: str) -> Row | None:
    """The row of this label in this column, or None."""
    return next((row for row in column["rows"] if row["label"] == label), None)


def over(column: Column, label: str) -> float | None:
    """The tuned collector's speed by this row's: the median of the rounds' ratios."""
    return (cell(column, TUNED) or {}).get("ratios", {}).get(label)


def _ratio(column: Column, row: Row) -> str:
    ratio = over(column, row["label"])
    return f"{ratio:.2f}" if ratio else ""


def _memory(row: Row) -> float:
    return row["memory_mib"] / row["num_envs"]


def markdown(document: Document) -> str:
    """Steps a second; ratios; the winner's settings and what each method costs; what was not measured."""
    envs, every = document["envs"], labels(document)
    rounds = f"Medians of {document['rounds']} interleaved rounds of {document['seconds']:g} s"
    found = [(column["env"], row) for column in envs if (row := cell(column, TUNED))]
    settings = [[env, *(str(row[key]) for key in ("n", "N", "M", "policy"))] for env, row in found]

    def table(title: str, text: Callable[[Column, Row], str], names: Sequence[str]) -> str:
        """A line for each label, its text in each column; empty where it was not measured."""
        lines = []
        for label in names:
            cells = [(column, cell(column, label)) for column in envs]
            lines.append([label, *(text(column, row) if row and row["fps"] else "" for column, row in cells)])
        return _markdown_table([title, *(column["env"] for column in envs)], lines)

    parts = [
        f"{rounds}, (min \u2013 max).",
        table("steps per second", lambda _, row: _SPEED.format(**row["fps"]), every),
        "The tuned collector over each method, ratios taken within a round:",
        table(f"{TUNED} \u00f7", _ratio, [label for label in every if label != TUNED]),
        "n environments in each of N workers, M model workers, as the tuner chose them:",
        _markdown_table(["environment", "n", "N", "M", "policy"], settings),
        "Start-up in seconds / processors in use / MiB an environment (shared pages counted once):",
        table("costs", lambda _, row: _COST.format(**row, each=_memory(row)), every),
        *_missing(envs),
        f"{machine_line(document['machine'])}.  `{document['command']}`",
    ]
    return "\n\n".join(parts) + "\n"


def _markdown_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, rule, *lines])


def _missing(envs: Sequence[Column]) -> list[str]:
    """One line for each method and reason, with the environments it holds for."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for column in envs:
        for row in column["rows"]:
            if not row["fps"]:
                reasons.setdefault((row["label"], row["error"]), []).append(column["env"])
    lines = [f"- {label} ({', '.join(names)}): {why}" for (label, why), names in reasons.items()]
    return ["Not measured:", "\n".join(lines)] if lines else []


def csv_text(document: Document) -> str:
    """One line for each method and environment; numbers are empty where it was not measured."""
    names = ("env", "label", "n", "N", "M", "policy", "fps_median", "fps_min", "fps_max", "tuned_over_this")
    costs = ("start_seconds", "cpus_busy", "num_envs", "memory_mib_per_env", "error")
    stream = io.StringIO()
    writer = csv.DictWriter(stream, [*names, *costs], restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for column in document["envs"]:
        for row in column["rows"]:
            line = {**row, "env": column["env"], "policy": row["policy"] or ""}
            if row["fps"]:
                ratio = over(column, row["label"])
                line |= {f"fps_{key}": round(value, 1) for key, value in row["fps"].items()}
                line["tuned_over_this"] = "" if ratio is None else round(ratio, 3)
                line |= {key: round(row[key], 2) for key in ("start_seconds", "cpus_busy")}
                line["memory_mib_per_env"] = round(_memory(row), 2)
            writer.writerow(line)
    return stream.getvalue()


def picture(document: Document) -> bytes:
    """A PNG: each environment a panel, each method a bar of its steps per second."""
    envs, every, machine = document["envs"], labels(document), document["machine"]
    figure, ((*drawn,),) = panels(1, len(envs), (2.4 + 2.3 * len(envs), 0.9 + 0.33 * len(every)))
    for panel, column in zip(drawn, envs, strict=True):
        _bars(panel, column, every)
    for panel in drawn[1:]:
        panel.set_yticklabels([])
    label = f"environment steps per second, {machine['cpus']} processors ({machine['cpu']})"
    figure.supxlabel(label, fontsize=9)
    return png(figure)


def _bars(panel: Any, column: Column, names: Sequence[str]) -> None:
    rows = [cell(column, label) for label in names]
    values = [row["fps"]["median"] if row and row["fps"] else 0.0 for row in rows]
    colours = ["#2f7ebc" if label.startswith("ours") else "#b0b0b0" for label in names]
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
