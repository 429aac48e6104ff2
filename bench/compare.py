"""Every method on every environment: one table of environment steps per second.

    python -m bench.compare --out bench/results/table        (the peers come with: make peers)

The engine is measured twice, with its defaults and with the n, N and M that the tuner finds first. Per
environment all methods take turns in interleaved rounds (see ``bench.fps``); ratios are taken within a
round. The folder gets table.md, table.csv, table.json and table.png.
"""

from __future__ import annotations

import fastcollect.support.project_environment  # noqa: F401  (first: it may change the interpreter)

# isort: split
import contextlib
import json
import shlex
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from bench import cartridge, compare_page
from bench.fps import Progress, fit_envpool, measure_rows, report
from bench.plan import Options, Row, default_setting, make_plan
from bench.table import console
from fastcollect.control.config import CollectorConfig
from fastcollect.envs.registry import EnvConfig
from fastcollect.policies.choice import parse_policy
from fastcollect.support.command import check_folder, run
from fastcollect.support.errors import ConfigError, WorkerError
from fastcollect.support.files import write_file
from fastcollect.support.machine import machine
from fastcollect.tuning.autotuner import Tuner, TunerConfig

GAME_BOY = "gameboy"
"""On its own: the project's own cartridge."""
DEFAULT = "engine, default"


@dataclass(frozen=True, kw_only=True)
class CompareArguments:
    """What ``python -m bench.compare`` takes."""

    out: Path
    """Folder for table.md, table.csv, table.json and table.png; made if it is missing."""
    envs: tuple[str, ...] = (
        "CartPole-v1",
        "HalfCheetah-v5",
        "CrafterReward-v1",
        GAME_BOY,
        "reach-v3",
        "push-v3",
        "pick-place-v3",
    )
    """Environments, a column each. "gameboy" alone plays the project's own cartridge."""
    methods: tuple[str, ...] = (
        "engine-serial",
        "gymnasium-single",
        "gymnasium-sync",
        "gymnasium-async",
        "sb3-dummy",
        "sb3-subproc",
        "naive",
        "sample-factory",
        "pufferlib",
        "envpool",
        "physics-limit",
    )
    """What the engine is compared with; what cannot run here is told below the table with the reason."""
    seconds: float = 3.0
    """Seconds on the clock for each method in each round."""
    rounds: int = 3
    """Rounds; medians are shown."""
    tune_seconds: float = 60.0
    """Seconds of search for each environment."""


def compare(arguments: CompareArguments, command: str) -> None:
    """Tune, measure, write. Raises ConfigError before anything is started, WorkerError if nothing ran."""
    check_folder(arguments.out)
    with cartridge_file(arguments.envs) as own:
        plans = _plans(arguments, own)
        found = []
        for number, (name, env) in enumerate(plans.items(), start=1):
            console(stderr=True).print(f"{name} ({number} of {len(plans)})", markup=False)
            found.append(_column(name, env, arguments))
    document = {
        "machine": machine(),
        "command": command,
        "seconds": arguments.seconds,
        "rounds": arguments.rounds,
        "envs": found,
    }
    if not any(row["fps"] for column in found for row in column["rows"]):
        raise WorkerError("none of the methods could be measured here")
    page = compare_page.markdown(document)
    write_file(arguments.out / "table.json", json.dumps(document, indent=2) + "\n")
    write_file(arguments.out / "table.csv", compare_page.csv_text(document))
    write_file(arguments.out / "table.md", page)
    write_file(arguments.out / "table.png", compare_page.picture(document))
    print(page, end="")


@contextlib.contextmanager
def cartridge_file(envs: tuple[str, ...]) -> Iterator[Path]:
    """Where the project's own cartridge is, if it is asked for; removed at the end."""
    with tempfile.TemporaryDirectory(prefix="fastcollect-cartridge-") as folder:
        file = Path(folder) / "own.gb"
        if GAME_BOY in envs:
            file.write_bytes(cartridge.build())
        yield file


def _plans(arguments: CompareArguments, own: Path) -> dict[str, str]:
    """Column name -> environment id. Raises ConfigError with everything that is wrong."""
    envs = {name: f"gameboy:{own}" if name == GAME_BOY else name for name in arguments.envs}
    problems: list[str] = []
    for env in envs.values():
        try:
            make_plan(_options(arguments, env))
        except ConfigError as error:
            problems += error.problems
    if not arguments.tune_seconds > 0:
        problems.append(f"--tune-seconds is {arguments.tune_seconds}; allowed: above 0")
    if problems or not envs:
        raise ConfigError(list(dict.fromkeys(problems)) or ["--envs names none"])
    return envs


def _options(arguments: CompareArguments, env: str, **changes: Any) -> Options:
    methods = ",".join(arguments.methods)
    options = Options(env=env, methods=methods, seconds=arguments.seconds, rounds=arguments.rounds)
    return replace(options, **changes)


def _column(name: str, env: str, arguments: CompareArguments) -> dict[str, Any]:
    """One environment's report."""
    rows = [_engine(arguments, env, DEFAULT, default_setting(env))]
    rows.append(_engine(arguments, env, compare_page.TUNED, _tune(env, arguments.tune_seconds)))
    rows += make_plan(_options(arguments, env))
    with Progress(console(stderr=True), rows, arguments.rounds) as progress:
        rows = [fit_envpool(row, progress) for row in rows]
        results = measure_rows(rows, arguments.rounds, progress)
    column = report(rows, results, _options(arguments, env), "")
    for row in column["rows"]:
        # The path of a file that is gone tells nobody anything.
        row["env"] = name
        if "error" in row:
            row["error"] = row["error"].replace(env, name)
    return {"env": name, "rows": column["rows"], "ratios": column["ratios"]}


def _engine(arguments: CompareArguments, env: str, label: str, setting: tuple[int, int, int]) -> Row:
    n, workers, models = setting
    options = _options(
        arguments, env, methods="engine", num_envs=n, num_env_workers=workers, num_model_workers=models
    )
    (row,) = make_plan(options)
    return replace(row, label=label)


def _tune(env: str, seconds: float) -> tuple[int, int, int]:
    policy = parse_policy(None, env)
    config = TunerConfig(collector=CollectorConfig(env=EnvConfig(id=env), policy=policy), budget=seconds)
    with console(stderr=True).status(f"tuning for {seconds:.0f} s"):
        best = Tuner(config).run().best.candidate
    return best.n, best.N, best.M


if __name__ == "__main__":
    chosen = tyro.cli(CompareArguments, prog="python -m bench.compare", description=__doc__)
    run(lambda: compare(chosen, f"python -m bench.compare {shlex.join(sys.argv[1:])}"))
