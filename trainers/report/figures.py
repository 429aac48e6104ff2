"""The figures of a report, each as the bytes of a PNG."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from trainers.report import numbers
from trainers.report.numbers import Family
from trainers.report.repetitions import Repetitions
from trainers.store.reader import SavedRun

MEASURES = {
    "success_any": "success at any step",
    "success_last": "success at the last step",
    "return_mean": "mean return of an episode",
}
# Okabe and Ito's colours, which the colour-blind can tell apart.
_BLACK, _ORANGE, _SKY, _GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
_BLUE, _RED, _PURPLE = "#0072B2", "#D55E00", "#CC79A7"
_STYLES: Mapping[str, tuple[str, str, str]] = {
    "dense": (_BLACK, "o", "-"),
    "round": (_BLUE, "D", "-"),
    "permuted-weights": (_ORANGE, "s", "--"),
    "permuted-mask": (_GREEN, "^", "-."),
    "random-mask": (_RED, "v", ":"),
    "dense control": (_PURPLE, "P", "--"),
    "mask-anchor": (_BLUE, "D", "-"),
    "mask-only": (_SKY, "s", "--"),
    "dense-finetuned": (_PURPLE, "P", "-."),
}
_SEQUENCE = "viridis"


def _figure(width: float, height: float) -> Any:
    # The object interface needs no display, unlike pyplot.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _panels(figure: Any) -> Iterator[tuple[Any, str]]:
    """Axes and name of each measure, side by side."""
    for axes, (key, name) in zip(figure.subplots(1, len(MEASURES)), MEASURES.items(), strict=True):
        yield axes, key
        axes.set(title=name)
        axes.grid(alpha=0.3)
        if key != "return_mean":
            axes.set_ylim(-0.03, 1.03)


def _png(figure: Any, columns: int, **legend: Any) -> bytes:
    """The figure's PNG, with a legend of its first axes in so many columns, if that is not 0."""
    if columns:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        columns = min(columns, len(labels))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=9, **legend)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=120)
    return stream.getvalue()


def _errors(found: Sequence[numbers.Spread]) -> list[list[float]] | None:
    """Whiskers from the least to the greatest; None where there is one run of each."""
    if max((len(each.values) for each in found), default=0) < 2:
        return None
    return [[each.mean - each.low for each in found], [each.high - each.mean for each in found]]


def _steps(value: float, _: Any = None) -> str:
    return f"{value / 1e6:g}M" if value >= 1e6 else f"{value / 1e3:g}k" if value >= 1e3 else f"{value:g}"


def _style(run: SavedRun) -> tuple[str, str, str]:
    if run.kind == "control" and run.name == "dense":
        return _STYLES["dense control"]
    return _STYLES[run.name or run.kind]


def _gradient(count: int) -> list[Any]:
    from matplotlib import colormaps

    # The last fifth is yellow, too light on white.
    return [colormaps[_SEQUENCE](0.8 * i / max(1, count - 1)) for i in range(count)]


def curves(groups: Sequence[Repetitions], title: str) -> bytes | None:
    """Evaluations over environment steps: a thick mean, a band from least to most, thin runs; or None."""
    looks = _looks(groups)
    figure = _figure(12, 4.3 + 0.22 * (len(groups) // 4))
    drawn = False
    for axes, key in _panels(figure):
        for group in groups:
            found = numbers.curve(group.runs, key)
            if found is None:
                continue
            drawn = True
            _draw_curve(axes, found, *looks[group.label], f"{group.label}, {group.seeds()}")
        axes.set(xlabel="environment steps")
        axes.xaxis.set_major_formatter(_steps)
    figure.suptitle(title)
    return _png(figure, 4) if drawn else None


def _looks(groups: Sequence[Repetitions]) -> dict[str, tuple[Any, str]]:
    """Label -> colour and dashes: rounds along a gradient, other settings of the same run by their dashes."""
    rounds = [group.label for group in groups if group.kind == "round"]
    gradient = dict(zip(rounds, _gradient(len(rounds)), strict=True)) if len(rounds) > 1 else {}
    taken: set[tuple[Any, str]] = set()
    looks = {}
    for group in groups:
        colour, _, dashes = _style(group.first)
        colour = gradient.get(group.label, colour)
        free = [each for each in (dashes, "--", "-.", ":") if (colour, each) not in taken]
        looks[group.label] = colour, (free or [dashes])[0]
        taken.add(looks[group.label])
    return looks


def _draw_curve(axes: Any, found: numbers.Curve, colour: Any, dashes: str, label: str) -> None:
    several = len(found.lines) > 1
    for steps, values, finished in found.lines:
        if several or not finished:
            axes.plot(steps, values, color=colour, lw=0.7, alpha=0.6, ls="-" if finished else ":")
    if len(found.steps) and several:
        axes.fill_between(found.steps, found.low, found.high, color=colour, alpha=0.12, lw=0)
    # A mean that is not there still has its place in the legend.
    axes.plot(found.steps, found.mean, color=colour, lw=1.8, ls=dashes, label=label)


def against_sparsity(family: Family, title: str) -> bytes | None:
    """Final results over sparsity: the ticket, its controls and the dense level; None where none finished."""
    finished = family.finished()
    if not finished:
        return None
    kind = "actor" if any(run.masks["actor"] for runs in finished.values() for run in runs) else "critic"
    figure = _figure(12, 4.6)
    for axes, key in _panels(figure):
        _draw_level(axes, family, key)
        _draw_points(axes, _places(finished.values(), kind, key, 0), _STYLES["round"], "ticket", line=True)
        for style, label, runs, shift in _controls(family):
            _draw_points(axes, _places(runs, kind, key, shift), style, label, line=False)
        axes.set(xlabel=f"sparsity of the {kind}", xlim=(-0.08, 1.08))
    figure.suptitle(title)
    return _png(figure, 3)


def _places(
    rounds: Iterable[Sequence[SavedRun]], kind: str, key: str, shift: float
) -> list[tuple[float, numbers.Spread]]:
    """Mean sparsity and results of the runs of each round."""
    return [
        (float(np.mean([run.sparsity(kind) for run in runs])) + shift, numbers.of_summaries(runs, key))
        for runs in rounds
    ]


def _controls(family: Family) -> list[tuple[tuple[str, str, str], str, list[list[SavedRun]], float]]:
    """Style, label, the finished runs of each round, and by how much to move it, for each kind of control."""
    found: dict[str, list[list[SavedRun]]] = {}
    for group in family.controls:
        if group.finished:
            found.setdefault(group.first.name, []).append(group.finished)
    # Side by side, because controls share the ticket's sparsity; the one without a mask stands alone.
    shifts = {"permuted-weights": 0.025, "permuted-mask": 0.05, "random-mask": 0.075}
    return [
        (
            _style(runs[0][0]),
            f"control: {name}{', rewound, no mask' if name == 'dense' else ''}",
            runs,
            shifts.get(name, 0),
        )
        for name, runs in sorted(found.items())
    ]


def _draw_level(axes: Any, family: Family, key: str) -> None:
    level = numbers.spread([summary[key] for summary in family.dense.values()])
    if level is None:
        return
    label = f"dense run ({len(level.values)} seed{'s' * (len(level.values) != 1)})"
    axes.axhline(level.mean, color=_BLACK, lw=1.2, ls="--", label=label)
    if len(level.values) > 1:
        axes.axhspan(level.low, level.high, color=_BLACK, alpha=0.08, lw=0)


def _draw_points(
    axes: Any,
    places: Sequence[tuple[float, numbers.Spread]],
    style: tuple[str, str, str],
    label: str,
    *,
    line: bool,
) -> None:
    colour, marker, _ = style
    counts = sorted({len(found.values) for _, found in places})
    seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    xs, means = [x for x, _ in places], [found.mean for _, found in places]
    axes.errorbar(
        xs,
        means,
        _errors([found for _, found in places]),
        color=colour,
        marker=marker,
        ms=6,
        lw=1.5 if line else 0,
        elinewidth=1.2,
        capsize=3,
        label=f"{label} ({seeds} seed{'s' * (seeds != '1')})",
    )
    for x, found in places:
        axes.plot([x] * len(found.values), found.values, ".", color=colour, ms=4, alpha=0.5)


def overlap(found: Mapping[str, tuple[numbers.Spread, float]], title: str) -> bytes:
    """Jaccard indices of each layer beside what random masks would have."""
    figure = _figure(max(6, 1.1 * len(found) + 3), 4)
    axes = figure.subplots()
    places = np.arange(len(found))
    means = [measured.mean for measured, _ in found.values()]
    errors = _errors([measured for measured, _ in found.values()])
    axes.bar(places, means, 0.5, yerr=errors, capsize=4, color=_SKY, ecolor=_BLUE, label="between seeds")
    expected, look = [e for _, e in found.values()], {"color": _RED, "ms": 38, "mew": 2.5}
    axes.plot(places, expected, "_", **look, label="random masks, expected")
    axes.set_xticks(places, [name.replace(" layer", "\nlayer") for name in found])
    axes.set(ylabel="Jaccard index", title=title)
    axes.set_ylim(bottom=0)
    axes.margins(y=0.1)
    axes.grid(axis="y", alpha=0.3)
    return _png(figure, 2, markerscale=0.5)


def densities(family: Family, title: str) -> bytes:
    """Density of each layer after each round, mean and least to most."""
    finished = family.finished()
    names = list(numbers.layers(next(iter(finished.values()))[-1]))
    figure = _figure(max(6.5, 1.3 * len(names) + 2.5), 4.2)
    axes = figure.subplots()
    width = 0.8 / len(finished)
    for index, ((number, runs), colour) in enumerate(
        zip(finished.items(), _gradient(len(finished)), strict=True)
    ):
        found = [numbers.spread([float(numbers.layers(run)[name].mean()) for run in runs]) for name in names]
        places = np.arange(len(names)) + (index - (len(finished) - 1) / 2) * width
        look = {"color": colour, "ecolor": "#555555", "capsize": 2, "label": f"round {number}"}
        axes.bar(places, [f.mean for f in found], width * 0.92, yerr=_errors(found), **look)
    axes.set_xticks(np.arange(len(names)), [name.replace(" layer", "\nlayer") for name in names])
    axes.set(ylabel="kept weights, share of the layer", title=title)
    axes.grid(axis="y", alpha=0.3)
    return _png(figure, 6)


def inputs(family: Family, title: str) -> bytes:
    """Share of the first layer's weights that each input keeps, by round: mean over seeds, in percent."""
    finished = family.finished()
    shares = {number: [numbers.first_layers(run) for run in runs] for number, runs in finished.items()}
    networks = list(next(iter(shares.values()))[-1])
    last = next(reversed(finished.values()))
    constant = np.all([numbers.constant_inputs(run) for run in last], axis=0)
    count = max(len(next(iter(shares.values()))[-1][name]) for name in networks)
    names = numbers.input_names(family.env, count, len(constant))
    marked = [
        f"{name}  (constant)" if i < len(constant) and constant[i] else name for i, name in enumerate(names)
    ]
    figure = _figure(3.6 + len(networks) * (1.2 + 0.62 * len(shares)), min(40, 1.6 + 0.21 * count))
    panels = figure.subplots(1, len(networks), squeeze=False)[0]
    tables = {name: _shares(list(shares.values()), name, count) for name in networks}
    most = max(float(np.nanmax(values)) for values in tables.values())
    for index, (axes, (name, values)) in enumerate(zip(panels, tables.items(), strict=True)):
        image = axes.imshow(values, aspect="auto", cmap="cividis", vmin=0, vmax=most, interpolation="nearest")
        _write_values(axes, values, 0.55 * most)
        axes.set_xticks(np.arange(len(shares)), [f"{k}\nn={len(runs)}" for k, runs in shares.items()])
        axes.set(title=name, xlabel="round, n runs")
        axes.set_yticks(np.arange(count), marked if index == 0 else [""] * count, fontsize=7.5)
        for tick, is_constant in zip(axes.get_yticklabels(), constant, strict=False):
            tick.set_color("#777777" if is_constant else _BLACK)
    figure.colorbar(image, ax=panels, label="kept weights of the input, %", shrink=0.6)
    figure.suptitle(title)
    return _png(figure, 0)


def _shares(rounds: Sequence[Sequence[Mapping[str, np.ndarray]]], name: str, count: int) -> np.ndarray:
    """(count, rounds) percent of one network, mean over runs; nan where it has fewer inputs."""
    values = np.full((count, len(rounds)), np.nan)
    for column, runs in enumerate(rounds):
        mean = np.mean([run[name] for run in runs], axis=0)
        values[: len(mean), column] = 100 * mean
    return values


def _write_values(axes: Any, values: np.ndarray, dark: float) -> None:
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = "white" if value < dark else _BLACK
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=6.5, color=colour)
