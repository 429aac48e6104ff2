"""The ``fastcollect`` command, in processes of its own as a user starts it."""

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from bench import console

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ENTRY = PROJECT["scripts"]["fastcollect"]

ENVIRONMENT = """
import gymnasium
import numpy as np


class Still(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), 0.0, False, False, {}
"""


def in_process(command, cwd):
    """(Exit code, output, errors) of a process elsewhere than in the source tree."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "XDG_CACHE_HOME": str(cwd / "cache"),
        "MPLCONFIGDIR": str(ROOT / ".pytest_cache" / "matplotlib"),  # its list of fonts is nobody's output
        "COLUMNS": "110",
    }
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=100)
    return done.returncode, done.stdout, done.stderr


def fastcollect(*line, cwd, after="pass"):
    """As an installed ``fastcollect``: the function that the metadata names, and ``after`` it this code."""
    module, _, function = ENTRY.partition(":")
    code = (
        f"import sys; sys.path.pop(0); from {module} import {function}\ntry: {function}()\nfinally: {after}"
    )
    return in_process([sys.executable, "-c", code, *line], cwd)


def python(*line, cwd):
    return in_process([sys.executable, *line], cwd)


def test_help_lists_every_command_with_a_line_and_examples(tmp_path):
    code, out, err = fastcollect("--help", cwd=tmp_path)
    assert (code, err) == (0, "")
    assert all(
        re.search(rf"^  {name} +\w.*$", out, re.M) for name in ("tune", "train", "report", "export", "bench")
    )
    assert "fastcollect train --stage dense" in out
    code, out, err = fastcollect("bench", "--help", cwd=tmp_path)
    assert (code, err) == (0, "")
    assert all(re.search(rf"^  {name} +\w.*$", out, re.M) for name in ("fps", "learner", "pipeline"))
    assert "fastcollect bench fps" in out


def test_every_example_of_the_help_begins_with_a_command_that_exists():
    for line in (*console.EXAMPLES.splitlines(), *console.BENCH_EXAMPLES.splitlines()):
        program, name, *rest = line.split()
        assert program == "fastcollect"
        assert name in console.COMMANDS
        assert name != "bench" or rest[0] in console.BENCHES


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (("trian",), ("'trian'", "'train'")),
        (("zzz",), ("'zzz'", "did you mean", "tune, train, report, export, bench")),
        (("bench", "fsp"), ("'fsp'", "'fps'")),
        (("--stage", "dense"), ("'--stage'",)),
    ],
)
def test_a_command_that_does_not_exist_exits_with_2_and_names_the_nearest(line, words, tmp_path):
    code, out, err = fastcollect(*line, cwd=tmp_path)
    assert (code, out) == (2, "")
    assert all(word in err for word in words), err


@pytest.mark.parametrize("line", [(), ("bench",)])
def test_without_a_command_the_list_is_an_error(line, tmp_path):
    code, out, err = fastcollect(*line, cwd=tmp_path)
    assert (code, out) == (2, "")
    assert err == fastcollect(*line, "--help", cwd=tmp_path)[1]


@pytest.mark.parametrize(
    ("line", "same"),
    [
        (("tune", "--env", "reech-v3"), ("tune_throughput.py", "--env", "reech-v3")),
        (
            ("train", "--stage", "dense", "--env", "reech-v3"),
            ("train.py", "--stage", "dense", "--env", "reech-v3"),
        ),
        (("report", "nowhere"), ("-m", "trainers.report", "nowhere")),
        (("export", "nowhere"), ("-m", "trainers.export", "nowhere")),
        (("bench", "fps", "--env", "reech-v3"), ("-m", "bench.fps", "--env", "reech-v3")),
        (("bench", "cartridge", "no/such/folder"), ("-m", "bench.cartridge", "no/such/folder")),
    ],
)
def test_the_rest_of_the_line_means_what_it_means_to_the_python_form(line, same, tmp_path):
    first, *rest = same
    expected = python(*([first] if first == "-m" else [str(ROOT / first)]), *rest, cwd=tmp_path)
    assert expected[0] == 2
    assert same[-1] in expected[2]  # the error is about what stood in the line
    assert fastcollect(*line, cwd=tmp_path) == expected
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", console.BENCHES)
def test_every_measurement_can_be_started(name):
    source = importlib.util.find_spec(f"bench.{name}").loader.get_source(f"bench.{name}")
    assert '__name__ == "__main__"' in source


def test_help_loads_nothing_and_tuning_no_jax(tmp_path):
    loaded = 'print("loaded", *sorted({"jax", "mujoco", "numpy", "tyro"} & set(sys.modules)))'
    _, out, _ = fastcollect("--help", cwd=tmp_path, after=loaded)
    assert out.splitlines()[-1] == "loaded"
    code, out, err = fastcollect("tune", "--help", cwd=tmp_path, after=loaded)
    assert code == 0, err
    assert out.splitlines()[-1] == "loaded numpy tyro"


def test_an_environment_of_the_users_folder_is_tuned(tmp_path):
    (tmp_path / "mine.py").write_text(ENVIRONMENT)
    flags = ("--env", "mine:Still", "--policy", "4", "--budget", "2")
    code, out, err = fastcollect("tune", *flags, cwd=tmp_path)
    assert code == 0, err
    assert "best for mine:Still" in out
    assert list((tmp_path / "runs" / "tune").iterdir())


def test_the_version_is_the_same_wherever_it_stands():
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.M)
    assert cited[1] == PROJECT["version"]
    assert f"## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text()
