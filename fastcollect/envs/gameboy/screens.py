"""From PyBoy's screen, RGBA in place, to one grey image; the slots of a ring are written directly."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

SCREEN_SHAPES = {"screen": (144, 160, 1), "reduced": (72, 80, 1)}
_RED, _GREEN, _BLUE = 77, 150, 29  # luminance in 256ths: their sum is 256
_FIRST_BYTES = np.uint64(0x000000FF_000000FF)  # of the two pixels in a word
# One factor adds the lower half of a word to the upper, one shift fetches a quarter of that.
_ADD_HALVES, _UPPER_QUARTER = np.uint64((1 << 32) + 1), np.uint64(34)

# The consoles of a process take turns, so that one place to compute in is enough, and stays in the cache.
_words = np.empty((2, 72, 80), np.uint64)
_grey = np.empty((2, 144, 160), np.uint16)


def look_at_screen(pixels: np.ndarray, *, reduced: bool, colours: bool) -> Callable[[np.ndarray], None]:
    """What writes the grey of ``pixels``, (144, 160, 4) uint8 little-endian RGBA that change in place, into
    (144, 160, 1) or, reduced to the mean of 2 x 2, (72, 80, 1) uint8. Without colours, red is the grey."""
    # Two pixels to a word: half as many elements, and no reading of every fourth byte.
    words = pixels.reshape(144, 640).view("<u8")
    upper, lower = words[::2], words[1::2]
    total, other = _words
    red, green, blue = (pixels[..., channel] for channel in range(3))
    grey, part = _grey

    def whole(row: np.ndarray) -> None:
        row[..., 0] = red

    def reduce(row: np.ndarray) -> None:
        np.bitwise_and(upper, _FIRST_BYTES, out=total)
        np.bitwise_and(lower, _FIRST_BYTES, out=other)
        np.add(total, other, out=total)
        np.multiply(total, _ADD_HALVES, out=total)
        np.right_shift(total, _UPPER_QUARTER, out=total)
        row[..., 0] = total

    def weigh(row: np.ndarray) -> None:
        np.multiply(red, _RED, out=grey, dtype=np.uint16)
        for channel, weight in ((green, _GREEN), (blue, _BLUE)):
            np.multiply(channel, weight, out=part, dtype=np.uint16)
            np.add(grey, part, out=grey)
        np.right_shift(grey, 8, out=grey)
        if reduced:
            mean = grey[::2, ::2] + grey[::2, 1::2] + grey[1::2, ::2] + grey[1::2, 1::2]
            row[..., 0] = mean >> 2
        else:
            row[..., 0] = grey

    if colours:
        return weigh
    return reduce if reduced else whole
