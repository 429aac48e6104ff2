"""Our own cartridge with another header."""

from bench.cartridge import build

ROM = build()


def patched(**places):
    """The cartridge with other bytes in its header and the right checksum, unless that is given."""
    rom = bytearray(ROM)
    offsets = {"colour": 0x143, "kind": 0x147, "size": 0x148, "ram": 0x149}
    for name, value in places.items():
        if name != "checksum":
            rom[offsets[name]] = value
    rom[0x14D] = places.get("checksum", -sum(byte + 1 for byte in rom[0x134:0x14D]) & 0xFF)
    return bytes(rom)
