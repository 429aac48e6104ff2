"""What a user sees of a run while it goes on: a live line on a terminal, a line now and then elsewhere."""

import time
from collections.abc import Mapping
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

_PLAIN_SECONDS = 10.0


class Progress:
    """Shows one run after another; ``run`` begins the next."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} steps"),
            TextColumn("{task.fields[rates]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=self.console,
        )
        self._live = self.console.is_terminal
        self._task: TaskID | None = None
        self._title, self._total, self._printed = "", 1, 0.0
        self._first: tuple[int, float] | None = None  # the first row's step, and when it came

    def __enter__(self) -> Self:
        if self._live:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._bars.stop()

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self.console.print(text, soft_wrap=True)

    def run(self, title: str, total: int) -> None:
        """Begin to show a run of ``total`` environment steps."""
        if self._task is not None:
            self._bars.remove_task(self._task)
        self._task = self._bars.add_task(title, total=total, rates="starting", left="")
        self._title, self._total, self._first, self._printed = title, total, None, time.monotonic()

    def trained(self, row: Mapping[str, Any]) -> None:
        """Show a row of training metrics."""
        assert self._task is not None, "run comes first"
        now, step = time.monotonic(), row["env_steps"]
        self._first = self._first or (step, now)
        first_step, began = self._first
        left = ""
        if step > first_step:
            seconds = (now - began) * max(0, self._total - step) / (step - first_step)
            left = f"{_duration(seconds)} left"
        rates = (
            f"{row['env_steps_per_second']:,.0f} steps/s  {row['updates_per_second']:,.0f} updates/s  "
            f"ratio {row['updates_per_step']:.4f}  return {_number(row['return_mean'], '.0f')}  "
            f"success {_number(row['success_any'], '.2f')}"
        )
        self._bars.update(self._task, completed=step, rates=rates, left=left)
        if not self._live and now - self._printed >= _PLAIN_SECONDS:
            self._printed = now
            self.say(f"{self._title}: {step:,}/{self._total:,} steps  {rates}  {left}")

    def evaluated(self, row: Mapping[str, Any]) -> None:
        """Show the row of an evaluation."""
        self.say(
            f"{self._title}: {row['env_steps']:>9,} steps  {_duration(row['wall_seconds'])}  "
            f"success any {row['success_any']:.2f}  last {row['success_last']:.2f}  "
            f"return {row['return_mean']:,.0f}"
        )


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
