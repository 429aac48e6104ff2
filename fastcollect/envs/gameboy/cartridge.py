"""Whether a file is a cartridge to play, found out before PyBoy, which is native code, sees it."""

from __future__ import annotations

import os
import stat
from typing import Any

_BANK = 16 * 1024
_LARGEST = 8 * 1024 * 1024
_TYPES = {
    **dict.fromkeys((0x00, 0x08, 0x09), "ROM"),
    **dict.fromkeys((0x01, 0x02, 0x03), "MBC1"),
    **dict.fromkeys((0x05, 0x06), "MBC2"),
    **dict.fromkeys((0x0F, 0x10, 0x11, 0x12, 0x13), "MBC3"),
    **dict.fromkeys((0x19, 0x1A, 0x1B, 0x1C, 0x1D, 0x1E), "MBC5"),
}
_WITH_CLOCK = (0x0F, 0x10)
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
        if not stat.S_ISREG(found.st_mode):  # a pipe would never end
            raise CartridgeError(f"{name} is no plain file; allowed: a Game Boy cartridge's file")
        if not 2 * _BANK <= found.st_size <= _LARGEST or found.st_size & (found.st_size - 1):
            raise CartridgeError(
                f"{name} has {found.st_size:,} bytes; "
                f"allowed: a power of two from {2 * _BANK:,} to {_LARGEST:,}"
            )
        with open(path, "rb") as file:
            data = file.read()
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        if isinstance(error, CartridgeError):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise CartridgeError(
            f"{name} cannot be read: {reason}; allowed: a Game Boy cartridge's file"
        ) from error
    _check_header(name, data)
    return data


def _check_header(name: str, data: bytes) -> None:
    checksum = -sum(byte + 1 for byte in data[0x134:_CHECKSUM]) & 0xFF
    if data[_CHECKSUM] != checksum:
        raise CartridgeError(
            f"{name} is no Game Boy cartridge: its header's checksum is {data[_CHECKSUM]:#04x}; "
            f"allowed: {checksum:#04x}, which its other bytes give"
        )
    if data[_TYPE] not in _TYPES:
        kinds = ", ".join(dict.fromkeys(_TYPES.values()))
        raise CartridgeError(
            f"{name} is of type {data[_TYPE]:#04x}, which PyBoy does not know; allowed: {kinds}"
        )
    banks = 2 << data[_ROM_SIZE] if data[_ROM_SIZE] <= 8 else 0
    if len(data) != banks * _BANK:
        raise CartridgeError(
            f"{name} has {len(data):,} bytes, and its header's size code is {data[_ROM_SIZE]:#04x}; "
            f"allowed: 0x00 to 0x08 for {2 * _BANK:,} bytes, doubled so many times"
        )
    if data[_RAM_SIZE] > 5:
        raise CartridgeError(
            f"{name} has {data[_RAM_SIZE]:#04x} for its header's RAM size; allowed: 0x00 to 0x05"
        )


def has_colours(data: bytes) -> bool:
    """Whether the cartridge makes a Game Boy Color of the console."""
    return bool(data[0x143] & 0x80)


def has_clock(data: bytes) -> bool:
    """Whether the cartridge holds a clock, which goes with the world's time and not with the game's."""
    return data[_TYPE] in _WITH_CLOCK
