"""Is the tuner's pick the best there is? The tuner's run, then an exhaustive sweep of its grid, then the
pick and the sweep's best in turn, which decides: a single maximum over a noisy sweep would flatter itself.

    python -m bench.tuning --env reach-v3 --budget 120 --json FILE
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from fastcollect.autotuner import Candidate, Trial, Tuner, TunerConfig
from fastcollect.command import check_writable, parse_policy, run, write_atomically
from fastcollect.config import CollectorConfig
from fastcollect.envs.registry import EnvConfig
from fastcollect.errors import ConfigError
from fastcollect.machine import machine


@dataclass(frozen=True, kw_only=True)
class TuningArguments:
    """What ``python -m bench.tuning`` takes."""

    env: str = "reach-v3"
    """Environment."""
    policy: str | None = None
    """Hidden widths or "random"; default: widths that suit the environment."""
    budget: float = 120.0
    """Seconds for the tuner."""
    repeats: int = 2
    """How often the sweep measures each candidate."""
    rounds: int = 7
    """How often the pick and the sweep's three best are measured in turn at the end."""
    seconds: float = 2.0
    """Length of each measurement of the last part."""
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Also write the result here."""


def compare(arguments: TuningArguments) -> None:
    """Tune, sweep, and compare the two answers."""
    check_writable(arguments.json)
    if arguments.repeats < 1 or arguments.rounds < 1:
        raise ConfigError(["repeats and rounds: allowed are 1 and more"])
    policy = parse_policy(arguments.policy, arguments.env)
    collector = CollectorConfig(env=EnvConfig(id=arguments.env), policy=policy)
    console = Console(stderr=True)
    with console.status("") as status:

        def report(candidate: Candidate, rung: int, trials: Sequence[Trial]) -> None:
            status.update(f"{phase}: trial {len(trials) + 1}, {candidate}")

        phase = "tuner"
        tuner = Tuner(TunerConfig(collector=collector, budget=arguments.budget), report)
        picked = tuner.run()
        grid = sorted({*tuner.grid, *(t.candidate for t in picked.trials)})
        phase = f"sweep of {len(grid)} candidates, {arguments.repeats} times"
        sweep = Tuner(TunerConfig(collector=collector), report).sweep(grid, arguments.repeats)
        medians = sweep.medians()
        best = sorted(medians, key=lambda c: -medians[c])[:3]
        phase = "in turn"
        config = TunerConfig(collector=collector, trial_seconds=arguments.seconds)
        finals = list(dict.fromkeys([picked.best, *best]))
        final = Tuner(config, report).sweep(finals, arguments.rounds)
    fps = {c: [t.fps for t in final.trials if t.candidate == c] for c in finals}
    ratios = {
        c: statistics.median(a / b for a, b in zip(fps[picked.best], fps[c], strict=True)) for c in finals
    }
    result = {
        "machine": machine(),
        "env": arguments.env,
        "policy": policy.name,
        "tuner": {"pick": str(picked.best), "seconds": picked.seconds, "trials": len(picked.trials)},
        "sweep": {str(c): medians[c] for c in sorted(medians, key=lambda c: -medians[c])},
        "final": {str(c): {"fps": fps[c], "pick_over_this": ratios[c]} for c in finals},
        "pick_over_best": min(ratios.values()),
    }
    out = Console()
    out.print(f"tuner: {picked.best} after {picked.seconds:.0f} s, {len(picked.trials)} trials")
    for c in finals:
        out.print(f"  {c}: median {statistics.median(fps[c]):,.0f} steps/s, pick / this = {ratios[c]:.3f}")
    out.print(f"[bold]the pick reaches {result['pick_over_best']:.3f} of the best of the exhaustive sweep[/]")
    if arguments.json is not None:
        write_atomically(arguments.json, json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    arguments = tyro.cli(TuningArguments, description=__doc__)
    run(lambda: compare(arguments))
