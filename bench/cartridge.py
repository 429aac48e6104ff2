"""A Game Boy cartridge of our own, assembled from ``cartridge.asm``: a game that may be given to anyone.

The emulator that plays it needs no logo in the header, so there is none; a real Game Boy would refuse the
cartridge for that. Where the game keeps its state is in ``ADDRESSES``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from fastcollect.support.errors import CONFIG_EXIT_CODE

SOURCE = Path(__file__).with_suffix(".asm")
SIZE = 32 * 1024
ADDRESSES = {
    "score": 0xC0A0,
    "misses": 0xC0A1,
    "lives": 0xC0A2,
    "ball_x": 0xC0A3,
    "ball_y": 0xC0A4,
    "paddle_x": 0xC0A5,
}
"""Bytes of the game; what they mean stands at the top of ``cartridge.asm``."""

# n: a byte, nn: two bytes, e: a jump of -128 to 127 bytes. Only what the game uses.
_INSTRUCTIONS = """
nop 00|halt 76|di F3|ei FB|ret C9|ret c D8|reti D9|call nn CD|jp nn C3
jr e 18|jr nz,e 20|jr z,e 28|jr nc,e 30|jr c,e 38
ld a,n 3E|ld b,n 06|ld d,n 16|ld hl,nn 21|ld de,nn 11|ld sp,nn 31
ld a,b 78|ld a,c 79|ld a,d 7A|ld a,h 7C|ld a,l 7D|ld b,a 47|ld c,a 4F|ld h,a 67|ld l,a 6F
ld a,(de) 1A|ld (hl+),a 22|ld a,(nn) FA|ld (nn),a EA|ldh a,(n) F0|ldh (n),a E0
inc a 3C|inc de 13|dec a 3D|dec b 05|dec c 0D
add a,n C6|sub n D6|sub b 90|and n E6|xor n EE|xor a AF|cp n FE
srl h CB3C|rr l CB1D
"""


class AssemblyError(ValueError):
    """A line of the source that cannot be assembled; the text names it."""


def _table() -> dict[str, list[tuple[tuple[str, ...], bytes]]]:
    """By mnemonic: the operands of each form and its opcode, exact operands before numbers."""
    table: dict[str, list[tuple[tuple[str, ...], bytes]]] = {}
    for entry in _INSTRUCTIONS.replace("\n", "|").strip("|").split("|"):
        form, opcode = entry.rsplit(" ", 1)
        mnemonic, _, operands = form.partition(" ")
        split = tuple(operands.split(",")) if operands else ()
        table.setdefault(mnemonic, []).append((split, bytes.fromhex(opcode)))
    for forms in table.values():
        forms.sort(key=lambda form: sum(_kind(operand) != "" for operand in form[0]))
    return table


def _kind(operand: str) -> str:
    """ "n", "nn" or "e" for a form's operand that is a number; empty for one that is spelt out."""
    inner = operand.strip("()")
    return inner if inner in ("n", "nn", "e") else ""


_TABLE = _table()
_WIDTH = {"n": 1, "nn": 2, "e": 1}


class _Assembler:
    """Two passes over the same lines: the first finds where the labels are, the second needs them."""

    def __init__(self) -> None:
        self.symbols: dict[str, int] = {}
        self.memory = bytearray(SIZE)
        self.place = 0
        self.final = False

    def run(self, source: str) -> bytearray:
        for self.final in (False, True):
            self.place = 0
            for number, text in enumerate(source.splitlines(), start=1):
                try:
                    self._line(text)
                except (AssemblyError, ValueError) as error:
                    raise AssemblyError(f"line {number}, {text.strip()!r}: {error}") from None
        return self.memory

    def _line(self, text: str) -> None:
        text = text.partition(";")[0].strip()
        if not text:
            return
        if text.endswith(":"):
            self._define(text[:-1], self.place)
        elif "=" in text:
            name, _, value = text.partition("=")
            self._define(name.strip(), self._value(value))
        else:
            mnemonic, _, operands = text.partition(" ")
            self._statement(mnemonic, operands.strip())

    def _define(self, name: str, value: int) -> None:
        if not self.final and name in self.symbols:
            raise AssemblyError(f"{name} is there already")
        self.symbols[name] = value

    def _statement(self, mnemonic: str, operands: str) -> None:
        if mnemonic == "org":
            place = self._value(operands)
            if place < self.place:
                raise AssemblyError(f"what comes before ends at {self.place:#06x}")
            self.place = place
        elif mnemonic == "db":
            for item in operands.split(","):
                item = item.strip()
                self._emit(item[1:-1].encode("ascii") if item.startswith('"') else self._bytes("n", item))
        else:
            self._instruction(mnemonic, tuple(part.replace(" ", "") for part in operands.split(",") if part))

    def _instruction(self, mnemonic: str, given: tuple[str, ...]) -> None:
        for form, opcode in _TABLE.get(mnemonic, []):
            if len(form) == len(given) and all(map(_fits, form, given)):
                numbers = [(kind, text) for kind, text in zip(map(_kind, form), given, strict=True) if kind]
                after = self.place + len(opcode) + sum(_WIDTH[kind] for kind, _ in numbers)
                code = opcode + b"".join(self._bytes(kind, text, after) for kind, text in numbers)
                return self._emit(code)
        raise AssemblyError("no such instruction among those this assembler knows")

    def _bytes(self, kind: str, text: str, after: int = 0) -> bytes:
        """The number of an operand; in the first pass, of the right width only."""
        value = self._value(text.strip("()"))
        if not self.final:
            return bytes(_WIDTH[kind])
        if kind == "e":
            return self._in_range(value - after, -128, 127).to_bytes(1, "little", signed=True)
        return self._in_range(value, 0, 256 ** _WIDTH[kind] - 1).to_bytes(_WIDTH[kind], "little")

    @staticmethod
    def _in_range(value: int, low: int, high: int) -> int:
        if not low <= value <= high:
            raise AssemblyError(f"{value} is not from {low} to {high}")
        return value

    def _value(self, text: str) -> int:
        """A number, a name, or sums and differences of them."""
        total = 0
        for sign, term in _terms(text):
            known = self.symbols.get(term, None if self.final else 0)
            total += sign * (int(term, 0) if term[0].isdigit() else self._known(term, known))
        return total

    @staticmethod
    def _known(name: str, value: int | None) -> int:
        if value is None:
            raise AssemblyError(f"nothing is called {name!r}")
        return value

    def _emit(self, code: bytes) -> None:
        end = self._in_range(self.place + len(code), 0, SIZE)
        self.memory[self.place : end] = code
        self.place = end


def _terms(text: str) -> Iterator[tuple[int, str]]:
    compact = text.replace(" ", "")
    if not re.fullmatch(r"\w+([+-]\w+)*", compact):
        raise AssemblyError(f"{text.strip()!r} is no number, name or sum of them")
    for sign, term in re.findall(r"([+-]?)(\w+)", compact):
        yield (-1 if sign == "-" else 1), term


def _fits(form: str, given: str) -> bool:
    """Whether an operand can stand for a form's; registers' names are never numbers."""
    if not _kind(form):
        return form == given
    in_memory = given.startswith("(")
    inner = given.strip("()")
    return in_memory == form.startswith("(") and inner not in ("a", "b", "c", "d", "e", "h", "l", "hl", "de")


def assemble(source: str) -> bytes:
    """A cartridge of 32 KiB from assembly text, with valid checksums in its header.

    Raises AssemblyError naming the line.
    """
    memory = _Assembler().run(source)
    memory[0x14D] = -sum(byte + 1 for byte in memory[0x134:0x14D]) & 0xFF
    memory[0x14E:0x150] = (sum(memory) & 0xFFFF).to_bytes(2, "big")
    return bytes(memory)


def build() -> bytes:
    """The game's cartridge, 32,768 bytes, always the same."""
    return assemble(SOURCE.read_text())


def main(arguments: list[str]) -> int:
    """Write the cartridge to the one file named; the exit code."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m bench.cartridge FILE", file=sys.stderr)
        return CONFIG_EXIT_CODE
    try:
        Path(arguments[0]).write_bytes(build())
    except OSError as error:
        print(f"error: {arguments[0]!r} cannot be written: {error.strerror}", file=sys.stderr)
        return CONFIG_EXIT_CODE
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
