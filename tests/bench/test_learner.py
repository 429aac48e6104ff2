"""The comparison of learners: what it counts, what it writes, what it refuses."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
from support.training import environment

from bench import isolated, learner, learner_slices
from bench.learner import LearnerArguments, Method, MethodError, Settings, check, measure, order
from bench.learner_slices import Training
from fastcollect.support.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
TINY = Settings(8, (8,), "support.tiny_env:TinyEnv", 0.125, rows=2048)


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
        TINY.env,
    )
    done = command("--methods", *methods, *flags, "--json", file)
    assert done.returncode == 0, done.stderr
    result = json.loads(file.read_text())
    assert [row["method"] for row in result["rows"]] == list(methods)
    for row in result["rows"]:
        assert row["batch"] == 8
        assert len(row["rounds"]) == 2
        assert row["min"] <= row["updates_per_second"] <= row["max"]
        assert row["updates_per_second"] == sum(row["rounds"]) / 2 > 0
        assert row["method"] in done.stdout
    first, second = (row["rounds"] for row in result["rows"][:2])
    expected = (first[0] / second[0] + first[1] / second[1]) / 2
    assert result["rows"][0]["ratios"]["ours-device"] == pytest.approx(expected)
    assert "--hidden 8" in result["command"]
    assert (result["seconds"], result["settle"]) == (0.05, 0)


@pytest.mark.parametrize("method", ["ours-host", "ours-collecting"])
def test_what_is_counted_as_an_update_is_one(method, monkeypatch):
    from trainers.run.learner import Learner

    made = []
    monkeypatch.setattr(Learner, "learn_from", keep(made, Learner.learn_from))
    monkeypatch.setattr(Learner, "update", keep(made, Learner.update))
    with learner_slices.build(method, vars(TINY)) as training:
        counted = sum(training.train() for _ in range(40))
        assert counted == int(made[0].state.updates) > 0
        if method == "ours-collecting":
            assert counted == int(made[0].env_steps * TINY.updates_per_step) // 16 * 16


def keep(made, method):
    def kept(self, *args):
        made.append(self)
        return method(self, *args)

    return kept


@pytest.mark.parametrize("method", ["ours-host", "ours-device", "ours-collecting"])
def test_the_end_of_a_turn_waits_for_the_newest_update(method, monkeypatch):
    from trainers.run.learner import Learner

    made, waited = [], []
    monkeypatch.setattr(Learner, "update", keep(made, Learner.update))
    with learner_slices.build(method, vars(TINY)) as training:
        while not training.train():
            pass
        monkeypatch.setattr(jax, "block_until_ready", waited.append)
        training.wait()
        newest = jax.tree.leaves((made[-1].state, made[-1].acting))
        assert {id(leaf) for leaf in newest} <= {id(leaf) for leaf in jax.tree.leaves(waited)}


class Clock:
    """A training whose every call takes a second and whose waiting takes a quarter of one."""

    def __init__(self, counts):
        self.now, self.log, self._counts = 0.0, [], iter(counts)

    def perf_counter(self):
        return self.now

    def train(self):
        self.now += 1
        self.log.append("train")
        return next(self._counts)

    def wait(self):
        self.now += 0.25
        self.log.append("wait")


@pytest.mark.parametrize(
    ("counts", "settle", "seconds", "calls", "rate"),
    [
        ([90, 91, 7, 8, 9], 2, 3, (2, 3), 24 / 3.25),
        ([90, 7, 8, 9], 0.5, 2.1, (1, 3), 24 / 3.25),  # calls are whole
        ([7], 0, 0.5, (0, 1), 7 / 1.25),
        ([0, 0, 7], 0, 0.5, (0, 3), 7 / 3.25),  # no turn without an update
    ],
)
def test_a_rate_is_of_what_was_computed_in_the_turn(monkeypatch, counts, settle, seconds, calls, rate):
    clock = Clock(counts)
    monkeypatch.setattr(learner_slices, "time", SimpleNamespace(perf_counter=clock.perf_counter))
    got = learner_slices.updates_per_second(Training(clock.train, clock.wait), settle, seconds)
    assert got == pytest.approx(rate)
    assert clock.log == [*["train"] * calls[0], "wait", *["train"] * calls[1], "wait"]


def test_every_method_has_the_same_turns(monkeypatch):
    asked = []

    class Asked(Method):
        def rate(self, settle, seconds):
            asked.append((self.name, settle, seconds))
            return super().rate(0, 0.01)

    monkeypatch.setattr(learner, "Method", Asked)
    methods = ("ours-host", "ours-device")
    arguments = LearnerArguments(methods=methods, hidden=(8,), rounds=2, seconds=3.0, settle=2.0)
    measure(arguments, 8, lambda text: None)
    assert sorted(asked) == sorted((name, 2.0, 3.0) for name in methods * 2)


def test_a_peer_that_is_not_installed_is_a_row_with_the_remedy(monkeypatch, tmp_path):
    monkeypatch.setattr(isolated, "PEERS", tmp_path)
    arguments = LearnerArguments(methods=("sbx",), rounds=1, seconds=0.01)
    rows = measure(arguments, 8, lambda text: None)
    assert rows == [
        {"method": "sbx", "batch": 8, "error": "sbx: learners is not installed; make peers installs it"}
    ]
    with pytest.raises(ConfigError, match="make peers"):
        learner.compare(arguments, "")


def test_a_method_that_dies_is_a_row_and_the_others_go_on(monkeypatch):
    started = []

    class Mortal(Method):
        def rate(self, settle, seconds):
            started.append(self)
            if self.name == "ours-device" and sum(each is self for each in started) == 2:
                self._process.kill()
            return super().rate(settle, seconds)

    monkeypatch.setattr(learner, "Method", Mortal)
    arguments = LearnerArguments(
        methods=("ours-host", "ours-device"), hidden=(8,), rounds=3, seconds=0.01, settle=0.0
    )
    host, device = measure(arguments, 8, lambda text: None)
    assert len(host["rounds"]) == 3
    assert "ended without an answer" in device["error"]
    assert "updates_per_second" not in device
    assert all(each._process.poll() is not None for each in started)


def test_a_method_that_cannot_be_built_says_why():
    with (
        Method("ours-collecting", Settings(8, (8,), "NoSuchEnv-v0", 0.1)) as method,
        pytest.raises(MethodError, match="NoSuchEnv-v0"),
    ):
        method.versions()


def test_every_method_is_first_as_often_as_last():
    orders = [order(["a", "b", "c"], number) for number in range(6)]
    assert sorted(each[0] for each in orders) == sorted(each[-1] for each in orders) == [*"aabbcc"]


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
        "--rounds is [0]",
        "--seconds",
        "--settle",
        "--json",
    ):
        assert expected in text
    done = command("--methods", "ours", "--rounds", 0)
    assert done.returncode == 2
    assert done.stderr.count("error:") == 2
