"""Kills writers at random moments and counts the channels that nobody can use afterwards."""

from __future__ import annotations

import os
import random
import select
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import ForkProcess
from typing import Literal

from bench.channels import Channel, fork_partner

Outcome = Literal["usable", "unusable", "corrupt"]
USABLE_SECONDS = 1.0
_LONGEST_LIFE = 0.01  # of a writer, once its tokens arrive
_HAMMER, _MARKER = (7, 11, 13, 17), (1, 2, 3, 4)
_EXIT_CORRUPT = 3


@dataclass(frozen=True)
class _Trial:
    """A survivor whose writer was killed, and when its time is up."""

    survivor: ForkProcess
    deadline: float
    channel: Channel

    def outcome(self) -> Outcome | None:
        """None while it is still trying."""
        code = self.survivor.exitcode
        if code is None:
            return None if time.monotonic() < self.deadline else "unusable"
        return {0: "usable", _EXIT_CORRUPT: "corrupt"}.get(code, "unusable")

    def close(self) -> None:
        self.survivor.kill()
        self.survivor.join()
        self.survivor.close()
        self.channel.close()


def count_outcomes(make_channel: Callable[[], Channel], kills: int, seed: int = 0) -> Counter[Outcome]:
    """Outcomes of ``kills`` trials, each with a channel, a writer and a survivor of its own.

    The writer puts tokens in as fast as it can and the survivor takes them out; the writer is killed; then
    the survivor must get a token of its own through the channel within a second. Survivors that hang wait
    out their second side by side, which keeps the whole bounded.
    """
    moments = random.Random(seed)
    outcomes: Counter[Outcome] = Counter()
    pending: list[_Trial] = []
    try:
        for _ in range(kills):
            pending.append(_kill_writer(make_channel, moments.uniform(0, _LONGEST_LIFE)))
            pending = _settle(pending, outcomes)
        while pending:
            time.sleep(0.005)
            pending = _settle(pending, outcomes)
    finally:
        for trial in pending:
            trial.close()
    return outcomes


def _settle(pending: list[_Trial], outcomes: Counter[Outcome]) -> list[_Trial]:
    still = []
    for trial in pending:
        if (outcome := trial.outcome()) is None:
            still.append(trial)
        else:
            outcomes[outcome] += 1
            trial.close()
    return still


def _kill_writer(make_channel: Callable[[], Channel], after: float) -> _Trial:
    channel = make_channel()
    heard_read, heard_write = os.pipe()
    told_read, told_write = os.pipe()
    survivor = fork_partner(_survive, channel, heard_write, told_read)
    os.close(heard_write)  # before the writer inherits it, so that a survivor that ends early is heard, too
    writer = fork_partner(_hammer, channel)
    try:
        select.select([heard_read], [], [], 5.0)
        time.sleep(after)
    finally:
        writer.kill()
        writer.join()
        writer.close()
        os.write(told_write, b"!")
        for fd in (heard_read, told_read, told_write):
            os.close(fd)
    return _Trial(survivor, time.monotonic() + USABLE_SECONDS, channel)


def _hammer(channel: Channel) -> None:
    while True:
        channel.send(_HAMMER)


def _survive(channel: Channel, heard: int, told: int) -> None:
    os.set_blocking(told, False)
    said = False
    while True:
        tokens = channel.receive(0.01)
        _check(tokens)
        if tokens and not said:
            os.write(heard, b"!")
            said = True
        if _is_told(told):
            break
    channel.send(_MARKER)
    while _MARKER not in (tokens := channel.receive(0.01)):
        _check(tokens)


def _check(tokens: list[tuple[int, ...]]) -> None:
    if any(tuple(token) != _HAMMER for token in tokens):
        os._exit(_EXIT_CORRUPT)


def _is_told(fd: int) -> bool:
    try:
        os.read(fd, 1)
    except BlockingIOError:
        return False
    return True
