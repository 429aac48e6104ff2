"""Every method on every environment: one table of environment steps per second.

    python -m bench.compare --out bench/results/table        (the peers come with: make peers)

The collector is measured twice, with its defaults and with the n, N and M that the tuner finds first. Per
environment all methods take turns in interleaved rounds (see ``bench.fps``); ratios are taken within a
round. The folder gets table.md, table.json and table.png.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import cartridge, compare_page
from bench.fps import Case, Options, default_setting, make_plan, measure_cases, require_any
from bench.harness.command import Problems, Turns, main, save
from bench.harness.results import console
from bench.tuning import tuner_config
from fastcollect.control.parallelism import Parallelism
from fastcollect.support.command import check_folder
from fastcollect.support.files import write_file
from fastcollect.tuning.autotuner import Tuner

GAME_BOY = "gameboy"
"""On its own: the project's own cartridge."""
_MUJOCO = ("HalfCheetah-v5", "reach-v3", "push-v3", "pick-place-v3")
_STOCK = ("gymnasium-single", "gymnasium-sync", "gymnasium-async", "sb3-dummy", "sb3-subproc")
_DESIGNS = ("naive", "sample-factory", "pufferlib", "envpool", "physics-limit")


@dataclass(frozen=True, kw_only=True)
class CompareArguments(Turns):
    """What ``python -m bench.compare`` takes."""

    out: Path
    """Folder for table.md, table.json and table.png; made if it is missing."""
    envs: tuple[str, ...] = ("CartPole-v1", _MUJOCO[0], "CrafterReward-v1", GAME_BOY, *_MUJOCO[1:])
    """Environments, a column each. "gameboy" alone plays the project's own cartridge."""
    methods: tuple[str, ...] = ("ours-serial", *_STOCK, *_DESIGNS)
    """What ours is compared with; what cannot run here is told below the table with the reason."""
    tune_seconds: float = 60.0
    """Seconds of search for each environment."""


def compare(arguments: CompareArguments) -> None:
    """Tune, measure, write. Raises ConfigError before anything is started, WorkerError if nothing ran."""
    with tempfile.TemporaryDirectory(prefix="fastcollect-cartridge-") as folder:
        envs = {name: name for name in arguments.envs}
        if GAME_BOY in envs:
            file = Path(folder) / "own.gb"
            file.write_bytes(cartridge.build())
            envs[GAME_BOY] = f"gameboy:{file}"
        check(arguments, envs)
        columns = []
        for number, (name, env) in enumerate(envs.items(), start=1):
            console(stderr=True).print(f"{name} ({number} of {len(envs)})", markup=False)
            columns.append(_column(name, env, arguments))
    require_any([row for column in columns for row in column["rows"]])
    result = save(arguments, arguments.out / "table.json", envs=columns)
    page = compare_page.markdown(result)
    write_file(arguments.out / "table.md", page)
    write_file(arguments.out / "table.png", compare_page.picture(result))
    print(page, end="")


def check(arguments: CompareArguments, envs: dict[str, str]) -> None:
    """Raises ConfigError with everything that is wrong. envs: see ``_column``, by name."""
    problems = Problems(arguments)
    with problems.kept("--out: "):
        check_folder(arguments.out)
    problems.positive("tune-seconds", arguments.tune_seconds)
    if not envs:
        problems.found.append("--envs names none")
    for env in envs.values():
        with problems.kept():
            make_plan(Options(env=env, methods=arguments.methods))
    problems.raise_any()


def _column(name: str, env: str, arguments: CompareArguments) -> dict[str, Any]:
    """One environment's rows. env: its id, which for the project's own cartridge is not its name."""
    with console(stderr=True).status(f"tuning for {arguments.tune_seconds:.0f} s"):
        best = Tuner(tuner_config(env, None, arguments.tune_seconds)).run().best.candidate
    cases = [
        _ours(env, compare_page.DEFAULT, default_setting(env)),
        _ours(env, compare_page.TUNED, best),
        *make_plan(Options(env=env, methods=arguments.methods)),
    ]
    rows = measure_cases(cases, arguments.seconds, arguments.rounds)
    for row in rows:
        # The path of a file that is gone tells nobody anything.
        row["env"] = name
        if "error" in row:
            row["error"] = row["error"].replace(env, name)
    return {"env": name, "rows": rows}


def _ours(env: str, label: str, size: Parallelism) -> Case:
    (case,) = make_plan(Options(env=env, methods=("ours",)))
    return case.resized(size, label)


if __name__ == "__main__":
    main(CompareArguments, compare, __doc__)
