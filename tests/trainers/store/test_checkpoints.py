"""Checkpoints: whole or not there, whatever ends a save, and nothing that was changed is resumed from."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support.disk import full_disk
from support.training import ROOT, assert_same

from fastcollect.support.errors import ConfigError
from trainers.store.checkpoints import FOLDER, Checkpoints

ARRAYS = {
    "sac/actor/kernel_0": np.arange(12, dtype=np.float32).reshape(3, 4),
    "normalizer/mean": np.linspace(0, 1, 5),
    "normalizer/count": np.array(7, np.int64),
    "sac/seed": np.array(2**32 - 1, np.uint32),
    "replay/terminated": np.array([True, False]),
    "collector/group/0/draws": np.array([2**64 - 1, 1], np.uint64),
    "collector/group/0/action": np.zeros((0, 4), np.float32),
    "evaluator/config/env": np.array('["a", null]'),
    "evaluator/bytes": np.frombuffer(b"{}", np.uint8),
}
META = {
    "first_step": 0,
    "best": [0.5, None],
    "reached": {},
    "wall_seconds": 1.25,
    "last": {"density": {"a": 1}},
}


@pytest.fixture
def checkpoints(tmp_path):
    made = Checkpoints(tmp_path)
    yield made
    made.close()


def arrays_of(number):
    return {**ARRAYS, "sac/actor/kernel_0": ARRAYS["sac/actor/kernel_0"] + number}


def load(folder):
    again = Checkpoints(folder)
    try:
        return again.latest(), *again.load()
    finally:
        again.close()


def error_of(function, *args):
    with pytest.raises(ConfigError) as caught:
        function(*args)
    (problem,) = caught.value.problems
    return problem


def files(folder):
    """What a checkpoint consists of, the largest first."""
    return sorted((f for f in folder.rglob("*") if f.is_file()), key=lambda f: -f.stat().st_size)


def test_what_was_saved_comes_back_as_it_was(checkpoints, tmp_path):
    assert checkpoints.latest() is None
    checkpoints.save(5, ARRAYS, META)
    for found in (checkpoints.load(), load(tmp_path)[1:]):
        assert_same(found[0], ARRAYS)
        assert found[1] == META
    assert checkpoints.latest() == 5


def test_the_two_newest_stay(checkpoints, tmp_path):
    for step in (3, 10, 200):
        checkpoints.save(step, arrays_of(step), {"step": step})
    assert {int(each.name) for each in (tmp_path / FOLDER).iterdir()} == {10, 200}
    step, arrays, meta = load(tmp_path)
    assert (step, meta) == (200, {"step": 200})
    assert_same(arrays, arrays_of(200))
    shutil.rmtree(tmp_path / FOLDER / "200")
    step, arrays, meta = load(tmp_path)
    assert (step, meta) == (10, {"step": 10})
    assert_same(arrays, arrays_of(10))


def test_a_step_is_saved_once(checkpoints):
    checkpoints.save(3, arrays_of(1), {"first": True})
    checkpoints.save(3, arrays_of(2), {"first": False})
    arrays, meta = checkpoints.load()
    assert meta == {"first": True}
    assert_same(arrays, arrays_of(1))


def test_there_must_be_one(checkpoints, tmp_path):
    assert str(tmp_path / FOLDER) in error_of(checkpoints.load)


@pytest.mark.parametrize("harm", ["truncate", "flip", "remove", "empty", "pipe-dream"])
def test_a_damaged_checkpoint_is_one_error_that_names_it(harm, tmp_path):
    written = Checkpoints(tmp_path)
    written.save(5, arrays_of(5), META)
    written.save(7, arrays_of(7), META)
    written.close()
    folder = tmp_path / FOLDER / "7"
    victims = files(folder)
    tried = 0
    for victim in victims:
        content = victim.read_bytes()
        if harm == "truncate":
            victim.write_bytes(content[: len(content) // 2])
        elif harm == "flip":
            middle = len(content) // 2
            victim.write_bytes(content[:middle] + bytes([content[middle] ^ 0x55]) + content[middle + 1 :])
        elif harm == "remove":
            victim.unlink()
        elif harm == "empty":
            victim.write_bytes(b"")
        else:
            victim.write_bytes(b"{" * len(content))
        try:
            step, arrays, meta = load(tmp_path)
        except ConfigError as error:
            (problem,) = error.problems
            assert str(folder) in problem
            assert "\n" not in problem
            tried += 1
        else:  # what nothing depends on, or what makes it no checkpoint at all
            assert_same(arrays, arrays_of(step))
            assert meta == META
        victim.parent.mkdir(parents=True, exist_ok=True)
        victim.write_bytes(content)
    assert tried >= len(victims) // 4
    assert load(tmp_path)[0] == 7
    shutil.rmtree(folder)
    step, arrays, _ = load(tmp_path)
    assert step == 5
    assert_same(arrays, arrays_of(5))


def test_a_full_disk_is_one_error_and_the_earlier_checkpoint_stays(checkpoints, tmp_path, monkeypatch, capfd):
    checkpoints.save(1, arrays_of(1), META)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
        problem = error_of(checkpoints.save, 2, arrays_of(2), META)
        assert "checkpoint 2 cannot be written" in problem
        assert "are free" in problem
    with full_disk():
        problem = error_of(checkpoints.save, 3, arrays_of(3), META)
    assert "checkpoint 3 cannot be written" in problem
    assert str(tmp_path) in problem
    assert "\n" not in problem
    assert capfd.readouterr().err == ""
    step, arrays, _ = load(tmp_path)
    assert step == 1
    assert_same(arrays, arrays_of(1))
    again = Checkpoints(tmp_path)
    again.save(4, arrays_of(4), META)
    again.close()
    assert load(tmp_path)[0] == 4


SAVER = """
    import sys
    import numpy as np
    from trainers.store.checkpoints import Checkpoints

    checkpoints = Checkpoints(__import__("pathlib").Path(sys.argv[1]))
    step = (checkpoints.latest() or 0) + 1000  # not that of a save that was killed, which would replace it
    while True:
        step += 1
        arrays = {f"part/{i}": np.full(20_000, step, np.float32) for i in range(8)}
        checkpoints.save(step, arrays, {"step": step})
        print(step, flush=True)
"""


def test_a_save_that_is_killed_leaves_the_one_before_and_nothing_for_good(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(SAVER), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    left: set[str] = set()
    for _ in range(3):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as saver:
            announced = int(saver.stdout.readline())
            assert not left & _temporary(tmp_path / FOLDER)
            _stop_inside_a_save(saver.pid, tmp_path / FOLDER)
            saver.send_signal(signal.SIGKILL)
            announced = max([announced, *map(int, saver.stdout.read().split())])
        left = _temporary(tmp_path / FOLDER)
        assert left
        # A copy is read, as whoever opens the folder itself begins to clear it up.
        copy = shutil.copytree(tmp_path / FOLDER, tmp_path / "copy" / FOLDER).parent
        step, arrays, meta = load(copy)
        shutil.rmtree(copy)
        assert step >= announced
        assert meta == {"step": step}
        assert len(arrays) == 8
        assert all((value == step).all() for value in arrays.values())


def _stop_inside_a_save(pid, folder):
    """Let the process run until it stands still with a temporary folder on the disk."""
    for _ in range(1000):
        while not _temporary(folder):
            pass
        os.kill(pid, signal.SIGSTOP)
        os.waitpid(pid, os.WUNTRACED)
        if _temporary(folder):
            return
        os.kill(pid, signal.SIGCONT)
    raise AssertionError("every save was over before the process stood still")


def test_a_folder_that_cannot_be_made_is_one_error(tmp_path, monkeypatch):
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / FOLDER).write_text("mine")
    assert str(tmp_path / "file" / FOLDER) in error_of(Checkpoints, tmp_path / "file")
    assert (tmp_path / "file" / FOLDER).read_text() == "mine"

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "mkdir", full)
    problem = error_of(Checkpoints, tmp_path)
    assert str(tmp_path / FOLDER) in problem
    assert "No space left on device" in problem


def test_a_removed_folder_is_no_hindrance_to_closing(tmp_path):
    made = Checkpoints(tmp_path)
    made.save(1, ARRAYS, META)
    shutil.rmtree(tmp_path / FOLDER)
    made.close()
    assert not (tmp_path / FOLDER).exists()


def _temporary(folder: Path):
    return {each.name for each in folder.iterdir() if not each.name.isdecimal()}
