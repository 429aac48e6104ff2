"""Every method on every environment: one table of environment steps per second.

    python -m bench.compare --out bench/results/table        (the peers come with: make peers)

The collector is measured twice, with its defaults and with the n, N and M that the tuner finds first. Per
environment all methods take turns in interleaved rounds (see ``bench.fps``); ratios are taken within a
round. The folder gets table.md, table.json and table.png.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import cartridge
from bench.fps import Options, default_setting, make_plan, measure_cases, require_any
from bench.harness.command import Problems, Turns, main, save
from bench.harness.results import Row, console, machine_line, panels, png
from bench.tuning import tuner_config
from fastcollect.support.command import check_folder
from fastcollect.support.files import write_file
from fastcollect.tuning.autotuner import Tuner

GAME_BOY = "gameboy"
_ROBOTS = ("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Ant-v5")
_SAWYER = ("reach-v3", "push-v3", "pick-place-v3")
_STOCK = ("gymnasium-single", "gymnasium-sync", "gymnasium-async", "sb3-dummy", "sb3-subproc")
_DESIGNS = ("naive", "sample-factory", "pufferlib", "envpool", "physics-limit")
DEFAULT, TUNED = "ours, default", "ours, tuned"
Column = Mapping[str, Row]
"""One environment's rows by their labels, which are the same in every column."""
_SPEED = "{median:,.0f} ({min:,.0f} \u2013 {max:,.0f})"


@dataclass(frozen=True, kw_only=True)
class CompareArguments(Turns):
    """What ``python -m bench.compare`` takes."""

    out: Path
    """Folder for table.md, table.json and table.png; made if it is missing."""
    envs: tuple[str, ...] = ("CartPole-v1", *_ROBOTS, "CrafterReward-v1", GAME_BOY, *_SAWYER)
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
    page = markdown(result)
    write_file(arguments.out / "table.md", page)
    write_file(arguments.out / "table.png", picture(result))
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
    (ours,) = make_plan(Options(env=env, methods=("ours",)))
    cases = [ours.resized(default_setting(env), DEFAULT), ours.resized(best, TUNED)]
    cases += make_plan(Options(env=env, methods=arguments.methods))
    rows = measure_cases(cases, arguments.seconds, arguments.rounds)
    for row in rows:
        # The path of a file that is gone tells nobody anything.
        row["env"] = name
        if "error" in row:
            row["error"] = row["error"].replace(env, name)
    return {"env": name, "rows": rows}


def _columns(document: Mapping[str, Any]) -> tuple[dict[str, Column], list[str]]:
    """The columns by environment, and every label in the order of the first column that has it."""
    columns: dict[str, Column] = {}
    for each in document["envs"]:
        columns[each["env"]] = {row["label"]: row for row in each["rows"]}
    return columns, list(dict.fromkeys(label for column in columns.values() for label in column))


def _ratio(column: Column, row: Row) -> str:
    """The tuned collector's speed by this row's: the median of the rounds' ratios."""
    ratio = column.get(TUNED, {}).get("ratios", {}).get(row["label"])
    return f"{ratio:.2f}" if ratio else ""


def markdown(document: Mapping[str, Any]) -> str:
    """Steps a second; ratios; the winner's settings and what each method costs; what was not measured.

    document: what table.json holds; of each environment the rows of ``bench.fps``.
    """
    columns, labels = _columns(document)
    keys = ("n", "N", "M", "policy")
    settings = [[env, *(str(column[TUNED][key]) for key in keys)] for env, column in columns.items()]

    def table(title: str, text: Callable[[Column, Row], str], but: str = "") -> str:
        """A line for each label but one, its text in each column; empty where it was not measured."""
        lines = []
        for label in (each for each in labels if each != but):
            cells = [(column, column.get(label)) for column in columns.values()]
            lines.append([label, *(text(column, row) if row and row["fps"] else "" for column, row in cells)])
        return _markdown_table([title, *columns], lines)

    def cost(_: Column, row: Row) -> str:
        each = row["memory_mib"] / row["num_envs"]
        return f"{row['start_seconds']:.1f} / {row['cpus_busy']:.1f} / {each:.1f}"

    parts = [
        f"Medians of {document['rounds']} interleaved rounds of {document['seconds']:g} s, (min \u2013 max).",
        table("steps per second", lambda _, row: _SPEED.format(**row["fps"])),
        "The tuned collector over each method, ratios taken within a round:",
        table(f"{TUNED} \u00f7", _ratio, but=TUNED),
        "n environments in each of N workers, M model workers, as the tuner chose them:",
        _markdown_table(["environment", *keys], settings),
        "Start-up in seconds / processors in use / MiB an environment (shared pages counted once):",
        table("costs", cost),
        *_missing(columns),
        f"{machine_line(document['machine'])}.  `{document['command']}`",
    ]
    return "\n\n".join(parts) + "\n"


def _markdown_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, rule, *lines])


def _missing(columns: Mapping[str, Column]) -> list[str]:
    """One line for each method and reason, with the environments it holds for."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for env, column in columns.items():
        for label, row in column.items():
            if not row["fps"]:
                reasons.setdefault((label, row["error"]), []).append(env)
    lines = [f"- {label} ({', '.join(names)}): {why}" for (label, why), names in reasons.items()]
    return ["Not measured:", "\n".join(lines)] if lines else []


def picture(document: Mapping[str, Any]) -> bytes:
    """A PNG: each environment a panel, each method a bar of its steps per second."""
    columns, labels = _columns(document)
    size = 2.4 + 2.3 * len(columns), 0.9 + 0.33 * len(labels)
    figure, (drawn,) = panels(1, len(columns), size, sharey=True)
    colours = ["#2f7ebc" if label.startswith("ours") else "#b0b0b0" for label in labels]
    for panel, (env, column) in zip(drawn, columns.items(), strict=True):
        rows = [column.get(label) for label in labels]
        values = [row["fps"]["median"] if row and row["fps"] else 0.0 for row in rows]
        panel.barh(range(len(labels)), values, color=colours)
        panel.set_title(env, fontsize=9)
        panel.tick_params(axis="x", labelsize=7)
        panel.ticklabel_format(axis="x", style="plain")
        panel.locator_params(axis="x", nbins=3)
        for at, value in enumerate(values):
            panel.text(value, at, f" {value:,.0f}" if value else " none", va="center", fontsize=6.5)
        panel.set_xlim(0, 1.35 * max(values, default=1.0) or 1.0)
    drawn[0].set_yticks(range(len(labels)), labels, fontsize=8)
    drawn[0].invert_yaxis()
    machine = document["machine"]
    label = f"environment steps per second, {machine['cpus']} processors ({machine['cpu']})"
    figure.supxlabel(label, fontsize=9)
    return png(figure)


if __name__ == "__main__":
    main(CompareArguments, compare, __doc__)
