"""Whether a file is a cartridge to play, found out before PyBoy, which is native code, sees it."""

from __future__ import annotations

import os
import stat
from typing import Any

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


class CartridgeError(ValueError):
    """A file that is no cartridge to play; the text says why and what is allowed."""


def read_cartridge(path: Any) -> bytes:
    """The file's bytes. Raises CartridgeError."""
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise CartridgeError(f"cartridge is {path!r}; allowed: the path of a Game Boy cartridge's file")
    name = f"cartridge {os.fspath(path)!r}"
    try:
        found = os.stat(path)
        data = None
        if stat.S_ISREG(found.st_mode) and _fits(found.st_size):  # a pipe would never end
            with open(path, "rb") as file:
                data = file.read()
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        reason = getattr(error, "strerror", None) or str(error)
        raise CartridgeError(
            f"{name} cannot be read: {reason}; allowed: a Game Boy cartridge's file"
        ) from error
    if not stat.S_ISREG(found.st_mode):
        raise CartridgeError(f"{name} is no plain file; allowed: a Game Boy cartridge's file")
    if data is None or not _fits(len(data)):
        raise CartridgeError(
            f"{name} has {found.st_size:,} bytes; allowed: a power of two from {2 * _BANK:,} to {_LARGEST:,}"
        )
    if problem := _header_problem(data):
        raise CartridgeError(f"{name} {problem}")
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


def has_colours(data: bytes) -> bool:
    """Whether the cartridge makes a Game Boy Color of the console."""
    return bool(data[0x143] & 0x80)


def has_clock(data: bytes) -> bool:
    """Whether the cartridge holds a clock, which goes with the world's time and not with the game's."""
    return data[_TYPE] in (0x0F, 0x10)
