"""What a tuning run shows: a table, sentences, a picture, and a JSON record."""

from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Column, Table

from fastcollect.support.machine import machine
from fastcollect.tuning.results import Outcome, Trial

STATES = {
    "stepping": "#2f7ebc",
    "inferring": "#f28e2b",
    "waiting_actions": "#e0c04c",
    "waiting_learner": "#b07aa1",
}

_COLUMNS = ("n", "N", "M", "rung", "steps/s", "spread", "/ best", "stepping", "inferring", "waiting", "MiB")


def record(env: str, policy: str, outcome: Outcome) -> dict[str, Any]:
    """The run as JSON: {"env", "policy", "best": {"n", "N", "M", "fps"}, "trials": [...], "machine"}."""
    return {
        "env": env,
        "policy": policy,
        "best": {**outcome.best.candidate.as_dict(), "fps": round(outcome.best.fps, 1)},
        "untried": outcome.untried,
        "seconds": round(outcome.seconds, 1),
        "trials": [
            {
                **t.candidate.as_dict(),
                "fps": round(t.fps, 1),
                "rung": t.rung,
                "score": round(t.score, 4),
                "slices": [round(fps, 1) for fps in t.slices],
                "start_seconds": round(t.start_seconds, 3),
                "rss_mib": round(t.rss / 2**20, 1),
                "shares": t.shares,
                "error": t.error,
            }
            for t in outcome.trials
        ],
        "machine": machine(),
    }


def table(outcome: Outcome, rows: int = 12) -> Table:
    """The best candidates, by the last rung that each reached and their speed there."""
    last = list(outcome.last().values())
    hidden = f"{len(last) - rows} more tried, " if len(last) > rows else ""
    caption = f"{hidden}{outcome.untried} left untried, {outcome.seconds:.0f} s"
    columns = [Column(name, justify="right", no_wrap=True) for name in _COLUMNS]
    out = Table(*columns, caption=caption, box=None)
    for trial in last[:rows]:
        style = "bold green" if trial is outcome.best else None
        out.add_row(*_row(trial, outcome.ratio(trial.candidate)), style=style)
    return out


def _row(trial: Trial, ratio: float) -> list[str]:
    cells = [*(str(x) for x in trial.candidate.as_dict().values()), str(trial.rung)]
    if trial.error:
        return [*cells, "failed"]
    worker = trial.shares["env_worker"]
    waiting = worker["waiting_actions"] + worker["waiting_learner"]
    return [
        *cells,
        f"{trial.fps:,.0f}",
        f"{trial.spread:.0%}" if len(trial.slices) > 1 else "",
        f"{ratio:.2f}",
        *(f"{share:.0%}" for share in (worker["stepping"], worker["inferring"], waiting)),
        f"{trial.rss / 2**20:.0f}",
    ]


def draw(outcome: Outcome, title: str, file: Path) -> None:
    """The search as a PNG: steps per second against n for each (N, M), and where the time went."""
    from matplotlib.figure import Figure  # unlike pyplot, it needs no display

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    search, time = figure.subplots(1, 2, width_ratios=(3, 2))
    ratios = {c: outcome.ratio(c) for c, trial in outcome.last().items() if trial.error is None}
    for workers, models in sorted({(c.N, c.M) for c in ratios}):
        line = {c.n: ratios[c] for c in sorted(ratios) if (workers, models) == (c.N, c.M)}
        style = "-o" if models == 0 else "--s"
        search.plot([*line], [*line.values()], style, ms=4, lw=1, label=f"N={workers} M={models}")
    best = outcome.best.candidate
    search.plot(best.n, 1, "*", ms=16, color="crimson", label=f"best: {best}")
    search.set(xscale="log", xlabel="n, environments per worker", ylim=(0, None))
    search.set_ylabel("steps per second, over the winner's beside it")
    ticks = sorted({c.n for c in ratios})
    search.set_xticks(ticks, [str(n) for n in ticks])
    search.minorticks_off()
    search.legend(fontsize=8)
    search.grid(alpha=0.3)
    shown = [outcome.last()[c] for c in list(ratios)[7::-1]]
    left = np.zeros(len(shown))
    for state, colour in STATES.items():
        values = [t.shares["env_worker"][state] for t in shown]
        labels = [str(t.candidate) for t in shown]
        time.barh(labels, values, left=left, color=colour, label=state.replace("_", " "))
        left += values
    time.set(xlim=(0, 1), xlabel="share of the env workers' time, best on top")
    time.tick_params(axis="y", labelsize=8)
    time.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
    figure.suptitle(title)
    figure.savefig(file, dpi=120)
