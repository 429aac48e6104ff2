"""The tuning command: arguments, progress, run folder."""

from __future__ import annotations

import json
import math
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fastcollect.control.config import CollectorConfig
from fastcollect.control.parallelism import Parallelism
from fastcollect.envs.registry import EnvConfig
from fastcollect.memory.tokens import TokenChannel
from fastcollect.policies.base import PolicyConfig
from fastcollect.policies.choice import parse_policy
from fastcollect.support.command import check_folder, check_writable, parse_kwargs
from fastcollect.support.errors import ConfigError
from fastcollect.support.files import write_file
from fastcollect.tuning import profile
from fastcollect.tuning import report as tuner_report
from fastcollect.tuning.autotuner import Tuner, TunerConfig
from fastcollect.tuning.results import Outcome, Trial, explain


@dataclass(frozen=True, kw_only=True)
class TuneArguments:
    """What ``python tune_throughput.py`` takes."""

    env: str
    """Environment: a Meta-World task (reach-v3), any gymnasium id, or package.module:Name."""
    env_kwargs: tuple[str, ...] = ()
    """Arguments of the environment as name=value, for instance physics=fast."""
    policy: str | None = None
    """Hidden widths such as 256,256, "cnn" for images, or "random". Default: what suits the environment."""
    budget: float = 120.0
    """Seconds to search; the run takes at most one trial longer."""
    learner_load: float = 0.0
    """Share of its time (0 to 1) that a learner in the main process would compute; it is imitated."""
    memory_limit: float | None = None
    """GiB that all workers may use together. Default: 80 % of what this container has left."""
    block_length: int = 16
    """Steps in a block, as the training will use."""
    tokens: TokenChannel = "pipes"
    """What carries the tokens between processes: the kernel's pipes, or queues in shared memory, which take
    more time per token and are emptied by a worker that is killed inside one."""
    seed: int = 0
    """Seed of environments and policy."""
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Also write the result here: {"env", "best": {"n", "N", "M", "fps"}, "trials": [...]}."""
    runs: Path = Path("runs")
    """Folder in which the run's own folder is made: result.json, search.png, README.md."""


def tune(arguments: TuneArguments) -> None:
    """Search, show, save. Raises ConfigError before anything is started or written."""
    console = Console(stderr=True)
    check_writable(arguments.json)
    check_folder(arguments.runs)
    env = EnvConfig(id=arguments.env, kwargs=parse_kwargs(arguments.env_kwargs))
    policy = parse_policy(arguments.policy, arguments.env)
    limit = arguments.memory_limit
    if limit is not None and not 0 < limit < math.inf:
        raise ConfigError([f"memory_limit is {limit!r}; allowed: above 0 GiB"])
    memory = None if limit is None else int(limit * 2**30)
    config = TunerConfig(
        collector=CollectorConfig(
            env=env,
            policy=policy,
            block_length=arguments.block_length,
            seed=arguments.seed,
            tokens=arguments.tokens,
            stall_seconds=30.0,
        ),
        budget=arguments.budget,
        learner_load=arguments.learner_load,
        memory_limit=memory,
    )
    with _Progress(console, config.budget) as progress:
        outcome = Tuner(config, progress.update).run()
    _show(arguments, policy.name, outcome)
    _save_profile(arguments, env, policy, outcome)


def _save_profile(arguments: TuneArguments, env: EnvConfig, policy: PolicyConfig, outcome: Outcome) -> None:
    """Remember the winner, unless it was found under a learner's load, which other commands do not have."""
    best = outcome.best
    if arguments.learner_load or best.rung == 0:
        why = "a learner's load was imitated" if arguments.learner_load else "the budget allowed no race"
        print(f"profile not saved: {why}")
        return
    try:
        found = profile.Profile(parallelism=best.candidate, fps=best.fps)
        saved = profile.save(env, policy, found)
    except ConfigError as error:
        print(f"profile not saved: {error}", file=sys.stderr)
        return
    print(f"profile, bench.fps's default: {saved}")


class _Progress:
    """A bar of the budget with the time left, the trial at hand and the best so far."""

    def __init__(self, console: Console, budget: float) -> None:
        self._start, self._budget = time.monotonic(), budget
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[best]}"),
        )
        self._task = self._bar.add_task("starting", total=budget, best="")
        self._live = Live(self._bar, console=console, transient=True)

    def __enter__(self) -> _Progress:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def update(self, candidate: Parallelism, rung: int, trials: Sequence[Trial]) -> None:
        """Before each trial."""
        good = [t for t in trials if t.error is None]
        best = max(good, key=lambda t: (t.rung, t.score), default=None)
        self._bar.update(
            self._task,
            completed=min(self._budget, time.monotonic() - self._start),
            description=f"rung {rung}: {candidate}",
            best=f"best {best.fps:,.0f} steps/s at {best.candidate}" if best else "",
        )


def _show(arguments: TuneArguments, policy: str, outcome: Outcome) -> None:
    console = Console()
    label = " ".join([arguments.env, *arguments.env_kwargs])
    result = tuner_report.record(label, policy, outcome)
    result["env"] = arguments.env
    result["env_kwargs"] = list(arguments.env_kwargs)
    result["command"] = shlex.join(["python", *sys.argv])
    if arguments.json is not None:
        write_file(arguments.json, json.dumps(result, indent=2) + "\n")
    console.print(tuner_report.table(outcome))
    best, fps = outcome.best.candidate, outcome.best.fps
    console.print(
        f"[bold green]best for {label}, policy {policy}: {best}, {fps:,.0f} steps/s[/]",
        soft_wrap=True,
    )
    for line in explain(outcome):
        console.print(f"  {line}", highlight=False, soft_wrap=True)
    folder = _write_run(arguments, label, policy, outcome, result)
    console.print(f"run folder: {folder}", highlight=False, soft_wrap=True)


def _write_run(arguments: TuneArguments, label: str, policy: str, outcome: Outcome, result: dict) -> Path:
    name = "".join(c if c.isalnum() or c in "-_." else "_" for c in arguments.env)
    folder = arguments.runs / "tune" / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    write_file(folder / "result.json", json.dumps(result, indent=2) + "\n")
    title = f"{label}, policy {policy}: {outcome.best.candidate}, {outcome.best.fps:,.0f} steps/s"
    tuner_report.draw(outcome, title, folder / "search.png")
    why = "\n".join(f"- {line}" for line in explain(outcome))
    write_file(
        folder / "README.md",
        f"# {title}\n\n`{result['command']}`\n\n{why}\n\n![the search](search.png)\n\n"
        "`result.json` holds every trial, the machine, versions and commit.\n",
    )
    return folder
