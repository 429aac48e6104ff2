"""SAC updates a second: ours, SBX's and Stable-Baselines3's, on the same batches and widths, taking turns.

python -m bench.learner --json FILE        (the peers come with: make peers)

Every method trains in a process of its own that lives for the whole comparison and rests while others are
measured. A turn begins with --settle seconds that do not count, and ends when its last update is computed.
Each samples a replay of its own and updates twin critics, actor, temperature and targets once for every
batch. "ours-collecting" is the whole loop: env workers step a real environment at the enforced ratio.
"""

from __future__ import annotations

import fastcollect.support.project_environment  # noqa: F401  (first: it may change the interpreter)

# isort: split
import contextlib
import json
import math
import os
import select
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import tyro
from rich.table import Table

from bench.isolated import MeasurementError, peer_python
from bench.table import console, machine_line, ratios, summary
from fastcollect.support.command import check_writable, run
from fastcollect.support.errors import ConfigError
from fastcollect.support.files import write_file
from fastcollect.support.machine import machine

METHODS = ("ours-host", "ours-device", "ours-collecting", "sbx", "sb3")
_ROOT = Path(__file__).resolve().parent.parent
_START_SECONDS = 300.0
_SPARE_SECONDS = 120.0


@dataclass(frozen=True, kw_only=True)
class LearnerArguments:
    """What ``python -m bench.learner`` takes."""

    methods: tuple[str, ...] = METHODS
    """Any of ours-host and ours-device (where the replay lies), ours-collecting, sbx, sb3."""
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
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Also write the result here; whole or not at all."""


@dataclass(frozen=True)
class Settings:
    """What every method is built from. rows: of its replay. peer_updates: that a peer makes in one call."""

    batch: int
    hidden: tuple[int, ...]
    env: str
    updates_per_step: float
    observations: int = 39
    actions: int = 4
    rows: int = 100_000
    learning_rate: float = 1e-3
    target_rate: float = 0.01
    discount: float = 0.97
    peer_updates: int = 64


class MethodError(RuntimeError):
    """A method gave no number; the text says why."""


def check(arguments: LearnerArguments) -> None:
    """Raises ConfigError naming every value that cannot work."""
    problems = [
        f"--methods has {name!r}; allowed: {', '.join(METHODS)}"
        for name in arguments.methods
        if name not in METHODS
    ]
    sizes = {"batches": arguments.batches, "hidden": arguments.hidden, "rounds": (arguments.rounds,)}
    problems += [
        f"--{name} is {list(values)}; allowed: one or more counts from 1"
        for name, values in sizes.items()
        if not values or min(values) < 1
    ]
    for name in ("seconds", "updates_per_step"):
        value = getattr(arguments, name)
        if not 0 < value < math.inf:
            problems.append(f"--{name.replace('_', '-')} is {value}; allowed: above 0")
    if not 0 <= arguments.settle < math.inf:
        problems.append(f"--settle is {arguments.settle}; allowed: 0 and more")
    try:
        check_writable(arguments.json)
    except ConfigError as error:
        problems += [f"--json: {problem}" for problem in error.problems]
    if problems:
        raise ConfigError(problems)


class Method:
    """One method's process; a context manager that ends it."""

    def __init__(self, name: str, settings: Settings) -> None:
        self.name, self._buffer = name, b""
        peer = not name.startswith("ours")
        try:
            python = peer_python("learners") if peer else sys.executable
        except MeasurementError as error:
            raise MethodError(f"{name}: {error}") from error
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed in __exit__)
        self._answers, write = os.pipe()
        argv = [str(python), str(_ROOT / "bench" / "learner_slices.py")]
        self._process = subprocess.Popen(
            [*argv, str(write), name, json.dumps(asdict(settings))],
            stdin=subprocess.PIPE,
            stdout=self._errors,
            stderr=self._errors,
            pass_fds=[write],
            env=os.environ | {"PYTHONPATH": "" if peer else os.pathsep.join((str(_ROOT), *sys.path))},
            cwd=_ROOT,
        )
        os.close(write)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # The end of its input ends it; what it started ends with it.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._answers)
        self._errors.close()

    def versions(self) -> dict[str, str]:
        """Of its packages, as soon as it is ready. Raises MethodError."""
        return self._receive(_START_SECONDS)["versions"]

    def rate(self, settle: float, seconds: float) -> float:
        """Updates a second over a turn of so many seconds, after ``settle`` others. Raises MethodError."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{settle} {seconds}\n".encode())
            self._process.stdin.flush()
        return self._receive(settle + seconds + _SPARE_SECONDS)["rate"]

    def _receive(self, seconds: float) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0:
                raise MethodError(f"{self.name} did not answer within {seconds:.0f} s")
            if select.select([self._answers], [], [], left)[0]:
                data = os.read(self._answers, 65536)
                if not data:
                    raise MethodError(f"{self.name} ended without an answer{self._last_words()}")
                self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return ": " + lines[-1] if lines else ""


def measure(arguments: LearnerArguments, batch: int, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """A row for each method, those that could not be measured with an "error" in place of numbers."""
    settings = Settings(batch, arguments.hidden, arguments.env, arguments.updates_per_step)
    rows: dict[str, dict[str, Any]] = {name: {"method": name, "batch": batch} for name in arguments.methods}
    rates: dict[str, list[float]] = {}
    with contextlib.ExitStack() as stack:
        ready: list[Method] = []
        for name in arguments.methods:
            say(f"batch {batch}: starting {name}")
            try:
                method = stack.enter_context(Method(name, settings))
                rows[name]["versions"] = method.versions()
                ready.append(method)
            except MethodError as error:
                rows[name]["error"] = str(error)
        rates = {method.name: [] for method in ready}
        for number in range(arguments.rounds):
            turn = arguments.settle + arguments.seconds
            left = turn * len(rates) * (arguments.rounds - number)
            say(f"batch {batch}: round {number + 1}/{arguments.rounds}  (about {left:.0f} s left)")
            for method in order([each for each in ready if each.name in rates], number):
                try:
                    rates[method.name].append(method.rate(arguments.settle, arguments.seconds))
                except MethodError as error:
                    rows[method.name]["error"] = str(error)
                    del rates[method.name]
    own = ratios(rates)
    for name, values in rates.items():
        rows[name] |= {
            "updates_per_second": summary(values)["median"],
            "min": min(values),
            "max": max(values),
            "rounds": values,
            "ratios": own[name],
        }
    return list(rows.values())


def order(methods: Sequence[Method], number: int) -> Sequence[Method]:
    """Of a round: each is first, second, ... in turn, and half of the rounds go backwards."""
    turn = number % max(1, len(methods))
    turned = [*methods[turn:], *methods[:turn]]
    return turned if number % 2 == 0 else turned[::-1]


def compare(arguments: LearnerArguments, command: str) -> None:
    """Measure, show, write. Raises ConfigError for wrong values, and where nothing could be measured."""
    check(arguments)
    progress = console(stderr=True)
    rows: list[dict[str, Any]] = []
    for batch in arguments.batches:
        rows += measure(arguments, batch, lambda text: progress.print(text, markup=False))
    result = {
        "machine": machine(),
        "command": command,
        **{
            name: getattr(arguments, name)
            for name in ("hidden", "seconds", "settle", "env", "updates_per_step")
        },
        "rows": rows,
    }
    if all("error" in row for row in rows):
        raise ConfigError([row["error"] for row in rows])
    if arguments.json is not None:
        write_file(arguments.json, json.dumps(result, indent=2) + "\n")
    show(rows, arguments)


def show(rows: Sequence[dict[str, Any]], arguments: LearnerArguments) -> None:
    """Print the table."""
    compared = [
        name for name in ("sbx", "sb3") if any(r["method"] == name and "error" not in r for r in rows)
    ]
    title = (
        f"SAC updates/s, {'x'.join(map(str, arguments.hidden))}: medians of {arguments.rounds} rounds of "
        f"{arguments.seconds:g} s, ratios within a round"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("method")
    for name in ("batch", "median", "min", "max", *(f"\u00d7 {name}" for name in compared)):
        table.add_column(name, justify="right")
    for row in rows:
        if "error" not in row:
            numbers = (f"{row[key]:,.1f}" for key in ("updates_per_second", "min", "max"))
            beside = (f"{row['ratios'][n]:.2f}" if n in row["ratios"] else "" for n in compared)
            table.add_row(row["method"], str(row["batch"]), *numbers, *beside)
    out = console()
    out.print(table)
    for row in rows:
        if "error" in row:
            out.print(f"{row['method']}, batch {row['batch']}: {row['error']}", markup=False)
    found = {name: version for row in rows for name, version in row.get("versions", {}).items()}
    out.print("  ".join(f"{name} {version}" for name, version in found.items()), markup=False)
    out.print(machine_line(machine()), markup=False)


if __name__ == "__main__":
    chosen = tyro.cli(LearnerArguments, description=__doc__, prog="python -m bench.learner")
    run(lambda: compare(chosen, shlex.join(["python", "-m", "bench.learner", *sys.argv[1:]])))
