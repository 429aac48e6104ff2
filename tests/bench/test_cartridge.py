"""Our own cartridge: its listing against its source, its header, and that the game plays by its rules."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
from support.assembler import AssemblyError, assemble, listing_of, source_of

from bench.cartridge import ADDRESSES, LISTING, SIZE, build

ROOT = Path(__file__).resolve().parents[2]


def command(*arguments):
    parts = [sys.executable, "-m", "bench.cartridge", *map(str, arguments)]
    return subprocess.run(parts, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_the_cartridge_is_always_the_same_and_its_header_is_valid():
    rom = build()
    assert rom == build()
    assert len(rom) == SIZE == 32 << 10 << rom[0x148]
    checksum = 0
    for byte in rom[0x134:0x14D]:
        checksum = (checksum - byte - 1) % 256
    assert rom[0x14D] == checksum
    assert int.from_bytes(rom[0x14E:0x150], "big") == (sum(rom) - rom[0x14E] - rom[0x14F]) % 65536
    assert rom[0x134:0x144].rstrip(b"\0") == b"CATCH"
    assert not any(rom[0x104:0x134])  # no logo
    assert rom[0x100:0x104] == bytes((0x00, 0xC3, 0x50, 0x01))  # nop, jp 0x0150


def test_the_listing_holds_what_its_source_assembles_to():
    listing = LISTING.read_text()
    assert listing == listing_of(source_of(listing))
    assert build() == assemble(source_of(listing))


def test_instructions_labels_and_sums():
    source = """
        PLACE = 0xC000 + 2  ; a comment
        org 0x150
    again:
        ld a, (PLACE - 1)
        ld (PLACE), a
        ldh (0x40), a
        ld hl, after
        srl h
        jr nz, again
        jr after
        db 1, "AB", 0xFF
    after:
        ret
    """
    code = assemble(source)[0x150:0x168]
    assert (
        code
        == bytes.fromhex("FA01C0 EA02C0 E040 216501 CB3C 20F1 1804 014142FF C9 0000".replace(" ", ""))[:24]
    )


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("ld b, c", "no such instruction"),
        ("fly a", "no such instruction"),
        ("ld a", "no such instruction"),
        ("ld a, 256", "256 is not from 0 to 255"),
        ("ld a, nowhere", "nothing is called 'nowhere'"),
        ("jr 0x7000", "not from -128 to 127"),
        ("db 1 * 2", "no number, name or sum"),
        ("org 0x10", "ends at 0x0020"),
        ("twice:", "there already"),
    ],
)
def test_a_wrong_line_is_named(line, reason):
    with pytest.raises(AssemblyError, match=reason) as error:
        assemble(f"org 0x20\ntwice:\n{line}\n")
    assert f"line 3, {line!r}" in str(error.value)


def test_the_command_writes_the_file_or_says_why_not(tmp_path):
    file = tmp_path / "catch.gb"
    assert command(file).returncode == 0
    assert file.read_bytes() == build()
    for arguments, said in (([], "FILE"), (["a", "b"], "b"), ([tmp_path], "is a folder")):
        done = command(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert said in done.stderr
        assert "Traceback" not in done.stderr


class Game:
    """The cartridge in PyBoy, frame by frame."""

    def __init__(self):
        pyboy = pytest.importorskip("pyboy")
        self.console = pyboy.PyBoy(io.BytesIO(build()), window="null", sound_emulated=False)
        self.console.set_emulation_speed(0)
        self.console.tick(120, True, False)

    def __getattr__(self, name):
        return self.console.memory[ADDRESSES[name]]

    def play(self, frames, button=None):
        if button:
            self.console.button_press(button)
        self.console.tick(frames, True, False)
        if button:
            self.console.button_release(button)
            self.console.tick(1, True, False)
        return self.console.screen.ndarray[..., 0].copy()

    def close(self):
        self.console.stop(save=False)


@pytest.fixture
def game():
    game = Game()
    yield game
    game.close()


def test_the_paddle_stops_at_both_walls(game):
    start = game.paddle_x
    game.play(4, "left")
    assert game.paddle_x == start - 4 * 3
    game.play(60, "left")
    assert game.paddle_x == 0
    game.play(90, "right")
    assert game.paddle_x == 135


def test_a_missed_ball_costs_a_life_and_the_game_ends_until_start(game):
    assert (game.score, game.misses, game.lives) == (0, 0, 3)
    for _ in range(40):
        game.play(20, "left")
        assert game.score + game.misses <= 40
        assert game.lives == 3 - game.misses
        assert 8 <= game.ball_y <= 128
        assert 12 <= game.ball_x <= 139
    assert (game.lives, game.misses) == (0, 3)
    dark, frozen = game.play(8), game.play(30)
    assert (dark == frozen).all()
    assert dark.mean() < 128
    light = game.play(8, "start")
    assert (game.lives, game.misses, game.score) == (3, 0, 0)
    assert light.mean() > 128


def test_the_screen_shows_ball_paddle_lives_and_score(game):
    for wanted in (0, 2):
        while game.score < wanted:
            side = "left" if game.ball_x < game.paddle_x + 8 else "right"
            game.play(2, side)
        before = (game.ball_x, game.ball_y, game.paddle_x, game.lives, game.score)
        screen = game.play(1)  # memory moves on after the last line
        ball_x, ball_y, paddle_x, lives, score = before
        row = screen[ball_y + 4]
        assert row[ball_x] == row[ball_x + 7] == 0
        assert (screen[136:143, paddle_x : paddle_x + 24] < 255).all()
        assert [(screen[3, 8 * k + 3] < 255) for k in range(3)] == [k < lives for k in range(3)]
        assert [(screen[3, 32 + 8 * k + 3] < 255) for k in range(16)] == [k < score for k in range(16)]
