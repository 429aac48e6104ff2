"""The tuning command: arguments, progress, run folder."""

import json
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fastcollect.control.config import CollectorConfig
from fastcollect.control.parallelism import Parallelism
from fastcollect.envs.registry import EnvConfig
from fastcollect.memory.tokens import TokenChannel
from fastcollect.policies.choice import parse_policy
from fastcollect.support.command import check_folder, check_writable, parse_kwargs
from fastcollect.support.errors import ConfigError
from fastcollect.support.files import file_name, write_file
from fastcollect.tuning import profile, report
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
    check_writable(arguments.json)
    check_folder(arguments.runs)
    env = EnvConfig(id=arguments.env, kwargs=parse_kwargs(arguments.env_kwargs))
    policy = parse_policy(arguments.policy, arguments.env)
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
        memory_limit=arguments.memory_limit,
    )
    outcome = _search(config)
    _show(arguments, policy.name, outcome)
    if arguments.learner_load or outcome.best.rung == 0:
        # Other commands have no learner's load.
        why = "a learner's load was imitated" if arguments.learner_load else "the budget allowed no race"
        print(f"profile not saved: {why}")
        return
    try:
        saved = profile.save(env, policy, outcome.best.candidate, outcome.best.fps)
        print(f"profile, bench.fps's default: {saved}")
    except ConfigError as error:
        print(f"profile not saved: {error}", file=sys.stderr)


def _search(config: TunerConfig) -> Outcome:
    """Run the tuner under a bar of its budget, which shows the trial at hand and the best so far."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[best]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    task = bar.add_task("starting", total=config.budget, best="")

    def update(candidate: Parallelism, rung: int, trials: Sequence[Trial]) -> None:
        good = [t for t in trials if t.error is None]
        best = max(good, key=lambda t: (t.rung, t.score), default=None)
        bar.update(
            task,
            completed=min(config.budget, tuner.elapsed),
            description=f"rung {rung}: {candidate}",
            best=f"best {best.fps:,.0f} steps/s at {best.candidate}" if best else "",
        )

    tuner = Tuner(config, update)
    with bar:
        return tuner.run()


def _show(arguments: TuneArguments, policy: str, outcome: Outcome) -> None:
    """Print what was found, and write the run's folder."""
    console = Console()
    result = report.record(arguments.env, policy, outcome)
    result["env_kwargs"] = list(arguments.env_kwargs)
    result["command"] = shlex.join(["python", *sys.argv])
    text = json.dumps(result, indent=2) + "\n"
    if arguments.json is not None:
        write_file(arguments.json, text)
    label = " ".join([arguments.env, *arguments.env_kwargs])
    title = f"{label}, policy {policy}: {outcome.best.candidate}, {outcome.best.fps:,.0f} steps/s"
    why = explain(outcome)
    console.print(report.table(outcome))
    console.print(f"[bold green]best for {title}[/]", soft_wrap=True)
    for line in why:
        console.print(f"  {line}", highlight=False, soft_wrap=True)
    folder = arguments.runs / "tune" / f"{file_name(arguments.env)}-{time.strftime('%Y%m%d-%H%M%S')}"
    write_file(folder / "result.json", text)
    report.draw(outcome, title, folder / "search.png")
    reasons = "".join(f"- {line}\n" for line in why)
    write_file(
        folder / "README.md",
        f"# {title}\n\n`{result['command']}`\n\n{reasons}\n![the search](search.png)\n\n"
        "`result.json` holds every trial, the machine, versions and commit.\n",
    )
    console.print(f"run folder: {folder}", highlight=False, soft_wrap=True)
