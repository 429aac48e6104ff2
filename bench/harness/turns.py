"""Measuring in interleaved rounds, so that a machine that drifts changes all methods alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from bench.harness.isolated import MeasurementError
from bench.harness.results import console

T = TypeVar("T")
Outcome = list[dict[str, Any]] | str
"""What every round gave, or the text of the first error."""


def order(labels: Sequence[T], number: int) -> list[T]:
    """The turns of a round: each label is first, second, ... in turn; every other round goes backwards."""
    first = number % max(1, len(labels))
    turned = [*labels[first:], *labels[:first]]
    return turned if number % 2 == 0 else turned[::-1]


def take_turns(
    turns: Mapping[str, Callable[[], dict[str, Any]]], rounds: int, guess: float, unit: str
) -> dict[str, Outcome]:
    """Every label's turn in every round; after its first MeasurementError a label is left out.

    A turn returns a slice with its "rate". What is running, how fast each was and about how many seconds are
    left is told on standard error; ``guess`` is what a turn may take until its first one tells.
    """
    screen, cost = console(stderr=True), dict.fromkeys(turns, guess)
    found: dict[str, Outcome] = {label: [] for label in turns}
    # Twice a second: drawing takes time from what is measured.
    with screen.status("starting", refresh_per_second=2) as status:
        for number in range(rounds):
            for label in order(list(turns), number):
                done = found[label]
                if isinstance(done, str):
                    continue
                left = sum(
                    cost[each] * (rounds - len(got)) for each, got in found.items() if isinstance(got, list)
                )
                head = f"round {number + 1}/{rounds}  {label}"
                status.update(f"{head}  (about {left:.0f} s left)")
                start = time.monotonic()
                try:
                    done.append(turns[label]())
                    text = f"{done[-1]['rate']:,.0f} {unit}"
                except MeasurementError as error:
                    found[label] = text = str(error)
                cost[label] = time.monotonic() - start
                screen.print(f"{head}: {text}", markup=False)
    return found
