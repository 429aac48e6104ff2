"""What ``bench.compare`` found, as Markdown and a picture.

A document is {"machine", "command", "seconds", "rounds", "envs"}; each of "envs" is a column, {"env",
"rows"}, with rows as ``bench.fps`` reports them. A row is found by its label, the same in every column.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bench.harness.results import Row, machine_line, panels, png

DEFAULT, TUNED = "ours, default", "ours, tuned"
Document = Mapping[str, Any]
Column = Mapping[str, Row]
"""One environment's rows by their labels."""
_SPEED = "{median:,.0f} ({min:,.0f} \u2013 {max:,.0f})"
_COST = "{start_seconds:.1f} / {cpus_busy:.1f} / {each:.1f}"


def _columns(document: Document) -> tuple[dict[str, Column], list[str]]:
    """The columns by environment, and every label in the order of the first column that has it."""
    columns: dict[str, Column] = {}
    for each in document["envs"]:
        columns[each["env"]] = {row["label"]: row for row in each["rows"]}
    return columns, list(dict.fromkeys(label for column in columns.values() for label in column))


def _ratio(column: Column, row: Row) -> str:
    """The tuned collector's speed by this row's: the median of the rounds' ratios."""
    ratio = column.get(TUNED, {}).get("ratios", {}).get(row["label"])
    return f"{ratio:.2f}" if ratio else ""


def markdown(document: Document) -> str:
    """Steps a second; ratios; the winner's settings and what each method costs; what was not measured."""
    columns, labels = _columns(document)
    rounds = f"Medians of {document['rounds']} interleaved rounds of {document['seconds']:g} s"
    found = {env: column[TUNED] for env, column in columns.items() if TUNED in column}
    settings = [[env, *(str(row[key]) for key in ("n", "N", "M", "policy"))] for env, row in found.items()]

    def table(title: str, text: Callable[[Column, Row], str], but: str = "") -> str:
        """A line for each label but one, its text in each column; empty where it was not measured."""
        lines = []
        for label in labels:
            cells = [(column, column.get(label)) for column in columns.values()]
            lines.append([label, *(text(column, row) if row and row["fps"] else "" for column, row in cells)])
        return _markdown_table([title, *columns], [line for line in lines if line[0] != but])

    def cost(_: Column, row: Row) -> str:
        return _COST.format(**row, each=row["memory_mib"] / row["num_envs"])

    parts = [
        f"{rounds}, (min \u2013 max).",
        table("steps per second", lambda _, row: _SPEED.format(**row["fps"])),
        "The tuned collector over each method, ratios taken within a round:",
        table(f"{TUNED} \u00f7", _ratio, but=TUNED),
        "n environments in each of N workers, M model workers, as the tuner chose them:",
        _markdown_table(["environment", "n", "N", "M", "policy"], settings),
        "Start-up in seconds / processors in use / MiB an environment (shared pages counted once):",
        table("costs", cost),
        *_missing(columns),
        f"{machine_line(document['machine'])}.  `{document['command']}`",
    ]
    return "\n\n".join(parts) + "\n"


def _markdown_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, rule, *lines])


def _missing(columns: Mapping[str, Column]) -> list[str]:
    """One line for each method and reason, with the environments it holds for."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for env, column in columns.items():
        for label, row in column.items():
            if not row["fps"]:
                reasons.setdefault((label, row["error"]), []).append(env)
    lines = [f"- {label} ({', '.join(names)}): {why}" for (label, why), names in reasons.items()]
    return ["Not measured:", "\n".join(lines)] if lines else []


def picture(document: Document) -> bytes:
    """A PNG: each environment a panel, each method a bar of its steps per second."""
    columns, labels = _columns(document)
    size = 2.4 + 2.3 * len(columns), 0.9 + 0.33 * len(labels)
    figure, (drawn,) = panels(1, len(columns), size, sharey=True)
    colours = ["#2f7ebc" if label.startswith("ours") else "#b0b0b0" for label in labels]
    for panel, (env, column) in zip(drawn, columns.items(), strict=True):
        rows = [column.get(label) for label in labels]
        values = [row["fps"]["median"] if row and row["fps"] else 0.0 for row in rows]
        panel.barh(range(len(labels)), values, color=colours)
        panel.set_title(env, fontsize=9)
        panel.tick_params(axis="x", labelsize=7)
        panel.ticklabel_format(axis="x", style="plain")
        panel.locator_params(axis="x", nbins=3)
        for at, value in enumerate(values):
            panel.text(value, at, f" {value:,.0f}" if value else " none", va="center", fontsize=6.5)
        panel.set_xlim(0, 1.35 * max(values, default=1.0) or 1.0)
    drawn[0].set_yticks(range(len(labels)), labels, fontsize=8)
    drawn[0].invert_yaxis()
    machine = document["machine"]
    label = f"environment steps per second, {machine['cpus']} processors ({machine['cpu']})"
    figure.supxlabel(label, fontsize=9)
    return png(figure)
