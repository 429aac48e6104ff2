"""A Game Boy cartridge of our own: a game that may be given to anyone.

The emulator that plays it needs no logo in the header, so there is none; a real Game Boy would refuse the
cartridge for that. Where the game keeps its state is in ``ADDRESSES``.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from bench.harness.command import main
from fastcollect.support.command import check_writable
from fastcollect.support.files import write_file

LISTING = Path(__file__).with_suffix(".asm")
"""Address, bytes and source of each line; the tests assemble the source and compare."""
SIZE = 32 * 1024
ADDRESSES = {"score": 0xC0A0, "misses": 0xC0A1, "lives": 0xC0A2}
ADDRESSES |= {"ball_x": 0xC0A3, "ball_y": 0xC0A4, "paddle_x": 0xC0A5}
"""Bytes of the game; what they mean stands at the top of ``cartridge.asm``."""


def build() -> bytes:
    """The game's cartridge, 32,768 bytes, always the same."""
    memory = bytearray(SIZE)
    for address, code in re.findall(r"^([0-9A-F]{4}) ([0-9A-F]+)", LISTING.read_text(), re.MULTILINE):
        content, start = bytes.fromhex(code), int(address, 16)
        memory[start : start + len(content)] = content
    return with_checksums(memory)


def with_checksums(memory: bytearray) -> bytes:
    """A cartridge's content with valid checksums in its header."""
    memory[0x14D] = -sum(byte + 1 for byte in memory[0x134:0x14D]) & 0xFF
    memory[0x14E:0x150] = (sum(memory) & 0xFFFF).to_bytes(2, "big")
    return bytes(memory)


@dataclass(frozen=True)
class CartridgeArguments:
    """What ``python -m bench.cartridge`` takes."""

    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """Where to write the cartridge."""


def write(arguments: CartridgeArguments) -> None:
    """Write the cartridge. Raises ConfigError if it cannot be written there."""
    check_writable(arguments.file)
    write_file(arguments.file, build())


if __name__ == "__main__":
    main(CartridgeArguments, write, __doc__)
