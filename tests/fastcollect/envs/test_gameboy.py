"""Game Boys against raw PyBoy played by hand."""

import io
import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.catch import ROM, patched
from support.collectors import one_round, reproducible
from support.processes import wait_until_gone

from bench.cartridge import ADDRESSES
from fastcollect import random_policy
from fastcollect.control.collector import Collector
from fastcollect.control.serial import SerialCollector
from fastcollect.envs.base import BatchedEnv, EnvStepError, StateUnsupportedError, StepBuffers
from fastcollect.envs.gameboy import make
from fastcollect.envs.registry import EnvConfig, make_env, resolve

pyboy = pytest.importorskip("pyboy")

ROOT = Path(__file__).resolve().parents[3]
SCORE, MISSES, LIVES = (ADDRESSES[name] for name in ("score", "misses", "lives"))
REWARD = f"delta({SCORE:#x}) - 0.25 * delta({MISSES:#x})"
DONE = f"mem[{LIVES:#x}] == 0"
ACTIONS = ("noop", "a", "left", "right", "a+right")


@pytest.fixture
def cartridge(tmp_path):
    file = tmp_path / "catch.gb"
    file.write_bytes(ROM)
    return str(file)


def build_env(cartridge, seeds=(3, 4), **kwargs):
    defaults = {"reward": REWARD, "done": DONE, "actions": ACTIONS, "episode_length": 60, "noop_max": 5}
    return make(np.array(seeds), cartridge=cartridge, **{**defaults, **kwargs})


class Raw:
    """One PyBoy played by hand: every frame rendered, buttons by name."""

    def __init__(self, seed, rom=ROM, frames=4, start_frames=120, noop_max=5):
        self.console = pyboy.PyBoy(io.BytesIO(rom), window="null", sound_emulated=False)
        self.console.set_emulation_speed(0)
        self.frames, self.noop_max, self.coloured = frames, noop_max, bool(rom[0x143] & 0x80)
        self.generator = np.random.default_rng(seed)
        self.play(start_frames)
        self.start = io.BytesIO()
        self.console.save_state(self.start)
        self.reset()

    def play(self, frames):
        for _ in range(frames):
            self.console.tick()

    def reset(self):
        self.start.seek(0)
        self.console.load_state(self.start)
        self.held = set()
        self.play(self.frames * int(self.generator.integers(self.noop_max + 1)))
        self.steps = 0

    def step(self, action):
        wanted = set() if action == "noop" else set(action.split("+"))
        for button in self.held - wanted:
            self.console.button_release(button)
        for button in wanted - self.held:
            self.console.button_press(button)
        self.held = wanted
        self.play(self.frames)
        self.steps += 1

    def read(self, *addresses):
        return [self.console.memory[address] for address in addresses]

    def look(self, observation):
        if observation == "memory":
            return np.array(self.read(*ADDRESSES.values()), np.uint8)
        pixels = self.console.screen.ndarray.astype(np.int64)
        grey = pixels[..., 0]
        if self.coloured:
            grey = (77 * pixels[..., 0] + 150 * pixels[..., 1] + 29 * pixels[..., 2]) // 256
        if observation == "reduced":
            grey = grey.reshape(72, 2, 80, 2).sum(axis=(1, 3)) // 4
        return grey.astype(np.uint8)[..., None]


def play_beside(env, raws, observation, steps, seed=0):
    """Step both and compare everything; how many episodes were terminated, and truncated."""
    out = StepBuffers.allocate(env.spec, env.num_envs)
    env.reset(out.observation)
    choices = np.random.default_rng(seed).integers(len(ACTIONS), size=(steps, env.num_envs))
    choices = np.repeat(choices[::3], 3, axis=0)[:steps]  # held over several steps, too
    ends = np.zeros(2, int)
    for choice in choices:
        before = [raw.read(SCORE, MISSES) for raw in raws]
        env.step(choice, out)
        for i, raw in enumerate(raws):
            raw.step(ACTIONS[choice[i]])
            score, misses, lives = raw.read(SCORE, MISSES, LIVES)
            assert out.reward[i] == score - before[i][0] - 0.25 * (misses - before[i][1])
            assert out.terminated[i] == (lives == 0)
            assert out.truncated[i] == (raw.steps == env.spec.max_episode_steps)
            ends += out.terminated[i], out.truncated[i]
            if out.terminated[i] or out.truncated[i]:
                assert out.final_observation[i].tobytes() == raw.look(observation).tobytes()
                raw.reset()
            assert out.observation[i].tobytes() == raw.look(observation).tobytes()
    return ends.tolist()


@pytest.mark.parametrize(
    ("observation", "shape"), [("screen", (144, 160, 1)), ("reduced", (72, 80, 1)), ("memory", (6,))]
)
def test_every_step_equals_raw_pyboys(cartridge, observation, shape):
    addresses = [f"{address:#x}" for address in ADDRESSES.values()] if observation == "memory" else ()
    env = build_env(cartridge, observation=observation, addresses=addresses)
    assert isinstance(env, BatchedEnv)
    assert env.spec.observation_shape == shape
    assert env.spec.observation_dtype == np.uint8
    assert env.spec.action.num_actions == len(ACTIONS)
    terminated, truncated = play_beside(env, [Raw(3), Raw(4)], observation, 110)
    assert terminated
    assert truncated
    env.close()


@pytest.mark.parametrize("observation", ["screen", "reduced"])
def test_a_colour_cartridge_shows_its_luminance(tmp_path, observation):
    rom = patched(colour=0x80)
    file = tmp_path / "colour.gb"
    file.write_bytes(rom)
    env = build_env(file, seeds=[1], observation=observation)
    raw = Raw(1, rom)
    play_beside(env, [raw], observation, 12)
    assert np.ptp(raw.console.screen.ndarray[..., :3], axis=2).any()  # the console does show colours
    env.close()


def test_other_frames_and_starts_and_no_steps_before_an_episode(cartridge):
    env = build_env(cartridge, seeds=[7], frames=1, start_frames=150, noop_max=0)
    play_beside(env, [Raw(7, frames=1, start_frames=150, noop_max=0)], "reduced", 70)
    env.close()


def record(env, steps, seed=0, reset=True):
    """All that an environment writes while it is given drawn actions."""
    out = StepBuffers.allocate(env.spec, env.num_envs)
    rows = []
    if reset:
        env.reset(out.observation)
        rows.append(out.observation.tobytes())
    for choice in np.random.default_rng(seed).integers(len(ACTIONS), size=(steps, env.num_envs)):
        env.step(choice, out)
        rows.append(tuple(getattr(out, name).tobytes() for name in ("observation", "reward", "terminated")))
        ended = out.terminated | out.truncated
        rows.append((ended.tobytes(), out.final_observation[ended].tobytes()))
    return rows


def test_a_seed_makes_the_episodes_whatever_the_batch(cartridge):
    first, again, other = (build_env(cartridge, seeds=[seed], episode_length=9) for seed in (5, 5, 6))
    expected = record(first, 40)
    assert record(again, 40) == expected
    assert record(other, 40) != expected
    alone = [StepBuffers.allocate(first.spec, 1) for _ in range(2)]
    pair, both = build_env(cartridge, seeds=[5, 6]), StepBuffers.allocate(first.spec, 2)
    singles = [build_env(cartridge, seeds=[seed]) for seed in (5, 6)]
    pair.reset(both.observation)
    for single, out in zip(singles, alone, strict=True):
        single.reset(out.observation)
    for step in range(40):
        choice = np.array([step % 5, step * 3 % 5])
        pair.step(choice, both)
        for i, (single, out) in enumerate(zip(singles, alone, strict=True)):
            single.step(choice[i : i + 1], out)
            assert out.observation.tobytes() == both.observation[i].tobytes()
    for env in (first, again, other, pair, *singles):
        env.close()


def test_a_saved_state_goes_on_bit_for_bit(cartridge, tmp_path):
    env = build_env(cartridge, episode_length=25)
    record(env, 37)
    np.savez(tmp_path / "state.npz", **env.get_state())
    expected = record(env, 50, seed=1, reset=False)
    with np.load(tmp_path / "state.npz", allow_pickle=False) as state:
        fresh = build_env(cartridge, seeds=[8, 9], episode_length=25)
        for other in (fresh, env):
            other.set_state(state)
            saved = other.get_state()
            assert all(saved[name].tobytes() == state[name].tobytes() for name in state)
            assert record(other, 50, seed=1, reset=False) == expected
        with pytest.raises(ValueError, match=r"\(2, 3\).*expected \(1, 3\)"):
            build_env(cartridge, seeds=[1]).set_state(state)
        with pytest.raises(ValueError, match=r"\(2, 3\).*expected \(2, 0\)"):
            build_env(cartridge, reward=1.5, done=0.0).set_state(state)


def test_what_must_come_first_and_actions_that_are_none(cartridge):
    env = build_env(cartridge)
    out = StepBuffers.allocate(env.spec, 2)
    with pytest.raises(RuntimeError, match="reset"):
        env.step(np.zeros(2, np.int64), out)
    with pytest.raises(StateUnsupportedError, match="reset"):
        env.get_state()
    env.reset(out.observation)
    for wrong in (-1, 5):
        with pytest.raises(EnvStepError, match=f"action {wrong} of row 1 is not one of 0 to 4") as error:
            env.step(np.array([0, wrong]), out)
        assert error.value.env_index == 1
    with pytest.raises(ValueError, match="shape"):
        env.step(np.zeros(3, np.int64), out)


def test_an_expression_that_fails_names_its_row(cartridge):
    env = build_env(cartridge, reward="1 / mem[0xC0A0]")
    out = StepBuffers.allocate(env.spec, 2)
    env.reset(out.observation)
    with pytest.raises(EnvStepError, match=r"row 0 .*ZeroDivisionError"):
        env.step(np.zeros(2, np.int64), out)


def test_a_cartridge_with_a_clock_plays_but_has_no_state(tmp_path):
    file = tmp_path / "clock.gb"
    file.write_bytes(patched(kind=0x10, ram=3))
    env = build_env(file)
    assert record(env, 3)
    for ask in (env.get_state, lambda: env.set_state({})):
        with pytest.raises(StateUnsupportedError, match="clock"):
            ask()


def test_the_game_is_won_by_who_reads_memory(cartridge):
    names = ("ball_x", "paddle_x", "score")
    env = build_env(
        cartridge,
        observation="memory",
        addresses=[ADDRESSES[name] for name in names],
        actions="noop,left,right",
        episode_length=150,
        reward=SCORE,  # a lone integer: its delta
    )
    returns = {}
    for kind in ("noop", "catch"):
        out = StepBuffers.allocate(env.spec, 2)
        env.reset(out.observation)
        total = np.zeros(2)
        for _ in range(150):
            off = out.observation[:, 0].astype(int) - out.observation[:, 1] - 8
            choice = np.where(off < -8, 1, np.where(off > 8, 2, 0))
            env.step(choice if kind == "catch" else np.zeros(2, np.int64), out)
            total += out.reward
        returns[kind] = total.min() if kind == "catch" else total.max()
    assert returns["catch"] >= 9  # a ball falls for 15 steps
    assert returns["noop"] < returns["catch"] / 2
    env.close()


def test_nothing_is_left_when_construction_fails_half_way(cartridge, monkeypatch):
    from fastcollect.envs.gameboy import consoles

    made, switch_on = [], consoles._switch_on

    def third_fails(rom):
        if len(made) == 2:
            raise MemoryError("no room for a third")
        made.append(switch_on(rom))
        return made[-1]

    monkeypatch.setattr(consoles, "_switch_on", third_fails)
    with pytest.raises(MemoryError, match="third"):
        build_env(cartridge, seeds=[1, 2, 3])
    assert all(stopped(console) for console in made)


def stopped(console):
    try:
        return not console.tick(1, False, False)
    except pyboy.utils.PyBoyInvalidOperationException:
        return True


def test_closing_stops_every_console_and_writes_no_file(tmp_path):
    file = tmp_path / "battery.gb"
    file.write_bytes(patched(kind=0x03, ram=3))
    (tmp_path / "battery.gb.ram").write_bytes(b"torn")
    (tmp_path / "battery.sym").write_bytes(b"\xff not symbols")
    env = build_env(file)
    record(env, 5)
    made = list(env._consoles)
    assert not any(stopped(console) for console in made)
    env.close()
    env.close()
    assert all(stopped(console) for console in made)
    assert sorted(os.listdir(tmp_path)) == ["battery.gb", "battery.gb.ram", "battery.sym"]
    assert (tmp_path / "battery.gb.ram").read_bytes() == b"torn"


def content(block):
    arrays = [block.env_index, block.observation, block.action, block.reward, block.terminated]
    arrays += [block.truncated, block.next_observation, block.episodes.final_observation]
    return [np.ascontiguousarray(array).tobytes() for array in arrays]


@pytest.mark.parametrize("models", [0, 1])
def test_images_survive_the_ring_and_nothing_is_left(cartridge, models, tmp_path):
    kwargs = {"reward": REWARD, "done": DONE, "episode_length": 7, "noop_max": 3}
    env = EnvConfig(id=f"gameboy:{cartridge}", kwargs=kwargs)
    config = reproducible(env, random_policy(), num_envs=4, workers=2, models=models, group_size=2)
    with SerialCollector(config) as collector:
        expected = [[content(block) for block in one_round(collector)] for _ in range(4)]
    with Collector(config) as collector:
        pids = list(itertools.chain.from_iterable(collector.pids().values()))
        blocks = [one_round(collector) for _ in range(4)]
    assert [[content(block) for block in round_] for round_ in blocks] == expected
    assert all(block.observation.dtype == np.uint8 for block in blocks[0])
    assert len({block.observation.tobytes() for round_ in blocks for block in round_}) == 4 * 4
    wait_until_gone(pids)
    assert os.listdir(tmp_path) == ["catch.gb"]


def test_the_registry_takes_a_path(cartridge):
    config = resolve(EnvConfig(id=f"gameboy:{cartridge}", kwargs={"frames": 2}))
    assert config.entry_point == "fastcollect.envs.gameboy:make"
    assert config.kwargs == {"frames": 2, "cartridge": cartridge}
    assert resolve(config) == config
    env = make_env(config, np.arange(2))
    assert env.spec.action.num_actions == 9
    env.close()


def test_what_is_said_without_pyboy(cartridge):
    script = "import sys; sys.modules['pyboy'] = None\n"
    script += "import numpy as np\nfrom fastcollect.envs.registry import EnvConfig, make_env\n"
    script += f"make_env(EnvConfig(id='gameboy:{cartridge}'), np.arange(1))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert "ImportError: Game Boy cartridges need PyBoy: pip install pyboy" in done.stderr
