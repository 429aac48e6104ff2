"""The figures of a report, each as the bytes of a PNG."""

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # which needs no display, unlike pyplot
from matplotlib.ticker import EngFormatter
from matplotlib.typing import ColorType

from trainers.report import numbers
from trainers.report.repetitions import Family, Repetitions, seeds
from trainers.store.reader import SavedRun

# Okabe and Ito's colours, which the colour-blind can tell apart.
_BLACK, _ORANGE, _SKY, _GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
_BLUE, _RED, _PURPLE = "#0072B2", "#D55E00", "#CC79A7"
_STYLES = {
    "dense": (_BLACK, "o", "-"),
    "round": (_BLUE, "D", "-"),
    "permuted-weights": (_ORANGE, "s", "--"),
    "permuted-mask": (_GREEN, "^", "-."),
    "random-mask-anchor": (_BLUE, "<", "-."),
    "random-mask-fresh-actor": (_SKY, ">", "--"),
    "random-mask": (_RED, "v", ":"),
    "dense control": (_PURPLE, "P", "--"),
    "mask-anchor": (_BLUE, "D", "-"),
    "mask-only": (_SKY, "s", "--"),
    "anchor-dense": (_ORANGE, "^", ":"),
    "dense-finetuned": (_PURPLE, "P", "-."),
    "final-fresh-critic": (_GREEN, "X", "--"),
    "sparse": (_BLUE, "o", "-"),
    "static": (_ORANGE, "s", "--"),
    "set": (_GREEN, "^", "-."),
    "rigl": (_SKY, "v", "-"),
    "rlx2": (_BLUE, "D", "-"),
    "gmp": (_RED, "o", "--"),
    "small": (_PURPLE, "P", ":"),
}


def _panels(figure: Figure, title: str, xlabel: str) -> Iterator[tuple[Axes, str]]:
    """Axes and key of each measure, side by side."""
    figure.suptitle(title)
    panels = figure.subplots(1, len(numbers.MEASURES))
    for axes, (key, (name, _)) in zip(panels, numbers.MEASURES.items(), strict=True):
        yield axes, key
        axes.set(title=name, xlabel=xlabel)
        axes.grid(alpha=0.3)
        if key != "return_mean":
            axes.set_ylim(-0.03, 1.03)


def png(figure: Figure, columns: int = 0, **legend: Any) -> bytes:
    """The figure's PNG, with a legend of its first axes in so many columns, if that is not 0."""
    if columns:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        columns = min(columns, len(labels))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=9, **legend)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=120)
    return stream.getvalue()


def _means(found: Sequence[Sequence[float]]) -> tuple[np.ndarray, np.ndarray | None]:
    """Means, and whiskers from the least to the greatest; None where there is one run of each."""
    means, low, high = (np.array([of(values) for values in found]) for of in (np.mean, np.min, np.max))
    return means, np.array([means - low, high - means]) if max(map(len, found)) > 1 else None


def _style(run: SavedRun) -> tuple[str, str, str]:
    if (run.kind, run.name) == ("control", "dense"):
        return _STYLES["dense control"]
    topology = run.config.get("sparse", {}).get("topology") if run.kind == "sparse" else None
    return _STYLES[topology if topology in _STYLES else run.name or run.kind]


def _gradient(count: int) -> list[ColorType]:
    # The last fifth is yellow, too light on white.
    return [colormaps["viridis"](0.8 * i / max(1, count - 1)) for i in range(count)]


def curves(groups: Sequence[Repetitions], title: str) -> bytes | None:
    """Evaluations over environment steps: a thick mean, a band from least to most, thin runs; or None."""
    looks = _looks(groups)
    figure = Figure((12, 4.3 + 0.22 * (len(groups) // 4)), layout="constrained")
    for axes, key in _panels(figure, title, "environment steps"):
        for group in groups:
            lines = numbers.lines(group.runs, key)
            if not lines:
                continue
            colour, dashes = looks[group.label]
            for steps, values, finished in lines:
                if len(lines) > 1 or not finished:
                    axes.plot(steps, values, color=colour, lw=0.7, alpha=0.6, ls="-" if finished else ":")
            steps, values = numbers.band(lines)
            if len(lines) > 1:
                axes.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.12, lw=0)
            # A mean that is not there still has its place in the legend.
            label = f"{group.label}, {seeds(len(group.runs))}"
            axes.plot(steps, values.mean(0), color=colour, lw=1.8, ls=dashes, label=label)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    return png(figure, 4) if any(axes.lines for axes in figure.axes) else None


def _looks(groups: Sequence[Repetitions]) -> dict[str, tuple[ColorType, str]]:
    """Label -> colour and dashes: rounds along a gradient, other settings of the same run by their dashes."""
    rounds = [group.label for group in groups if group.kind == "round"]
    gradient = dict(zip(rounds, _gradient(len(rounds)), strict=True)) if len(rounds) > 1 else {}
    looks: dict[str, tuple[ColorType, str]] = {}
    for group in groups:
        colour, _, dashes = _style(group.runs[0])
        choices = [(gradient.get(group.label, colour), each) for each in (dashes, "--", "-.", ":")]
        looks[group.label] = next((look for look in choices if look not in looks.values()), choices[0])
    return looks


def against_sparsity(family: Family, title: str) -> bytes | None:
    """Final results over sparsity: the ticket, its controls and the dense level; None where none finished."""
    if not family.rounds:
        return None
    pruned = any(run.masks["actor"] for runs in family.rounds.values() for run in runs)
    kind = "actor" if pruned else "critic"
    series = [("ticket", list(family.rounds.values()), 0.0, 1.5)]
    # Side by side, because controls share the ticket's sparsity; the one without a mask stands alone.
    side = (
        "permuted-weights",
        "permuted-mask",
        "random-mask-anchor",
        "random-mask-fresh-actor",
        "random-mask",
    )
    shifts = {name: 0.015 * place for place, name in enumerate(side, 1)}
    for name in sorted({group.runs[0].name for group in family.controls if group.finished}):
        controls = [group.finished for group in family.controls if group.runs[0].name == name]
        label = f"control: {name}{', rewound, no mask' if name == 'dense' else ''}"
        series.append((label, [runs for runs in controls if runs], shifts.get(name, 0), 0))
    figure = Figure((12, 4.6), layout="constrained")
    for axes, key in _panels(figure, title, f"sparsity of the {kind}"):
        if level := [summary[key] for summary in family.dense.values()]:
            label = f"dense run ({seeds(len(level))})"
            axes.axhline(float(np.mean(level)), color=_BLACK, lw=1.2, ls="--", label=label)
            if len(level) > 1:
                axes.axhspan(min(level), max(level), color=_BLACK, alpha=0.08, lw=0)
        for label, rounds, shift, width in series:
            colour, marker, _ = _style(rounds[0][0])
            xs = [np.mean([run.sparsity(kind) for run in runs]) + shift for runs in rounds]
            found = [numbers.of_summaries(runs, key) for runs in rounds]
            counts = [len(values) for values in found]
            look: dict[str, Any] = {"color": colour, "marker": marker, "elinewidth": 1.2, "capsize": 3}
            axes.errorbar(xs, *_means(found), ms=6, lw=width, label=f"{label} ({seeds(*counts)})", **look)
            axes.plot(np.repeat(xs, counts), np.concatenate(found), ".", color=colour, ms=4, alpha=0.5)
        axes.set_xlim(-0.08, 1.08)
    return png(figure, 3)


def layer_bars(
    series: Mapping[str, Mapping[str, Sequence[float]]],
    title: str,
    ylabel: str,
    expected: Mapping[str, float] | None = None,
) -> bytes:
    """Bars at each layer, mean and least to most.

    series: label -> layer -> values. expected: what random masks would have at each layer.
    """
    names = list(next(iter(series.values())))
    figure = Figure((max(6.5, 1.3 * len(names) + 2.5), 4.2), layout="constrained")
    axes = figure.subplots()
    places, width = np.arange(len(names)), 0.8 / len(series)
    colours = _gradient(len(series)) if len(series) > 1 else [_SKY]
    for index, ((label, found), colour) in enumerate(zip(series.items(), colours, strict=True)):
        means, errors = _means([found[name] for name in names])
        look: dict[str, Any] = {"color": colour, "ecolor": "#555555", "capsize": 3, "label": label}
        shift = (index - (len(series) - 1) / 2) * width
        axes.bar(places + shift, means, width * 0.92, yerr=errors, **look)
    if expected:
        axes.plot(
            places, list(expected.values()), "_", color=_RED, ms=38, mew=2.5, label="random masks, expected"
        )
    axes.set_xticks(places, [name.replace(" layer", "\nlayer") for name in names])
    axes.set(ylabel=ylabel, title=title)
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", alpha=0.3)
    return png(figure, 6, markerscale=0.5)


def inputs(family: Family, title: str) -> bytes:
    """Share of the first layer's weights that each input keeps, by round: mean over seeds, in percent."""
    shares = [[numbers.first_layers(run) for run in runs] for runs in family.rounds.values()]
    tables = {
        name: 100 * np.stack([np.mean([run[name] for run in runs], axis=0) for runs in shares], axis=1)
        for name in shares[-1][-1]
    }
    last = next(reversed(family.rounds.values()))
    constant = np.all([numbers.constant_inputs(run) for run in last], axis=0)
    count, most = max(map(len, tables.values())), max(values.max() for values in tables.values())
    names = numbers.input_names(family.env, count, len(constant))
    size = 3.6 + len(tables) * (1.2 + 0.62 * len(shares)), min(40, 1.6 + 0.21 * count)
    figure = Figure(size, layout="constrained")
    panels = figure.subplots(1, len(tables), squeeze=False, sharey=True)[0]
    for axes, (name, values) in zip(panels, tables.items(), strict=True):
        image = axes.imshow(values, aspect="auto", cmap="cividis", vmin=0, vmax=most, interpolation="nearest")
        for (row, column), value in np.ndenumerate(values):
            colour = "white" if value < 0.55 * most else _BLACK
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=6.5, color=colour)
        axes.set_xticks(range(len(shares)), [f"{k}\nn={len(runs)}" for k, runs in family.rounds.items()])
        axes.set(title=name, xlabel="round, n runs", ylim=(count - 0.5, -0.5))
    idle = np.flatnonzero(constant)
    labels = [f"{name}  (constant)" if i in idle else name for i, name in enumerate(names)]
    ticks = panels[0].set_yticks(range(count), labels, fontsize=7.5)
    for i in idle:
        ticks[i].label1.set_color("#777777")
    figure.colorbar(image, ax=panels, label="kept weights of the input, %", shrink=0.6)
    figure.suptitle(title)
    return png(figure)
