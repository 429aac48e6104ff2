"""The picture of ``bench.scaling``."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastcollect.support.files import write_file
from fastcollect.tuning.report import STATES


def draw(result: Mapping[str, Any], file: Path) -> None:
    """Above, steps per second along each axis; below, what the env workers' time went into."""
    # The object interface needs no display, unlike pyplot.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, axes = {row["label"]: row for row in result["rows"]}, result["axes"]
    figure = Figure(figsize=(3.6 * len(axes), 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, len(axes), squeeze=False, sharex="col")
    for column, (axis, points) in enumerate(axes.items()):
        found = {name: rows[label] for name, label in points.items() if rows[label]["fps"]}
        _speeds(panels[0][column], found)
        _shares(panels[1][column], found)
        panels[1][column].set_xlabel(axis)
    panels[0][0].set_ylabel("steps per second")
    panels[1][0].set_ylabel("share of the env workers' time")
    panels[1][-1].legend(fontsize=7, loc="lower right")
    machine = result["machine"]
    figure.suptitle(
        f"{result['rows'][0]['env']} on {machine['cpus']} processors ({machine['cpu']})", fontsize=10
    )
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110)
    write_file(file, image.getvalue())


def _speeds(panel: Any, found: Mapping[str, Mapping[str, Any]]) -> None:
    middle = [row["fps"]["median"] for row in found.values()]
    below = [row["fps"]["median"] - row["fps"]["min"] for row in found.values()]
    above = [row["fps"]["max"] - row["fps"]["median"] for row in found.values()]
    panel.errorbar(range(len(found)), middle, (below, above), fmt="-o", ms=4, lw=1, capsize=3)
    panel.set_ylim(bottom=0)


def _shares(panel: Any, found: Mapping[str, Mapping[str, Any]]) -> None:
    base = [0.0] * len(found)
    for state, colour in STATES.items():
        values = [row["shares"]["env_worker"][state] for row in found.values()]
        panel.bar(
            range(len(found)), values, bottom=base, color=colour, label=state.replace("_", " "), width=0.7
        )
        base = [a + b for a, b in zip(base, values, strict=True)]
    panel.set_xticks(range(len(found)), list(found), fontsize=8)
