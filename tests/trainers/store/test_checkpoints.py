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
    "evaluator/names": np.array([["a", ""], ["\u00e4\U0001f600", "x" * 40]]),
}
META = {
    "first_step": 0,
    "best": [0.5, None],
    "reached": {},
    "wall_seconds": 1.25,
    "last": {"density": {"a": 1}},
    "returns": [1.5, float("inf")],
}


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path)


def arrays_of(number):
    return {**ARRAYS, "sac/actor/kernel_0": ARRAYS["sac/actor/kernel_0"] + number}


def load(folder):
    again = Checkpoints(folder)
    return again.latest(), *again.load()


def error_of(function, *args):
    with pytest.raises(ConfigError) as caught:
        function(*args)
    (problem,) = caught.value.problems
    return problem


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
    assert names(tmp_path) == ["10.npz", "200.npz", "index.json"]
    step, arrays, meta = load(tmp_path)
    assert (step, meta) == (200, {"step": 200})
    assert_same(arrays, arrays_of(200))
    (tmp_path / FOLDER / "200.npz").unlink()
    step, arrays, meta = load(tmp_path)
    assert (step, meta) == (10, {"step": 10})
    assert_same(arrays, arrays_of(10))
    for step in (200, 300):  # as a run does that goes on from there
        checkpoints.save(step, arrays_of(step), {"step": step})
        assert load(tmp_path)[0] == step
    assert len(names(tmp_path)) == 3


def test_a_step_is_saved_once(checkpoints):
    checkpoints.save(3, arrays_of(1), {"first": True})
    checkpoints.save(3, arrays_of(2), {"first": False})
    arrays, meta = checkpoints.load()
    assert meta == {"first": True}
    assert_same(arrays, arrays_of(1))


def test_there_must_be_one(checkpoints, tmp_path):
    assert str(tmp_path / FOLDER) in error_of(checkpoints.load)


def harmed(content, harm):
    middle = len(content) // 2
    return {
        "truncate": content[:middle],
        "flip": content[:middle] + bytes([content[middle] ^ 0x55]) + content[middle + 1 :],
        "empty": b"",
        "pipe-dream": b"{" * len(content),
    }[harm]


@pytest.mark.parametrize("harm", ["truncate", "flip", "empty", "pipe-dream"])
def test_a_damaged_checkpoint_is_one_error_that_names_it_and_says_what_to_do(harm, tmp_path):
    written = Checkpoints(tmp_path)
    written.save(5, arrays_of(5), META)
    written.save(7, arrays_of(7), META)
    victim = tmp_path / FOLDER / "7.npz"
    content = victim.read_bytes()
    victim.write_bytes(harmed(content, harm))
    problem = error_of(load, tmp_path)
    assert "\n" not in problem
    assert problem.endswith(f"remove {str(victim)!r} to go on from the checkpoint before it")
    victim.write_bytes(content)
    assert load(tmp_path)[0] == 7
    victim.unlink()
    step, arrays, _ = load(tmp_path)
    assert step == 5
    assert_same(arrays, arrays_of(5))


@pytest.mark.parametrize("harm", ["truncate", "empty", "pipe-dream"])
def test_a_damaged_index_is_one_error_that_names_it_and_says_what_to_do(harm, tmp_path):
    Checkpoints(tmp_path).save(5, arrays_of(5), META)
    index = tmp_path / FOLDER / "index.json"
    index.write_bytes(harmed(index.read_bytes(), harm))
    problem = error_of(Checkpoints, tmp_path)
    assert str(index) in problem
    assert problem.endswith(f"remove {str(tmp_path / FOLDER)!r} to begin this run anew")
    assert (tmp_path / FOLDER / "5.npz").exists()


def test_a_full_disk_is_one_error_and_the_earlier_checkpoint_stays(checkpoints, tmp_path, monkeypatch, capfd):
    checkpoints.save(1, arrays_of(1), META)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
        problem = error_of(checkpoints.save, 2, arrays_of(2), META)
        assert f"{str(tmp_path / FOLDER / '2.npz')!r} cannot be written" in problem
        assert "are free" in problem
    with full_disk():
        problem = error_of(checkpoints.save, 3, arrays_of(3), META)
    assert f"{str(tmp_path / FOLDER / '3.npz')!r} cannot be written" in problem
    assert "\n" not in problem
    assert capfd.readouterr().err == ""
    step, arrays, _ = load(tmp_path)
    assert step == 1
    assert_same(arrays, arrays_of(1))
    Checkpoints(tmp_path).save(4, arrays_of(4), META)
    assert load(tmp_path)[0] == 4


SAVER = """
    import sys
    import numpy as np
    from trainers.store.checkpoints import Checkpoints

    checkpoints = Checkpoints(__import__("pathlib").Path(sys.argv[1]))
    step = (checkpoints.latest() or 0) + 1000  # not that of a save that was killed, which would replace it
    while True:
        step += 1
        arrays = {f"part/{i}": np.full(200_000, step, np.float32) for i in range(8)}
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
    """Let the process run until it stands still with a temporary file on the disk."""
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


KILLED = """
    import os, signal, sys
    from pathlib import Path
    import numpy as np
    from trainers.store.checkpoints import Checkpoints

    folder, moment = Path(sys.argv[1]), sys.argv[2].split()
    checkpoints = Checkpoints(folder)
    for step in (1, 2):
        checkpoints.save(step, {"x": np.full(9, step)}, {"step": step})
    really = {"replace": os.replace, "unlink": Path.unlink}

    def die_at(name, file, act):
        at = moment[1] == name and str(file).endswith(moment[2])
        if at and moment[0] == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        act()
        if at:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = lambda a, b: die_at("replace", b, lambda: really["replace"](a, b))
    Path.unlink = lambda file, **how: die_at("unlink", file, lambda: really["unlink"](file, **how))
    checkpoints.save(3, {"x": np.full(9, 3)}, {"step": 3})
"""


@pytest.mark.parametrize(
    ("moment", "newest"),
    [
        ("before replace 3.npz", 2),
        ("after replace 3.npz", 2),
        ("before replace index.json", 2),
        ("after replace index.json", 3),
        ("before unlink 1.npz", 3),
        ("after unlink 1.npz", 3),
    ],
)
def test_a_kill_at_any_moment_leaves_the_newest_complete_one_and_the_one_before(moment, newest, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path), moment], cwd=ROOT, timeout=60
    )
    assert done.returncode == -signal.SIGKILL
    for step in (newest, newest - 1):
        found, arrays, meta = load(tmp_path)
        assert (found, meta, arrays["x"].tolist()) == (step, {"step": step}, [step] * 9)
        assert names(tmp_path) == sorted(
            [f"{each}.npz" for each in range(newest - 1, step + 1)] + ["index.json"]
        )
        (tmp_path / FOLDER / f"{step}.npz").unlink()


def names(folder):
    return sorted(each.name for each in (folder / FOLDER).iterdir())


def _temporary(folder: Path):
    return {each.name for each in folder.iterdir() if each.name.startswith(".")}
