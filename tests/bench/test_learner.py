"""The comparison of learners: what it counts, what it writes, what it refuses."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from support.training import environment

from bench import learner
from bench.harness import measure
from bench.harness.measure import MeasurementError, started
from bench.learner import LearnerArguments, check, measure_batch
from bench.methods import METHODS
from bench.methods.learners import LearnerRequest
from engine.algorithms.base import densities
from fastcollect.support.errors import ConfigError, WorkerError

ROOT = Path(__file__).resolve().parents[2]
TINY = "support.tiny_env:TinyEnv"


def request(method, **changes):
    small = {"batch": 8, "hidden": (8,), "env": TINY, "updates_per_step": 0.125, "rows": 2048}
    return LearnerRequest(method=method, **{**small, **changes})


@contextlib.contextmanager
def built(method, **changes):
    with contextlib.closing(METHODS[method].build(request(method, **changes))) as subject:
        yield subject


@pytest.fixture(scope="module", autouse=True)
def compiled(tmp_path_factory):
    """What one process compiled is there for the next."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(tmp_path_factory.mktemp("compiled")).items():
            patch.setenv(name, value)
        yield


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "bench.learner", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_file_has_a_row_for_each_method(tmp_path):
    file = tmp_path / "learner.json"
    methods = ("ours-host", "ours-device", "ours-collecting")
    flags = (
        "--hidden",
        8,
        "--batches",
        8,
        "--rounds",
        2,
        "--seconds",
        0.05,
        "--settle",
        0,
        "--env",
        TINY,
    )
    done = command("--methods", *methods, *flags, "--json", file)
    assert done.returncode == 0, done.stderr
    result = json.loads(file.read_text())
    assert [row["method"] for row in result["rows"]] == list(methods)
    for row in result["rows"]:
        assert row["batch"] == 8
        assert len(row["updates_per_second_rounds"]) == 2
        speed = row["updates_per_second"]
        assert speed["min"] <= speed["median"] <= speed["max"]
        assert speed["median"] == pytest.approx(sum(row["updates_per_second_rounds"]) / 2)
        assert speed["min"] > 0
        assert {"jax", "numpy"} <= set(row["versions"])
        assert row["method"] in done.stdout
    first, second = (row["updates_per_second_rounds"] for row in result["rows"][:2])
    expected = (first[0] / second[0] + first[1] / second[1]) / 2
    assert result["rows"][0]["ratios"]["ours-device"] == pytest.approx(expected)
    assert "--hidden 8" in result["command"]
    assert (result["seconds"], result["settle"]) == (0.05, 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "algo"),
    [
        *(("ours-host", "sac"), ("ours-host", "td3"), ("ours-static", "sac"), ("ours-rigl", "sac")),
        ("ours-collecting", "sac"),
    ],
)
def test_what_is_counted_as_an_update_is_one(method, algo, monkeypatch):
    from trainers.run.learner import Learner

    made = []
    monkeypatch.setattr(Learner, "learn_from", keep(made, Learner.learn_from))
    monkeypatch.setattr(Learner, "update", keep(made, Learner.update))
    with built(method, algo=algo) as subject:
        counted = sum(subject.step() for _ in range(40))
        assert counted == int(made[0].state.updates) > 0
        assert made[0].config.algo == algo
        assert made[0].config.algorithm.critic_learning_rate == request(method).learning_rate
        if method == "ours-collecting":
            assert counted == int(made[0].env_steps * 0.125) // 16 * 16
        evolving = {name: int(each.updates) for name, each in made[0].state.topology.items()}
        assert evolving == (dict.fromkeys(("actor", "critic"), counted) if method == "ours-rigl" else {})
        assert (min(densities(made[0].state).values()) < 1) == (method in ("ours-static", "ours-rigl"))


def keep(made, method):
    def kept(self, *args):
        made.append(self)
        return method(self, *args)

    return kept


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ours-host", "ours-device", "ours-collecting"])
def test_the_end_of_a_turn_waits_for_the_newest_update(method, monkeypatch):
    from trainers.run.learner import Learner

    made, waited = [], []
    monkeypatch.setattr(Learner, "update", keep(made, Learner.update))
    with built(method) as subject:
        while not subject.step():
            pass
        monkeypatch.setattr(jax, "block_until_ready", waited.append)
        subject.wait()
        newest = jax.tree.leaves((made[-1].state, made[-1].acting))
        assert {id(leaf) for leaf in newest} <= {id(leaf) for leaf in jax.tree.leaves(waited)}


def test_every_method_has_the_same_turns_in_a_process_that_lives_on(monkeypatch):
    asked, receive = [], measure._Child.receive

    def send(self, line):
        if isinstance(line, list):
            asked.append((self._name, *line))
            line = [0, 0.01]
        kept_send(self, line)

    kept_send = measure._Child.send
    monkeypatch.setattr(measure._Child, "send", send)
    processes = set()
    monkeypatch.setattr(
        measure._Child, "receive", lambda self, end: (processes.add(self._process.pid), receive(self, end))[1]
    )
    methods = ("ours-host", "ours-device")
    arguments = LearnerArguments(methods=methods, hidden=(8,), rounds=2, seconds=3.0, settle=2.0)
    measure_batch(arguments, 8)
    assert sorted(asked) == sorted((name, 2.0, 3.0) for name in methods * 2)
    assert len(processes) == 2


def test_a_peer_that_is_not_installed_is_a_row_with_the_remedy(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(measure, "PEERS", tmp_path)
    arguments = LearnerArguments(methods=("sbx",), rounds=1, seconds=0.01)
    (row,) = measure_batch(arguments, 8)
    assert row["updates_per_second"] is None
    assert row["error"] == "sbx: learners is not installed; make peers installs it"
    with pytest.raises(WorkerError, match="none of the methods"):
        learner.compare(arguments)
    assert "make peers installs it" in capsys.readouterr().out


@pytest.mark.parametrize("algo", ["sac", "td3"])
@pytest.mark.parametrize("method", ["sbx", "sb3"])
def test_an_installed_peer_updates(method, algo):
    try:
        measure.peer_python("learners")
    except MeasurementError as error:
        pytest.skip(str(error))
    found = measure.measure([request(method, algo=algo)], 0.0, 0.05)
    assert found["rate"] > 1
    assert ("sbx-rl" if method == "sbx" else "torch") in found["versions"]


def test_a_method_that_dies_is_a_row_and_the_others_go_on(monkeypatch):
    slices, send, children = [], measure._Child.send, set()

    def mortal(self, line):
        children.add(self)
        if isinstance(line, list) and self._name == "ours-device":
            slices.append(line)
            if len(slices) == 2:
                self._process.kill()
        send(self, line)

    monkeypatch.setattr(measure._Child, "send", mortal)
    methods = ("ours-host", "ours-device")
    arguments = LearnerArguments(methods=methods, hidden=(8,), rounds=3, seconds=0.01, settle=0.0)
    host, device = measure_batch(arguments, 8)
    assert len(host["updates_per_second_rounds"]) == 3
    assert "ended without an answer" in device["error"]
    assert device["updates_per_second"] is None
    assert len(children) == 2
    assert all(each._process.poll() is not None for each in children)


def test_a_method_that_cannot_be_built_says_why():
    with (
        pytest.raises(MeasurementError, match="NoSuchEnv-v0"),
        started([request("ours-collecting", env="NoSuchEnv-v0")]),
    ):
        pass


def test_wrong_values_are_named_together(tmp_path):
    with pytest.raises(ConfigError) as caught:
        check(
            LearnerArguments(
                methods=("ours",),
                batches=(0,),
                hidden=(),
                rounds=0,
                seconds=0.0,
                settle=-1.0,
                json=tmp_path,
            )
        )
    text = str(caught.value)
    for expected in (
        "'ours'",
        "--batches is [0]",
        "--hidden is []",
        "--rounds is 0",
        "--seconds",
        "--settle",
        "--json",
    ):
        assert expected in text
    done = command("--methods", "ours", "--rounds", 0)
    assert done.returncode == 2
    assert done.stderr.count("error:") == 2
