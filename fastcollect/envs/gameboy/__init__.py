"""Game Boy cartridges through PyBoy, as a ``BatchedEnv``; needs the extra ``fastcollect[pyboy]``.

What the agent sees, what it is rewarded for and when an episode ends is said by keyword arguments, as text
where they come from a command line: see ``make``. A cartridge is checked before PyBoy sees it. What PyBoy
cannot be kept from: a cartridge that executes an opcode that the processor does not have stands still inside
``tick``. The engine ends such a run with an error; during ``start_frames`` that takes two minutes.
"""

import importlib.util
from collections.abc import Sequence

import numpy as np

from fastcollect.envs.gameboy.options import BUTTONS, read_settings

_INSTALLED = importlib.util.find_spec("pyboy") is not None
if _INSTALLED:  # Here, not where it is used, so that workers are forked from a process that has it already.
    from fastcollect.envs.gameboy.consoles import GameBoy


def make(
    seeds: np.ndarray,
    *,
    cartridge: str,
    observation: str = "reduced",
    addresses: Sequence[int | str] | str | int = (),
    frames: int = 4,
    episode_length: int = 500,
    reward: str | float = 0.0,
    done: str | float = 0.0,
    actions: Sequence[str] | str = ("noop", *BUTTONS),
    start_frames: int = 120,
    noop_max: int = 30,
) -> "GameBoy":
    """One Game Boy for each seed, (n,) int64, all of the same cartridge.

    cartridge: the file. Nothing is read or written beside it, saved games included.
    observation: uint8 always. "screen", (144, 160, 1), is grey; "reduced", (72, 80, 1), is the mean of each
        2 x 2 of its pixels, rounded down, so that no thin line is lost; "memory", (k,), is the k bytes at
        ``addresses`` and spares the rendering. A colour cartridge's grey is its luminance.
    addresses: integers from 0x8000 (below is the cartridge itself) to 0xFFFF, or text such as "0xC0A0"; one,
        several, or several in one text with commas.
    frames: frames of 1/60 s for each action. The last is rendered: what flickers may not be on it.
    episode_length: steps after which an episode is truncated.
    reward: an expression over memory after the step, such as "delta(0xC0A0) - 0.1 * (mem[0xC0A1] == 0)". Its
        parts are numbers, mem[ADDRESS], delta(ADDRESS), + - * / // %, comparisons, and, or, not, min, max and
        abs. delta is how much a byte, or an expression, grew in this step: delta(mem[0xC0A0] +
        256 * mem[0xC0A1]). A lone integer, as text too, is an address and means its delta.
    done: the same; the episode is terminated where it is neither 0 nor false.
    actions: what each action holds: "noop", one of the eight buttons, or several as in "a+right"; also as one
        text with commas. Buttons stay down for all frames of an action, and from one action to the next that
        holds them too.
    start_frames: frames played once, without buttons, before the moment at which every episode starts.
    noop_max: an episode begins with 0 to so many steps without buttons, drawn from the environment's seed.

    Raises ConfigError naming every value that cannot work, the cartridge included, ImportError without PyBoy.
    """
    given = {name: value for name, value in locals().items() if name != "seeds"}
    if not _INSTALLED:
        raise ImportError("Game Boy cartridges need PyBoy: pip install pyboy (the extra fastcollect[pyboy])")
    return GameBoy(seeds, read_settings(**given))
