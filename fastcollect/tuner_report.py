"""What a tuning run shows: a table, sentences, a picture, and a JSON record."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from fastcollect.autotuner import Candidate, Outcome, Trial
from fastcollect.machine import machine

_STATES = {
    "stepping": "#2f7ebc",
    "inferring": "#f28e2b",
    "waiting_actions": "#e0c04c",
    "waiting_learner": "#b07aa1",
}


def record(env: str, policy: str, outcome: Outcome) -> dict[str, Any]:
    """The run as JSON: {"env", "policy", "best": {"n", "N", "M", "fps"}, "trials": [...], "machine"}."""
    return {
        "env": env,
        "policy": policy,
        "best": {**_nnm(outcome.best), "fps": round(outcome.fps, 1)},
        "untried": outcome.untried,
        "seconds": round(outcome.seconds, 1),
        "trials": [
            {
                **_nnm(t.candidate),
                "fps": round(t.fps, 1),
                "rung": t.rung,
                "seconds": round(t.seconds, 3),
                "start_seconds": round(t.start_seconds, 3),
                "rss_mib": round(t.rss / 2**20, 1),
                "shares": t.shares,
                "error": t.error,
            }
            for t in outcome.trials
        ],
        "machine": machine(),
    }


def _nnm(candidate: Candidate) -> dict[str, int]:
    return {
        "n": candidate.num_envs,
        "N": candidate.num_env_workers,
        "M": candidate.num_model_workers,
    }


def table(outcome: Outcome, rows: int = 12) -> Table:
    """The best candidates, by the last rung that each reached and its median there."""
    medians = outcome.medians()
    by_candidate: dict[Candidate, list[Trial]] = {}
    for trial in outcome.trials:
        by_candidate.setdefault(trial.candidate, []).append(trial)
    rung = {c: max(t.rung for t in trials) for c, trials in by_candidate.items()}
    order = sorted(by_candidate, key=lambda c: (rung[c], medians[c]), reverse=True)
    out = Table(caption=_caption(len(order), rows, outcome), box=SIMPLE)
    for name in ("n", "N", "M", "rung", "steps/s", "spread", "stepping", "inferring", "waiting", "MiB"):
        out.add_column(name, justify="right", no_wrap=True)
    for candidate in order[:rows]:
        trials = [t for t in by_candidate[candidate] if t.rung == rung[candidate]]
        out.add_row(*_row(candidate, trials, medians[candidate]), style=_style(candidate, outcome))
    return out


def _caption(tried: int, rows: int, outcome: Outcome) -> str:
    hidden = f"{tried - rows} more tried, " if tried > rows else ""
    return f"{hidden}{outcome.untried} left untried, {outcome.seconds:.0f} s"


def _style(candidate: Candidate, outcome: Outcome) -> str | None:
    return "bold green" if candidate == outcome.best else None


def _row(candidate: Candidate, trials: list[Trial], median: float) -> list[str]:
    last = trials[-1]
    cells = [*(str(x) for x in _nnm(candidate).values()), str(last.rung)]
    if last.error:
        return [*cells, "failed"]
    fps = [t.fps for t in trials]
    worker = last.shares["env_worker"]
    waiting = worker["waiting_actions"] + worker["waiting_learner"]
    return [
        *cells,
        f"{median:,.0f}",
        f"{(max(fps) - min(fps)) / median:.0%}" if len(fps) > 1 else "",
        *(f"{share:.0%}" for share in (worker["stepping"], worker["inferring"], waiting)),
        f"{last.rss / 2**20:.0f}",
    ]


def draw(outcome: Outcome, title: str, file: Path) -> None:
    """The search as a PNG: steps per second against n for each (N, M), and where the time went."""
    # The object interface needs no display, unlike pyplot.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    search, time = figure.subplots(1, 2, width_ratios=(3, 2))
    medians = outcome.medians()
    for (workers, models), candidates in _families(medians):
        xs = [c.num_envs for c in candidates]
        style = "-o" if models == 0 else "--s"
        search.plot(xs, [medians[c] for c in candidates], style, ms=4, lw=1, label=f"N={workers} M={models}")
    search.plot(
        outcome.best.num_envs, outcome.fps, "*", ms=16, color="crimson", label=f"best: {outcome.best}"
    )
    search.set(xscale="log", xlabel="n, environments per worker", ylabel="environment steps per second")
    ticks = sorted({c.num_envs for c in medians})
    search.set_xticks(ticks, [str(n) for n in ticks])
    search.minorticks_off()
    search.set_ylim(bottom=0)
    search.legend(fontsize=8)
    search.grid(alpha=0.3)
    _draw_shares(time, outcome, medians)
    figure.suptitle(title)
    figure.savefig(file, dpi=120)


def _families(medians: dict[Candidate, float]) -> Iterable[tuple[tuple[int, int], list[Candidate]]]:
    keys = sorted({(c.num_env_workers, c.num_model_workers) for c in medians})
    for key in keys:
        yield key, sorted(c for c in medians if (c.num_env_workers, c.num_model_workers) == key)


def _draw_shares(axes: Any, outcome: Outcome, medians: dict[Candidate, float]) -> None:
    last = {t.candidate: t for t in outcome.trials if t.error is None}
    best = sorted(last, key=lambda c: medians[c])[-8:]
    left = [0.0] * len(best)
    for state, colour in _STATES.items():
        values = [last[c].shares["env_worker"][state] for c in best]
        axes.barh([str(c) for c in best], values, left=left, color=colour, label=state.replace("_", " "))
        left = [a + b for a, b in zip(left, values, strict=True)]
    axes.set(xlim=(0, 1), xlabel="share of the env workers' time")
    axes.tick_params(axis="y", labelsize=8)
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
