"""An assembler of what the cartridge of ``bench`` uses of a Game Boy's instructions, and its listings.

``PYTHONPATH=.:tests python -m support.assembler bench/cartridge.asm`` brings a listing up to date.
"""

import re
import sys
from pathlib import Path

from bench.cartridge import SIZE, with_checksums

MARGIN = 23
"""Columns of a listing before the source: four digits of the address, a space, up to eight bytes."""

# n: a byte, nn: two bytes, e: a jump of -128 to 127 bytes; then the opcode. Only what the game uses.
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


_REGISTERS = "a|b|c|d|e|h|l|hl|de"
_RANGES = {"n": (1, 0, 0xFF), "nn": (2, 0, 0xFFFF), "e": (1, -128, 127)}


class AssemblyError(ValueError):
    """A line of the source that cannot be assembled; the text names it."""


def _form(entry):
    """A pattern whose group is the operand that is a number, the opcode, and that number's kind or ""."""
    form, opcode = entry.rsplit(" ", 1)
    kind = re.search(r"\b(nn|n|e)\b", form.partition(" ")[2])
    pattern = re.escape(form)
    if kind:  # registers' names are never numbers
        pattern = re.sub(rf"\b{kind[0]}\b", lambda _: rf"((?!(?:{_REGISTERS})\b)[^(),]+)", pattern)
    return re.compile(pattern), bytes.fromhex(opcode), kind[0] if kind else ""


_FORMS = [_form(entry) for entry in re.split(r"[|\n]", _INSTRUCTIONS.strip())]


class _Assembler:
    """Two passes over the same lines: the first finds where the labels are, the second needs them."""

    def __init__(self):
        self.symbols = {}
        self.memory, self.place, self.final = bytearray(SIZE), 0, False
        self.found = []  # of each line: its address and its bytes

    def run(self, source):
        for self.final in (False, True):
            self.place, self.found = 0, []
            for number, text in enumerate(source.splitlines(), start=1):
                try:
                    self._emit(self._line(text.partition(";")[0].strip()))
                except ValueError as error:
                    raise AssemblyError(f"line {number}, {text.strip()!r}: {error}") from None
        return self

    def _line(self, text):
        """The bytes of a line; of a label, a definition and a comment none."""
        mnemonic, _, operands = text.partition(" ")
        if text.endswith(":") or "=" in text:
            name, _, value = text.rstrip(":").partition("=")
            if not self.final and name.strip() in self.symbols:
                raise AssemblyError(f"{name.strip()} is there already")
            self.symbols[name.strip()] = self._value(value) if value else self.place
        elif mnemonic == "org":
            place = self._value(operands)
            if place < self.place:
                raise AssemblyError(f"what comes before ends at {self.place:#06x}")
            self.place = place
        elif mnemonic == "db":
            items = map(str.strip, operands.split(","))
            return b"".join(
                item[1:-1].encode("ascii") if item.startswith('"') else self._number("n", item)
                for item in items
            )
        elif text:
            return self._instruction(f"{mnemonic} {operands.replace(' ', '')}".strip())
        return b""

    def _instruction(self, text):
        for pattern, opcode, kind in _FORMS:
            if match := pattern.fullmatch(text):
                # A jump counts from the instruction after it, which is two bytes long.
                return opcode + (self._number(kind, match[1], self.place + 2) if kind else b"")
        raise AssemblyError("no such instruction among those this assembler knows")

    def _number(self, kind, text, after=0):
        """The bytes of an operand; in the first pass, of the right width only."""
        width, low, high = _RANGES[kind]
        value = self._value(text) - (after if kind == "e" else 0)
        if not self.final:
            return bytes(width)
        if not low <= value <= high:
            raise AssemblyError(f"{value} is not from {low} to {high}")
        return value.to_bytes(width, "little", signed=low < 0)

    def _value(self, text):
        """A number, a name, or sums and differences of them."""
        compact, total = text.replace(" ", ""), 0
        if not re.fullmatch(r"\w+([+-]\w+)*", compact):
            raise AssemblyError(f"{text.strip()!r} is no number, name or sum of them")
        for sign, term in re.findall(r"([+-]?)(\w+)", compact):
            if self.final and not term[0].isdigit() and term not in self.symbols:
                raise AssemblyError(f"nothing is called {term!r}")
            value = int(term, 0) if term[0].isdigit() else self.symbols.get(term, 0)
            total += -value if sign == "-" else value
        return total

    def _emit(self, code):
        end = self.place + len(code)
        if end > SIZE:
            raise AssemblyError(f"{end} bytes are more than {SIZE}")
        self.found.append((self.place, code))
        self.memory[self.place : end] = code
        self.place = end


def assemble(source):
    """A cartridge of 32 KiB from assembly text, with valid checksums in its header.

    Raises AssemblyError naming the line.
    """
    return with_checksums(_Assembler().run(source).memory)


def source_of(listing):
    """The assembly text of a listing."""
    return "\n".join(line[MARGIN:] for line in listing.split("\n"))


def listing_of(source):
    """Each line of the source behind its address and bytes. Raises AssemblyError naming the line."""
    lines = [
        (f"{place:04X} {code.hex().upper()}" if code else "").ljust(MARGIN) + text
        for (place, code), text in zip(_Assembler().run(source).found, source.splitlines(), strict=True)
    ]
    return "".join(f"{line.rstrip()}\n" for line in lines)


if __name__ == "__main__":
    file = Path(sys.argv[1])
    file.write_text(listing_of(source_of(file.read_text())))
