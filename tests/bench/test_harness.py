"""What every command shares: turns, processes, the clock, the arithmetic of rounds, tables, problems."""

from types import SimpleNamespace

import pytest

from bench.fps import FpsArguments
from bench.harness import child, command, measure, results
from bench.harness.measure import MeasurementError, order, take_turns
from bench.harness.results import measured, rate_table, ratios, summary
from bench.methods import METHODS, read_request
from bench.methods.base import Request, Subject
from fastcollect.control.parallelism import Parallelism


@pytest.mark.parametrize("labels", ["a", "ab", "abc", "abcd"])
def test_every_method_is_first_as_often_as_last(labels):
    orders = [order(labels, number) for number in range(2 * len(labels))]
    assert sorted(each[0] for each in orders) == sorted(each[-1] for each in orders) == sorted(2 * labels)
    assert all(sorted(each) == [*labels] for each in orders)


def test_turns_alternate_and_a_method_that_fails_is_left_out_from_then_on(capsys):
    taken = []

    def turn(label, fails_at=99):
        def take():
            taken.append(label)
            if taken.count(label) == fails_at:
                raise MeasurementError(f"{label} is ill")
            return {"rate": 1000.0 * taken.count(label)}

        return take

    found = take_turns({"a": turn("a"), "b": turn("b", 2)}, rounds=3, guess=1.0, unit="steps/s")
    assert taken == ["a", "b", "b", "a", "a"]
    assert found == {"a": [{"rate": 1000.0}, {"rate": 2000.0}, {"rate": 3000.0}], "b": "b is ill"}
    said = capsys.readouterr().err
    assert "round 1/3  a: 1,000 steps/s" in said
    assert "round 2/3  b: b is ill" in said
    assert "round 3/3  b" not in said


def test_summary_of_rounds():
    assert summary([30.0, 10.0, 50.0]) == {"median": 30.0, "min": 10.0, "max": 50.0}
    assert summary([10.0, 20.0])["median"] == 15.0


def test_ratios_are_taken_within_a_round_so_that_drift_cancels():
    # The machine is ten times slower in the second round; a is always twice b.
    found = ratios({"a": [200.0, 20.0, 240.0], "b": [100.0, 10.0, 120.0], "missing": None})
    assert found == {"a": {"b": 2.0}, "b": {"a": 0.5}}
    # The median of 4, 1, 3, where the ratio of the medians would be 40 / 20.
    assert ratios({"a": [40.0, 20.0, 90.0], "b": [10.0, 20.0, 30.0]})["a"]["b"] == 3.0


def slices(*rates):
    return [{"rate": rate, "start_seconds": rate / 100, "num_envs": 2, "memory_mib": rate} for rate in rates]


ROWS = [
    {"label": label, "method": method}
    for label, method in (("ours 1", "ours"), ("pool", "envpool"), ("gone", "naive"))
]
OUTCOMES = {"ours 1": slices(30.0, 10.0, 60.0), "pool": slices(15.0, 10.0, 15.0), "gone": "is absent"}


def test_a_measured_row_keeps_every_round_its_ratios_and_the_last_facts():
    ours, pool, gone = measured(ROWS, OUTCOMES, "fps")
    assert ours["fps"] == {"median": 30.0, "min": 10.0, "max": 60.0}
    assert ours["fps_rounds"] == [30.0, 10.0, 60.0]
    assert (ours["ratios"], pool["ratios"]) == ({"pool": 2.0}, {"ours 1": 0.5})
    assert (ours["start_seconds"], ours["memory_mib"], ours["num_envs"]) == (0.3, 60.0, 2)
    assert gone == {"label": "gone", "method": "naive", "fps": None, "error": "is absent"}


def columns(rows):
    tail = {"MiB": lambda row: str(row["memory_mib"])}
    table = rate_table("a title", rows, "fps", ["label"], tail, digits=1)
    return {column.header: list(column.cells) for column in table.columns}


def test_the_table_shows_numbers_ratios_to_peers_and_what_is_missing():
    assert columns(measured(ROWS, OUTCOMES, "fps")) == {
        "label": ["ours 1", "pool", "gone"],
        "median": ["30.0", "15.0", "none"],
        "min": ["10.0", "10.0", ""],
        "max": ["60.0", "15.0", ""],
        "\u00d7 pool": ["2.00", "", ""],
        "MiB": ["60.0", "15.0", ""],
    }


def test_without_peers_rows_are_compared_with_the_first():
    rows = [{"label": label, "method": "ours"} for label in ("one", "two")]
    found = columns(measured(rows, {"one": slices(4.0), "two": slices(6.0)}, "fps"))
    assert found["\u00d7 one"] == ["", "1.50"]
    assert "\u00d7 two" not in found


class Clock:
    """A subject whose every step takes a second and whose waiting takes a quarter of one."""

    def __init__(self, counts):
        self.now, self.log, self._counts = 0.0, [], iter(counts)

    def perf_counter(self):
        return self.now

    def step(self):
        self.now += 1
        self.log.append("step")
        return next(self._counts)

    def wait(self):
        self.now += 0.25
        self.log.append("wait")


@pytest.mark.parametrize(
    ("counts", "warm_up", "seconds", "calls", "rate"),
    [
        ([90, 91, 7, 8, 9], 2, 3, (2, 3), 24 / 3.25),
        ([90, 7, 8, 9], 0.5, 2.1, (1, 3), 24 / 3.25),  # calls are whole
        ([7], 0, 0.5, (0, 1), 7 / 1.25),
        ([0, 0, 7], 0, 0.5, (0, 3), 7 / 3.25),  # no slice without a count
    ],
)
def test_a_rate_is_of_what_was_computed_in_the_slice(monkeypatch, counts, warm_up, seconds, calls, rate):
    clock = Clock(counts)
    monkeypatch.setattr(child, "time", SimpleNamespace(perf_counter=clock.perf_counter))
    subject = Subject(clock.step, num_envs=3, facts=lambda: {"more": 1}, wait=clock.wait)
    found = child.measure_slice(subject, warm_up, seconds)
    assert found["rate"] == pytest.approx(rate)
    assert (found["num_envs"], found["more"]) == (3, 1)
    assert found["memory_mib"] > 1
    steps = [part for part in "".join(each[0] for each in clock.log).split("w") if part]
    assert steps == ["s" * count for count in calls if count]
    assert clock.log[-1] == "wait"


def test_requests_survive_the_pipe():
    request = Request(method="ours", env="reach-v3", parallelism=Parallelism(4, 2, 1), policy="8", index=3)
    assert read_request(measure.json.loads(measure.json.dumps(measure.asdict(request)))) == request


def test_processes_measure_together_and_slice_after_slice():
    requests = [
        Request(method="env-only", env="CartPole-v1", parallelism=Parallelism(3, 1, 0), index=k)
        for k in (0, 1)
    ]
    with measure.started(requests) as measure_slice:
        first, second = measure_slice(0.0, 0.05), measure_slice(0.01, 0.05)
    assert first["num_envs"] == second["num_envs"] == 6
    assert first["start_seconds"] == second["start_seconds"] > 0
    assert min(first["rate"], second["rate"]) > 100


def test_what_is_wrong_is_gathered_and_each_problem_is_said_once(tmp_path):
    arguments = FpsArguments(json=tmp_path, seconds=float("nan"), rounds=0)
    problems = command.Problems(arguments)
    problems.require(False, "more", 3, "less")
    problems.require(False, "more", 3, "less")
    with pytest.raises(command.ConfigError) as caught:
        problems.raise_any()
    found = caught.value.problems
    assert [each.split()[0] for each in found] == ["--json:", "--rounds", "--seconds", "--more"]


def test_every_method_can_be_listed_and_its_peer_is_known():
    assert {"ours", "ours-collecting", "original-protocol"} <= set(METHODS)
    assert {method.role for method in METHODS.values()} == {"ours", "peer", "limit"}
    assert all(method.role == "peer" for method in METHODS.values() if method.peer)
    assert results.METHODS is METHODS
