"""Updates a second: ours, SBX's and Stable-Baselines3's, on the same batches and widths, taking turns.

python -m bench.learner [--algo td3] --json FILE        (the peers come with: make peers)

Every method trains in a process of its own that lives for the whole comparison and rests while others are
measured. A turn begins with --settle seconds that do not count, and ends when its last update is computed.
Each samples a replay of its own. For every batch it updates twin critics, and with them actor, temperature
and targets (sac), or every second time actor and targets (td3). "ours-collecting" is the whole loop: env
workers step a real environment at the enforced ratio.
"ours-static" and "ours-rigl" have the same sparse masks at first; those of the latter evolve.
"""

import contextlib
import math
from dataclasses import dataclass
from functools import partial

from bench.fps import check_methods, require_any
from bench.harness.command import Output, Problems, Turns, main, save
from bench.harness.measure import MeasurementError, Outcome, Slice, started, take_turns
from bench.harness.results import Row, console, measured, rate_table, show
from bench.methods import names
from bench.methods.learners import Algo, LearnerRequest

RATE = "updates_per_second"


@dataclass(frozen=True, kw_only=True)
class LearnerArguments(Output, Turns):
    """What ``python -m bench.learner`` takes."""

    methods: tuple[str, ...] = tuple(names(LearnerRequest))
    """Any of ours-host and ours-device (where the replay lies), ours-static, ours-rigl, ours-collecting, sbx,
    sb3."""
    algo: Algo = "sac"
    """What they learn by."""
    batches: tuple[int, ...] = (256,)
    """Transitions in a batch."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of actor and critics."""
    rounds: int = 9
    """Rounds in which every method has its turn; medians are shown."""
    seconds: float = 4.0
    """Of each turn."""
    settle: float = 1.0
    """Seconds of training before each turn that are not measured; what was collected during the turns of
    others is learned from in them."""
    env: str = "reach-v3"
    """What ours-collecting steps."""
    updates_per_step: float = 0.0625
    """The ratio that ours-collecting keeps."""


def check(arguments: LearnerArguments) -> None:
    """Raises ConfigError naming every value that cannot work."""
    problems = Problems(arguments)
    check_methods(arguments.methods, names(LearnerRequest), problems)
    for name in ("batches", "hidden"):
        values = getattr(arguments, name)
        problems.require(min(values, default=0) >= 1, name, list(values), "one or more counts from 1")
    problems.positive("updates-per-step", arguments.updates_per_step)
    problems.require(0 <= arguments.settle < math.inf, "settle", arguments.settle, "0 and more")
    problems.raise_any()


def measure_batch(arguments: LearnerArguments, batch: int) -> list[Row]:
    """A row for each method, those that could not be measured with an "error" in place of numbers."""
    ready: dict[str, Slice] = {}
    outcomes: dict[str, Outcome] = {}
    fields = {name: getattr(arguments, name) for name in ("algo", "hidden", "env", "updates_per_step")}
    with contextlib.ExitStack() as stack:
        for name in arguments.methods:
            console(stderr=True).print(f"batch {batch}: starting {name}", markup=False)
            try:
                request = LearnerRequest(method=name, batch=batch, **fields)
                ready[name] = stack.enter_context(started([request]))
            except MeasurementError as error:
                outcomes[name] = f"{name}: {error}"
        settle, seconds = arguments.settle, arguments.seconds
        turns = {name: partial(part, settle, seconds) for name, part in ready.items()}
        outcomes |= take_turns(turns, arguments.rounds, settle + seconds, "updates/s")
    rows = [{"label": name, "method": name, "batch": batch} for name in arguments.methods]
    return measured(rows, outcomes, RATE)


def compare(arguments: LearnerArguments) -> None:
    """Measure, write, show. Raises ConfigError for wrong values, WorkerError if nothing ran."""
    check(arguments)
    parts = [measure_batch(arguments, batch) for batch in arguments.batches]
    rows = [row for part in parts for row in part]
    result = save(arguments, arguments.json, rows=rows)
    widths, rounds = "x".join(map(str, arguments.hidden)), f"{arguments.rounds} rounds"
    what = f"updates/s of {arguments.algo}, {widths}"
    title = f"{what}: medians of {rounds} of {arguments.seconds:g} s, ratios within a round"
    tables = [rate_table(title, part, RATE, ("method", "batch"), {}, digits=1) for part in parts]
    versions = {name: v for row in rows for name, v in row.get("versions", {}).items()}
    show(result, *tables, "  ".join(f"{name} {version}" for name, version in versions.items()))
    require_any(rows, RATE)


if __name__ == "__main__":
    main(LearnerArguments, compare, __doc__)
