"""Is the tuner's pick the best there is? The tuner's run, then an exhaustive sweep of its whole grid, then a
race of the pick and the sweep's best, which decides: a maximum over a noisy sweep would flatter itself.

    python -m bench.tuning --env reach-v3 --budget 120 --json FILE
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from bench.harness.command import Output, Problems, main, save
from bench.harness.results import console, show
from fastcollect import CollectorConfig, EnvConfig, Parallelism, WorkerError
from fastcollect.policies.choice import parse_policy
from fastcollect.tuning.autotuner import Tuner, TunerConfig
from fastcollect.tuning.results import Trial

_FINALISTS = 4


@dataclass(frozen=True, kw_only=True)
class TuningArguments(Output):
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


def tuner_config(env: str, policy: str | None, budget: float, trial_seconds: float = 1.0) -> TunerConfig:
    """The tuner's configuration. Raises ConfigError with everything that is wrong."""
    collector = CollectorConfig(env=EnvConfig(id=env), policy=parse_policy(policy, env))
    return TunerConfig(collector=collector, budget=budget, trial_seconds=trial_seconds)


def pick_over(final: Mapping[Parallelism, Trial], pick: Parallelism) -> dict[Parallelism, float]:
    """The pick's score by each finalist's, as they raced side by side."""
    return {candidate: final[pick].score / trial.score for candidate, trial in final.items()}


def compare(arguments: TuningArguments) -> None:
    """Tune, sweep, and let the two answers race."""
    problems = Problems(arguments)
    problems.positive("final-seconds", arguments.final_seconds)
    with problems.kept():
        config = tuner_config(arguments.env, arguments.policy, arguments.budget, arguments.trial_seconds)
    problems.raise_any()
    with console(stderr=True).status("") as status:

        def report(candidate: Parallelism, rung: int, trials: Sequence[Trial]) -> None:
            status.update(f"{phase}, {len(trials)} trials done: {candidate}")

        phase = "the tuner"
        tuner = Tuner(config, report)
        picked = tuner.run()
        phase = f"the whole grid of {len(tuner.grid) + 1}"
        swept = Tuner(config, report).sweep(tuner.grid).last()
        phase = f"a race of {arguments.final_seconds:g} s"
        pick = picked.best.candidate
        finalists = list(dict.fromkeys([pick, *list(swept)[:_FINALISTS]]))
        unbounded = replace(config, budget=1e6)  # or a finalist that starts late would be left out
        final = Tuner(unbounded, report).race(finalists, arguments.final_seconds).last()
    if error := final[pick].error:
        raise WorkerError(f"the pick failed in the race: {error}")
    final = {each: trial for each, trial in final.items() if trial.error is None}
    over, trials, raced = pick_over(final, pick), len(picked.trials), {}
    lines = []
    for each, trial in final.items():
        raced[str(each)] = {"fps": trial.fps, "slices": trial.slices, "pick_over_this": over[each]}
        turns = f"median of {len(trial.slices)} turns"
        lines.append(f"  {each}: {trial.fps:,.0f} steps/s ({turns}), pick / this = {over[each]:.3f}")
    least = min(over.values())
    tuned = {"pick": str(pick), "seconds": picked.seconds, "trials": trials}
    sweep = {str(each): {"score": trial.score, "fps": trial.fps} for each, trial in swept.items()}
    found = {"tuner": tuned, "sweep": sweep, "final": raced, "pick_over_best": least}
    result = save(arguments, arguments.json, policy=config.collector.policy.name, **found)
    best = f"the pick reaches {least:.3f} of the best of the exhaustive sweep"
    show(result, f"tuner: {pick} after {picked.seconds:.0f} s, {trials} trials", *lines, best)


if __name__ == "__main__":
    main(TuningArguments, compare, __doc__)
