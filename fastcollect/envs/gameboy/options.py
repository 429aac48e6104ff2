"""From keyword arguments, as text where a command line gave them, to settings, or to all that is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastcollect.envs.gameboy.cartridge import has_clock, has_colours, read_cartridge
from fastcollect.envs.gameboy.expressions import HIGHEST, LOWEST, Evaluate, compile_expression
from fastcollect.support.errors import ConfigError

BUTTONS = ("a", "b", "up", "down", "left", "right", "start", "select")
OBSERVATIONS = ("screen", "reduced", "memory")
_OPPOSITE = ({"left", "right"}, {"up", "down"})
_RANGES = {
    "frames": (1, 3600),
    "episode_length": (1, 2**31 - 1),
    "start_frames": (0, 36_000),
    "noop_max": (0, 1000),
}
_MOST_ADDRESSES = 4096


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The checked arguments of ``gameboy.make``.

    rom: the cartridge's bytes. colours, clock: what it has. actions: the buttons that each action holds.
    reward, done: functions of the bytes at ``watched``, now and before the step.
    """

    rom: bytes
    colours: bool
    clock: bool
    observation: str
    addresses: tuple[int, ...]
    frames: int
    episode_length: int
    actions: tuple[tuple[str, ...], ...]
    reward: Evaluate
    done: Evaluate
    watched: tuple[int, ...]
    start_frames: int
    noop_max: int


def read_settings(
    *, cartridge: Any, observation: Any, addresses: Any, reward: Any, done: Any, actions: Any, **numbers: Any
) -> Settings:
    """The arguments of ``gameboy.make`` as settings. Raises ConfigError naming everything that is wrong."""
    problems: list[str] = []
    with _noting(problems):
        rom = read_cartridge(cartridge)
    if observation not in OBSERVATIONS:
        problems.append(f"observation is {observation!r}; allowed: {', '.join(OBSERVATIONS)}")
    shown = _addresses(addresses, observation == "memory", problems)
    for name, (low, high) in _RANGES.items():
        if not _is_whole(numbers[name]) or not low <= numbers[name] <= high:
            problems.append(f"{name} is {numbers[name]!r}; allowed: whole numbers from {low} to {high}")
    held = _actions(actions, problems)
    positions: dict[int, int] = {}
    functions: dict[str, Evaluate] = {}
    for name, source in (("reward", reward), ("done", done)):
        with _noting(problems, f"{name} "):
            functions[name] = compile_expression(source, positions)
    if problems:
        raise ConfigError(problems)
    return Settings(
        rom=rom,
        colours=has_colours(rom),
        clock=has_clock(rom),
        observation=observation,
        addresses=shown,
        actions=held,
        watched=tuple(positions),
        reward=functions["reward"],
        done=functions["done"],
        **{name: int(value) for name, value in numbers.items()},
    )


@contextmanager
def _noting(problems: list[str], name: str = "") -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        problems.append(f"{name}{error}")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _listed(value: Any) -> list[Any]:
    """The items of a sequence, or of a text with commas; one item of anything else."""
    if isinstance(value, str):
        return [item.strip() for item in value.split(",")] if value.strip() else []
    if isinstance(value, Sequence | np.ndarray):
        return list(value)
    return [value]


def _addresses(given: Any, needed: bool, problems: list[str]) -> tuple[int, ...]:
    items = _listed(given)
    out = [_address(item) for item in items]
    allowed = f"allowed: {LOWEST:#06x} to {HIGHEST:#06x}, as whole numbers or text"
    wrong = [repr(item) for item, address in zip(items, out, strict=True) if address is None]
    if wrong:
        problems.append(f"addresses has {', '.join(wrong[:8])}; {allowed}")
    if len(items) > _MOST_ADDRESSES:
        problems.append(f"addresses has {len(items)} entries; allowed: up to {_MOST_ADDRESSES}")
    if needed and not items:
        problems.append(f"addresses is empty, and observation 'memory' shows what is there; {allowed}")
    if items and not needed:
        problems.append("addresses is given; allowed: only where observation is 'memory'")
    return tuple(address for address in out if address is not None)


def _address(item: Any) -> int | None:
    try:
        value = int(item, 0) if isinstance(item, str) else item
    except ValueError:
        return None
    return int(value) if _is_whole(value) and LOWEST <= value <= HIGHEST else None


def _actions(given: Any, problems: list[str]) -> tuple[tuple[str, ...], ...]:
    out: list[tuple[str, ...]] = []
    items = _listed(given)
    for item in items:
        held = _buttons(item)
        if isinstance(held, str):
            problems.append(f"actions has {item!r}, {held}; allowed: noop, {', '.join(BUTTONS)}, or a+right")
        elif held in out:
            problems.append(f"actions has {item!r} twice; allowed: each once")
        else:
            out.append(held)
    if not items:
        problems.append(f"actions is {given!r}; allowed: at least one of noop, {', '.join(BUTTONS)}")
    return tuple(out)


def _buttons(item: Any) -> tuple[str, ...] | str:
    """The buttons of one action in the order of ``BUTTONS``, or what is wrong with it."""
    if item == "noop":
        return ()
    names = item.split("+") if isinstance(item, str) else []
    if not names or not set(names) <= set(BUTTONS):
        return "which the pad does not have"
    if len(set(names)) < len(names):
        return "with a button twice"
    if any(pair <= set(names) for pair in _OPPOSITE):
        return "which a pad cannot press at once"
    return tuple(name for name in BUTTONS if name in names)
