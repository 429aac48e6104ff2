"""Tiny training runs: in this process with real workers, or as a real ``train.py``."""

import atexit
import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import ClassVar

import numpy as np
import psutil
import pytest

from engine.algorithms.sac import SACConfig
from fastcollect.control.launcher import Launcher
from trainers.config.training import CollectConfig, EvaluationConfig, ReplayConfig, TrainConfig
from trainers.run import training as loop
from trainers.run.learner import Learner, Start
from trainers.run.observers import InterruptedRunError
from trainers.store import artifacts
from trainers.store.checkpoints import Checkpoints
from trainers.store.folder import RunFolder
from trainers.store.identity import Identity, dense_identity
from trainers.store.rows import read_rows

ROOT = Path(__file__).resolve().parents[2]
TINY = "support.tiny_env:TinyEnv"
REPRODUCIBLE = {"schedule": "rounds", "reproducible": True}
ASYNCHRONOUS = {"collect__schedule": "asynchronous", "collect__reproducible": False}
SAC = SACConfig(hidden=(8,), batch_size=8)


def tiny_config(**changes):
    """20 rounds of 16 steps, a dispatch of 4 updates every second round; nested names as "collect__n"."""
    collect = {"n": 2, "N": 2, "block_length": 4, "group_size": 2, **REPRODUCIBLE}
    nested = {"collect": collect, "evaluation": {"every": 48, "episodes": 3}, "replay": {}}
    top = {
        "env": TINY,
        "seed": 3,
        "env_steps": 320,
        "start_steps": 64,
        "updates_per_step": 0.125,
        "updates_per_dispatch": 4,
        "anchor_steps": 128,
        "algorithm": SAC,
    }
    for name, value in changes.items():
        part, _, rest = name.partition("__")
        if rest and part == "algorithm":
            top["algorithm"] = replace(top["algorithm"], **{rest: value})
        elif rest:
            nested[part][rest] = value
        else:
            top[name] = value
    return TrainConfig(
        **top,
        collect=CollectConfig(**nested["collect"]),
        evaluation=EvaluationConfig(**nested["evaluation"]),
        replay=ReplayConfig(**{"capacity": 4096, **nested["replay"]}),
    )


class Silent:
    """A progress that nobody sees. on_evaluation: called with each evaluation's row."""

    def __init__(self, on_evaluation=None):
        self.rows, self.lines, self._on_evaluation = [], [], on_evaluation

    def say(self, text):
        self.lines.append(text)

    def run(self, title, total):
        self.lines.append(title)

    def trained(self, row):
        pass

    def evaluated(self, row):
        self.rows.append(row)
        if self._on_evaluation is not None:
            self._on_evaluation(row)


class SharedLauncher(Launcher):
    """Serves many runs, one after the other; what starts it for each costs more than a tiny run."""

    def close(self):
        pass


@functools.cache
def launcher():
    """The one launcher of this process."""
    shared = SharedLauncher(["fastcollect.workers.env_worker"])
    atexit.register(Launcher.close, shared)
    return shared


@pytest.fixture
def one_launcher(monkeypatch):
    """All runs of a test have their workers from one launcher, the session's."""
    monkeypatch.setattr(loop, "new_launcher", lambda config: launcher())


def train(path, config, start=None, *, resume=False, progress=None, identity=None):
    """The loop in this process, in a run folder of its own."""
    identity = dense_identity(config) if identity is None else Identity(kind="dense", config=identity)
    with RunFolder.create(path, identity, ["test"], resume=resume) as folder:
        return loop.train(folder, config, start or Start(), progress or Silent(), resume=resume)


def order(path, num_envs, step, signum, target="trainer"):
    """A file that makes an environment send a signal, and the argument that names it."""
    path.write_text(f"{num_envs} {step} {int(signum)} {target}")
    return (f"signal_file={path}",)


def interrupted(path, config, start=None, signum=signal.SIGTERM, **kwargs):
    """As ``train``, of a run that a signal interrupts."""
    with pytest.raises(InterruptedRunError) as caught:
        train(path, config, start, **kwargs)
    assert caught.value.signum == signum


def wanted(config, env_steps):
    """Updates that the ratio asks for, in exact arithmetic."""
    return max(0, int(Fraction(str(config.updates_per_step)) * (env_steps - config.start_steps)))


def check_ratio(config, log, block):
    """Updates never run ahead of the ratio, and never more than a dispatch and a block behind it.

    log: of a KeptLearner. block: transitions in a block.
    """
    assert log
    for what, env_steps, updates in log:
        now, before = (wanted(config, steps) for steps in (env_steps, env_steps - block))
        assert updates <= now
        assert updates > before - config.updates_per_dispatch
        if what == "updated" and now - updates < config.updates_per_dispatch:
            assert updates > now - config.updates_per_dispatch
    final = log[-1][1]
    assert config.env_steps <= final < config.env_steps + block
    assert log[-1][2] == wanted(config, final)


def artifact(path, name="final"):
    return artifacts.load(path, name).arrays


def assert_same(got, expected):
    """Two dicts of arrays, bit for bit."""
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        here = np.asarray(got[name])
        assert (here.dtype, here.shape) == (value.dtype, value.shape), name
        assert here.tobytes() == np.asarray(value).tobytes(), name


def evaluations(path):
    """Rows of evaluations.jsonl without what time it was."""
    return [
        {k: v for k, v in row.items() if k != "wall_seconds"} for row in read_rows(path / "evaluations.jsonl")
    ]


def assert_same_run(path, expected):
    """Everything that two runs of the same bits leave behind."""
    assert evaluations(path) == evaluations(expected)
    index = json.loads((expected / "artifacts" / "index.json").read_text())
    assert json.loads((path / "artifacts" / "index.json").read_text()).keys() == index.keys()
    for name in index:
        assert_same(artifact(path, name), artifact(expected, name))
    summaries = [json.loads((each / "summary.json").read_text()) for each in (path, expected)]
    for summary in summaries:
        for name in ("wall_seconds", "training_seconds", "collector", "reached"):
            del summary[name]
    assert summaries[0] == summaries[1]


def checkpoint(path):
    """Arrays and meta of a run's newest checkpoint."""
    return Checkpoints(path).load()


class KeptLearner(Learner):
    """A learner that a test finds again. log: ("stored" | "updated", env_steps, updates) in order."""

    made: ClassVar[list[Learner]] = []

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.log = []
        KeptLearner.made.append(self)

    def learn_from(self, block):
        super().learn_from(block)
        self.log.append(("stored", self.env_steps, self.updates))

    def update(self, count):
        super().update(count)
        self.log.append(("updated", self.env_steps, self.updates))


def keep_learners(monkeypatch):
    """The list that learners of later runs are found in."""
    monkeypatch.setattr(KeptLearner, "made", [])
    monkeypatch.setattr(loop, "Learner", KeptLearner)
    return KeptLearner.made


def environment(folder):
    """Of a real ``train.py`` with the tests' environments; what it compiles is shared."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests"))),
        "JAX_COMPILATION_CACHE_DIR": str(folder),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


FLAGS = (
    *("--env", TINY, "--seed", "3", "--env-steps", "320", "--start-steps", "64", "--anchor-steps", "128"),
    *("--updates-per-step", "0.125", "--updates-per-dispatch", "4", "--replay.capacity", "4096"),
    *("--algorithm.hidden", "8", "--algorithm.batch-size", "8"),
    *("--evaluation.every", "96", "--evaluation.episodes", "3"),
    *("--collect.n", "2", "--collect.N", "2", "--collect.block-length", "4", "--collect.group-size", "2"),
    *("--collect.schedule", "rounds", "--collect.reproducible"),
)
"""What ``tiny_config`` says, for a command line, with half its evaluations."""


def train_py(cache, *flags, **kwargs):
    """A real ``train.py`` on its way, with all its output in one pipe; ``cache``: see ``environment``."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *map(str, flags)],
        env=environment(cache),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        **kwargs,
    )


def processes_with(cache):
    """Processes of a ``train_py`` of this cache and of what it started, that are still there."""
    found = []
    for each in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if each.environ().get("JAX_COMPILATION_CACHE_DIR") == str(cache):
                found.append(each.pid)
    return found


def end_all(cache):
    """Kill whatever ``processes_with`` finds."""
    for pid in processes_with(cache):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
