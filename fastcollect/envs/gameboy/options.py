"""From keyword arguments, as text where a command line gave them, to settings, or to all that is wrong."""

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

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
_BANK = 16 * 1024
_LARGEST = 8 * 1024 * 1024
_TYPES = {
    "ROM": (0x00, 0x08, 0x09),
    "MBC1": (0x01, 0x02, 0x03),
    "MBC2": (0x05, 0x06),
    "MBC3": (0x0F, 0x10, 0x11, 0x12, 0x13),
    "MBC5": (0x19, 0x1A, 0x1B, 0x1C, 0x1D, 0x1E),
}
_TYPE, _ROM_SIZE, _RAM_SIZE, _CHECKSUM = 0x147, 0x148, 0x149, 0x14D


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The checked arguments of ``gameboy.make``.

    rom: the cartridge's bytes. colours: whether it makes a Game Boy Color of the console. clock: whether it
    holds a clock, which goes with the world's time and not with the game's. actions: the buttons that each
    action holds. reward, done: functions of the bytes at ``watched``, now and before the step.
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
        rom = _read_cartridge(cartridge)
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
        colours=bool(rom[0x143] & 0x80),
        clock=rom[_TYPE] in (0x0F, 0x10),
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


def _read_cartridge(path: Any) -> bytes:
    """The bytes of a cartridge to play, which is found out before PyBoy, native code, sees them."""
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise ValueError(f"cartridge is {path!r}; allowed: the path of a Game Boy cartridge's file")
    name = f"cartridge {os.fspath(path)!r}"
    try:
        found = os.stat(path)
        data = None
        if stat.S_ISREG(found.st_mode) and _fits(found.st_size):  # a pipe would never end
            with open(path, "rb") as file:
                data = file.read()
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"{name} cannot be read: {reason}; allowed: a Game Boy cartridge's file") from error
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{name} is no plain file; allowed: a Game Boy cartridge's file")
    if data is None or not _fits(len(data)):
        raise ValueError(
            f"{name} has {found.st_size:,} bytes; allowed: a power of two from {2 * _BANK:,} to {_LARGEST:,}"
        )
    if problem := _header_problem(data):
        raise ValueError(f"{name} {problem}")
    return data


def _fits(size: int) -> bool:
    return 2 * _BANK <= size <= _LARGEST and size.bit_count() == 1


def _header_problem(data: bytes) -> str | None:
    kind, size, ram, found = data[_TYPE], data[_ROM_SIZE], data[_RAM_SIZE], data[_CHECKSUM]
    checksum = -sum(byte + 1 for byte in data[0x134:_CHECKSUM]) & 0xFF
    if found != checksum:
        return (
            f"is no Game Boy cartridge: its header's checksum is {found:#04x}; "
            f"allowed: {checksum:#04x}, which its other bytes give"
        )
    if not any(kind in codes for codes in _TYPES.values()):
        return f"is of type {kind:#04x}, which PyBoy does not know; allowed: {', '.join(_TYPES)}"
    if size > 8 or len(data) != 2 * _BANK << size:
        return (
            f"has {len(data):,} bytes, and its header's size code is {size:#04x}; "
            f"allowed: 0x00 to 0x08 for {2 * _BANK:,} bytes, doubled so many times"
        )
    return f"has {ram:#04x} for its header's RAM size; allowed: 0x00 to 0x05" if ram > 5 else None


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
