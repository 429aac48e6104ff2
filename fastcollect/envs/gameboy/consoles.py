"""n Game Boys that are stepped one after the other in this process."""

import io
import warnings
from collections.abc import Callable, Mapping

import numpy as np

from fastcollect.envs.base import (
    ActionSpec,
    EnvSpec,
    EnvStepError,
    State,
    StateUnsupportedError,
    StepBuffers,
    check_action,
)
from fastcollect.envs.gameboy.options import Settings
from fastcollect.envs.generators import generators_to_array, make_generators, restore_generators

with warnings.catch_warnings():
    # PyBoy imports its windows whether or not one is asked for, and SDL's says which library it found.
    warnings.simplefilter("ignore", UserWarning)
    from pyboy import PyBoy

_SCREEN_SHAPES = {"screen": (144, 160, 1), "reduced": (72, 80, 1)}
_RED, _GREEN, _BLUE = 77, 150, 29  # luminance in 256ths: their sum is 256
_FIRST_BYTES = np.uint64(0x000000FF_000000FF)  # of the two pixels in a word
# One factor adds the lower half of a word to the upper, one shift fetches a quarter of that.
_ADD_HALVES, _UPPER_QUARTER = np.uint64((1 << 32) + 1), np.uint64(34)

# The consoles of a process take turns, so that one place to compute in is enough, and stays in the cache.
_words = np.empty((2, 72, 80), np.uint64)
_grey = np.empty((2, 144, 160), np.uint16)


class GameBoy:
    """A ``BatchedEnv`` of n consoles; see ``gameboy.make``.

    Every episode starts from one state, saved in memory after the start frames, and from there plays its own
    number of steps without buttons. Restoring that state costs about 10 ms: PyBoy reads it byte by byte.
    """

    def __init__(self, seeds: np.ndarray, settings: Settings) -> None:
        self.num_envs = len(seeds)
        self.spec = _spec(settings)
        self._settings = settings
        self._rendered = settings.observation != "memory"
        self._generators = make_generators(seeds)
        self._switches = _switches(settings.actions)
        self._released = len(settings.actions)  # stands for no action, as an episode begins
        self._held = [self._released] * self.num_envs
        self._before = [[0] * len(settings.watched) for _ in range(self.num_envs)]
        self._elapsed = [0] * self.num_envs
        self._started = False
        self._consoles: list[PyBoy] = []
        try:
            for _ in range(self.num_envs):
                self._consoles.append(_switch_on(settings.rom))
            self._looks = [_look(console, settings) for console in self._consoles]
            if settings.start_frames:
                self._consoles[0].tick(settings.start_frames, True, False)
            self._start = _save(self._consoles[0])
        except BaseException:
            self.close()
            raise

    def reset(self, observation: np.ndarray) -> None:
        """Start a new episode everywhere; observation: (n, *observation_shape) uint8, written."""
        for i in range(self.num_envs):
            self._begin(i, observation[i])
        self._started = True

    def step(self, action: np.ndarray, out: StepBuffers) -> None:
        """action: (n,) integers. See ``BatchedEnv.step``."""
        if not self._started:
            raise RuntimeError("no episode has begun: call reset or set_state first")
        check_action(action, self.num_envs, self.spec.action)
        i = 0
        try:
            for i, choice in enumerate(action.tolist()):
                self._step_row(i, choice, out)
        except Exception as error:
            message = f"row {i} failed in step: {type(error).__name__}: {error}"
            raise EnvStepError(i, message) from error

    def _step_row(self, i: int, choice: int, out: StepBuffers) -> None:
        console, settings = self._consoles[i], self._settings
        if choice != (held := self._held[i]):
            released, pressed = self._switches[held, choice]
            for button in released:
                console.button_release(button)
            for button in pressed:
                console.button_press(button)
            self._held[i] = choice
        if not console.tick(settings.frames, self._rendered, False):
            raise RuntimeError("the emulator stopped")
        before, now = self._before[i], self._see(i, out.observation[i])
        out.reward[i] = settings.reward(now, before)
        out.terminated[i] = terminated = bool(settings.done(now, before))
        self._elapsed[i] += 1
        out.truncated[i] = truncated = self._elapsed[i] == settings.episode_length
        if terminated or truncated:
            out.final_observation[i] = out.observation[i]
            self._begin(i, out.observation[i])

    def _begin(self, i: int, observation: np.ndarray) -> None:
        console, settings = self._consoles[i], self._settings
        console.load_state(io.BytesIO(self._start))
        self._held[i] = self._released
        steps = int(self._generators[i].integers(settings.noop_max + 1))
        # Without a step to play, the screen is the one that was saved.
        if steps and not console.tick(steps * settings.frames, self._rendered, False):
            raise RuntimeError("the emulator stopped")
        self._see(i, observation)
        self._elapsed[i] = 0

    def _see(self, i: int, observation: np.ndarray) -> list[int]:
        """Write what console i shows; the watched bytes, which are noted as well."""
        self._looks[i](observation)
        memory = self._consoles[i].memory
        self._before[i] = now = [memory[address] for address in self._settings.watched]
        return now

    def get_state(self) -> State:
        """emulator: (total,) uint8, what PyBoy saves of one console after the other; lengths, elapsed, held:
        (n,) int64; before: (n, watched bytes) uint8; generators: (n, 6) uint64.

        Raises StateUnsupportedError before the first episode, and for a cartridge with a clock.
        """
        self._require_no_clock()
        if not self._started:
            raise StateUnsupportedError("there is no episode to save before reset()")
        saved = [_save(console) for console in self._consoles]
        return {
            "emulator": np.frombuffer(b"".join(saved), np.uint8).copy(),
            "lengths": np.array([len(state) for state in saved], np.int64),
            "elapsed": np.array(self._elapsed, np.int64),
            "held": np.array(self._held, np.int64),
            "before": np.array(self._before, np.uint8).reshape(self.num_envs, -1),
            "generators": generators_to_array(self._generators),
        }

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        """See ``BatchedEnv.set_state``. Raises ValueError for a state of another batch."""
        self._require_no_clock()
        size = len(self._start)
        found = state["before"].shape, state["lengths"].tolist()
        expected = (self.num_envs, len(self._settings.watched)), [size] * self.num_envs
        if found != expected or state["emulator"].shape != (size * self.num_envs,):
            raise ValueError(
                f"a saved state of consoles and watched bytes {found[0]}, of {found[1]} bytes; "
                f"expected {expected[0]}, of {size} bytes each"
            )
        for console, part in zip(self._consoles, np.split(state["emulator"], self.num_envs), strict=True):
            console.load_state(io.BytesIO(part.tobytes()))
        self._elapsed = state["elapsed"].tolist()
        self._held = state["held"].tolist()
        self._before = state["before"].tolist()
        restore_generators(self._generators, state["generators"])
        self._started = True

    def _require_no_clock(self) -> None:
        if self._settings.clock:
            raise StateUnsupportedError("the cartridge holds a clock, which goes on with the world's time")

    def close(self) -> None:
        """Stop every console and save nothing; idempotent."""
        consoles, self._consoles = self._consoles, []
        for console in consoles:
            console.stop(save=False)


def _spec(settings: Settings) -> EnvSpec:
    shape = _SCREEN_SHAPES.get(settings.observation, (len(settings.addresses),))
    return EnvSpec(
        observation_shape=shape,
        observation_dtype=np.dtype(np.uint8),
        observation_low=np.zeros(shape, np.uint8),
        observation_high=np.full(shape, 255, np.uint8),
        action=ActionSpec(shape=(), dtype=np.dtype(np.int64), num_actions=len(settings.actions)),
        max_episode_steps=settings.episode_length,
    )


def _switch_on(rom: bytes) -> PyBoy:
    # From memory, PyBoy knows no path and so looks for no saved game, clock or symbols, and writes none.
    console = PyBoy(io.BytesIO(rom), window="null", sound_emulated=False, no_input=True, log_level="CRITICAL")
    console.set_emulation_speed(0)
    return console


def _switches(
    actions: tuple[tuple[str, ...], ...],
) -> dict[tuple[int, int], tuple[list[str], list[str]]]:
    """From one action, or none as the last, to another: the buttons that are released, and pressed."""
    return {
        (old, new): ([b for b in held if b not in wanted], [b for b in wanted if b not in held])
        for old, held in enumerate((*actions, ()))
        for new, wanted in enumerate(actions)
    }


def _look(console: PyBoy, settings: Settings) -> Callable[[np.ndarray], None]:
    """What writes one observation of this console: bytes of memory, or its screen in grey.

    The screen is (144, 160, 4) uint8, little-endian RGBA, which changes in place. Where the cartridge has no
    colours, red is the grey.
    """
    memory, addresses, pixels = console.memory, settings.addresses, console.screen.ndarray
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
        if settings.observation == "reduced":
            mean = grey[::2, ::2] + grey[::2, 1::2] + grey[1::2, ::2] + grey[1::2, 1::2]
            row[..., 0] = mean >> 2
        else:
            row[..., 0] = grey

    def remember(row: np.ndarray) -> None:
        row[:] = [memory[address] for address in addresses]

    if settings.observation == "memory":
        return remember
    if settings.colours:
        return weigh
    return reduce if settings.observation == "reduced" else whole


def _save(console: PyBoy) -> bytes:
    file = io.BytesIO()
    console.save_state(file)
    return file.getvalue()
