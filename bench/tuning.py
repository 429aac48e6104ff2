"""Is the tuner's pick the best there is? The tuner's run, then an exhaustive sweep of its whole grid, then a
race of the pick and the sweep's best, which decides: a maximum over a noisy sweep would flatter itself.

    python -m bench.tuning --env reach-v3 --budget 120 --json FILE
"""

from __future__ import annotations

import fastcollect.support.project_environment  # noqa: F401  (first: it may change the interpreter)

# isort: split
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from fastcollect.control.config import CollectorConfig
from fastcollect.control.parallelism import Parallelism
from fastcollect.envs.registry import EnvConfig
from fastcollect.policies.choice import parse_policy
from fastcollect.support.command import check_writable, run
from fastcollect.support.files import write_file
from fastcollect.support.machine import machine
from fastcollect.tuning.autotuner import Tuner, TunerConfig
from fastcollect.tuning.results import Trial

_FINALISTS = 4


@dataclass(frozen=True, kw_only=True)
class TuningArguments:
    """What ``python -m bench.tuning`` takes."""

    env: str = "reach-v3"
    """Environment."""
    policy: str | None = None
    """Hidden widths, "cnn" or "random"; default: what suits the environment."""
    budget: float = 120.0
    """Seconds for the tuner."""
    trial_seconds: float = 1.0
    """Seconds of each measurement, of the tuner and of the sweep."""
    final_seconds: float = 60.0
    """Seconds that the pick and the sweep's four best take turns at the end."""
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Also write the result here."""


def compare(arguments: TuningArguments) -> None:
    """Tune, sweep, and let the two answers race."""
    check_writable(arguments.json)
    policy = parse_policy(arguments.policy, arguments.env)
    config = TunerConfig(
        collector=CollectorConfig(env=EnvConfig(id=arguments.env), policy=policy),
        budget=arguments.budget,
        trial_seconds=arguments.trial_seconds,
    )
    with Console(stderr=True).status("") as status:

        def report(candidate: Parallelism, rung: int, trials: Sequence[Trial]) -> None:
            status.update(f"{phase}, {len(trials)} trials done: {candidate}")

        phase = "the tuner"
        tuner = Tuner(config, report)
        picked = tuner.run()
        phase = f"the whole grid of {len(tuner.grid) + 1}"
        swept = Tuner(config, report).sweep(tuner.grid).last()
        best = list(swept)[:_FINALISTS]
        phase = f"a race of {arguments.final_seconds:g} s"
        finalists = list(dict.fromkeys([picked.best.candidate, *best]))
        final = Tuner(config, report).race(finalists, arguments.final_seconds).last()
    pick = final[picked.best.candidate].score
    ratios = {c: pick / trial.score for c, trial in final.items()}
    result = {
        "machine": machine(),
        "env": arguments.env,
        "policy": policy.name,
        "tuner": {
            "pick": str(picked.best.candidate),
            "seconds": picked.seconds,
            "trials": len(picked.trials),
        },
        "sweep": {str(c): {"score": t.score, "fps": t.fps} for c, t in swept.items()},
        "final": {
            str(c): {"fps": t.fps, "slices": t.slices, "pick_over_this": ratios[c]} for c, t in final.items()
        },
        "pick_over_best": min(ratios.values()),
    }
    out = Console()
    out.print(f"tuner: {picked.best.candidate} after {picked.seconds:.0f} s, {len(picked.trials)} trials")
    for c, trial in final.items():
        turns = f"median of {len(trial.slices)} turns"
        out.print(f"  {c}: {trial.fps:,.0f} steps/s ({turns}), pick / this = {ratios[c]:.3f}")
    out.print(f"[bold]the pick reaches {result['pick_over_best']:.3f} of the best of the exhaustive sweep[/]")
    if arguments.json is not None:
        write_file(arguments.json, json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    arguments = tyro.cli(TuningArguments, description=__doc__, prog="python -m bench.tuning")
    run(lambda: compare(arguments))
