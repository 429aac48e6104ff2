"""Every file that is no cartridge, and every argument that cannot work."""

import os
import struct

import numpy as np
import pytest
from support.catch import ROM, patched

from fastcollect.envs.gameboy import make
from fastcollect.support.errors import ConfigError


def refused(**kwargs):
    with pytest.raises(ConfigError) as error:
        make(np.array([1]), **kwargs)
    return error.value.problems


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "0 bytes; allowed: a power of two from 32,768"),
        (ROM[:16384], "16,384 bytes"),
        (ROM + b"\0", "32,769 bytes"),
        (bytes(16 << 20), "16,777,216 bytes"),
        (bytes(32768), "checksum is 0x00; allowed: 0xe7"),
        (b"\xff" * 32768, "checksum"),
        (patched(checksum=1), "checksum is 0x01"),
        (patched(kind=0xFC), "type 0xfc, which PyBoy does not know; allowed: ROM, MBC1"),
        (patched(kind=0x0B), "type 0x0b"),
        (patched(size=1), "size code is 0x01"),
        (patched(size=0x52), "size code is 0x52"),
        (patched(ram=6), "RAM size; allowed: 0x00 to 0x05"),
        (struct.pack("<I", 0x464C457F) * 8192, "checksum"),
    ],
)
def test_a_file_that_is_no_cartridge(tmp_path, content, said):
    file = tmp_path / "some.gb"
    file.write_bytes(content)
    (problem,) = refused(cartridge=file)
    assert repr(str(file)) in problem
    assert said in problem
    assert "allowed" in problem


def test_what_is_no_file_at_all(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    cases = {
        str(tmp_path / "none.gb"): "No such file",
        str(tmp_path): "no plain file",
        str(tmp_path / "pipe"): "no plain file",
        "/dev/zero": "no plain file",
        "a\0b": "null",
        "": "the path of",
        7: "the path of",
        None: "the path of",
        "x" * 5000: "too long",
    }
    for path, said in cases.items():
        (problem,) = refused(cartridge=path)
        assert said in problem
        assert "allowed: " in problem


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"observation": "pixels"}, "observation is 'pixels'; allowed: screen, reduced, memory"),
        ({"observation": None}, "observation is None"),
        ({"observation": "memory"}, "addresses is empty"),
        ({"observation": "memory", "addresses": "0xC000,"}, "addresses has ''"),
        ({"observation": "memory", "addresses": ["0xZZ", 0x7FFF, 65536, -1]}, "'0xZZ', 32767, 65536, -1;"),
        ({"observation": "memory", "addresses": [1.5, True, None]}, "1.5, True, None; allowed: 0x8000"),
        ({"observation": "memory", "addresses": [0xC000] * 5000}, "5000 entries; allowed: up to 4096"),
        ({"addresses": [0xC000]}, "addresses is given; allowed: only where observation is 'memory'"),
        ({"frames": 0}, "frames is 0; allowed: whole numbers from 1 to 3600"),
        ({"frames": 4.0}, "frames is 4.0"),
        ({"frames": "4"}, "frames is '4'"),
        ({"frames": True}, "frames is True"),
        ({"episode_length": 0}, "episode_length is 0"),
        ({"episode_length": None}, "episode_length is None"),
        ({"start_frames": -1}, "start_frames is -1; allowed: whole numbers from 0"),
        ({"noop_max": 10**9}, "noop_max is 1000000000"),
        ({"actions": []}, "actions is []; allowed: at least one"),
        ({"actions": "jump"}, "actions has 'jump', which the pad does not have; allowed: noop, a, b, up"),
        ({"actions": ["A"]}, "actions has 'A'"),
        ({"actions": ["a+noop"]}, "actions has 'a+noop'"),
        ({"actions": ["a+"]}, "actions has 'a+'"),
        ({"actions": [3]}, "actions has 3"),
        ({"actions": ["left+right"]}, "which a pad cannot press at once"),
        ({"actions": ["a+a"]}, "with a button twice"),
        ({"actions": ["a+b", "b+a"]}, "actions has 'b+a' twice"),
        ({"reward": "score"}, "reward is 'score': column 1, 'score': Name is not known"),
        ({"done": "mem[1]"}, "done is 'mem[1]': column 5, '1': no address"),
    ],
)
def test_each_wrong_value_is_named_with_what_is_allowed(tmp_path, kwargs, said):
    file = tmp_path / "catch.gb"
    file.write_bytes(ROM)
    (problem,) = refused(cartridge=file, **kwargs)
    assert said in problem
    assert "allowed: " in problem


def test_all_that_is_wrong_is_said_at_once():
    problems = refused(cartridge="", observation="x", frames=0, noop_max=-1, actions="", reward="x", done="y")
    assert [problem.split()[0] for problem in problems] == [
        "cartridge",
        "observation",
        "frames",
        "noop_max",
        "actions",
        "reward",
        "done",
    ]
