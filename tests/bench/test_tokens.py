"""The comparison of token carriers: its measurements, its count of killed writers, its file."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import pytest

from bench.tokens import OUTCOMES, count_outcomes, round_trip, throughput
from fastcollect.memory.tokens import TokenChannel, exchange
from fastcollect.memory.tokens.pipes import PipeExchange, PipeInbox

ROOT = Path(__file__).resolve().parents[2]


def command(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "bench.tokens", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("channel", get_args(TokenChannel))
def test_both_are_measured_between_processes(channel):
    latency = round_trip(exchange(channel), 0.05)
    assert 0 < latency["round_trip_us"] <= latency["round_trip_p99_us"]
    rate = throughput(exchange(channel), 0.05)
    assert rate["tokens_per_second"] > 0
    assert rate["batch"] > 0


def test_killed_writers_lose_nothing_in_pipes_and_tear_nothing_in_either():
    assert count_outcomes(PipeExchange, 10) == {"whole": 10}
    assert count_outcomes(exchange("faster-fifo"), 10).keys() <= {"whole", "lost"}


class TornInbox(PipeInbox):
    """Delivers half of one token and half of another."""

    def read(self):
        return [(kind, worker, 7, number) for kind, worker, _, number in super().read()]


class ForgetfulInbox(PipeInbox):
    """Reads and delivers nothing."""

    def read(self):
        list(super().read())
        return []


class LockedInbox(PipeInbox):
    """Never comes back."""

    def read(self):
        time.sleep(1000)


@pytest.mark.parametrize(
    ("inbox", "outcome"), [(TornInbox, "corrupt"), (ForgetfulInbox, "lost"), (LockedInbox, "hung")]
)
def test_the_count_can_tell_what_went_wrong(inbox, outcome):
    class Broken(PipeExchange):
        def inbox(self, *others):
            return inbox(self._reports[0], *others)

    assert count_outcomes(Broken, 2) == {outcome: 2}


def test_the_command_writes_its_file(tmp_path):
    result = tmp_path / "result.json"
    done = command("--rounds", 2, "--seconds", "0.05", "--kills", 3, "--json", result)
    assert done.returncode == 0, done.stderr
    found = json.loads(result.read_text())
    assert list(found) == ["machine", "command", "seconds", "rounds", "rows", "ratios", "note"]
    assert [row["mechanism"] for row in found["rows"]] == ["pipes", "faster-fifo"]
    for row in found["rows"]:
        assert set(row["round_trip_us"]) == {"median", "min", "max"}
        assert len(row["rounds"]) == 2
        assert sum(row["kills"].values()) == 3
        assert row["kills"].keys() == OUTCOMES.keys()
    both = found["rows"][0]["rounds"][0], found["rows"][1]["rounds"][0]
    assert found["ratios"]["tokens_per_second"]["pipes"]["faster-fifo"] > 0
    assert both[0].keys() == both[1].keys()
    assert "corrupt" in done.stdout


def test_a_missing_queue_is_said_and_wrong_values_are_all_named(tmp_path):
    (tmp_path / "faster_fifo.py").write_text("raise ImportError('not here')")
    result = tmp_path / "result.json"
    done = command(
        *("--rounds", 1, "--seconds", "0.02", "--kills", 1, "--json", result), PYTHONPATH=str(tmp_path)
    )
    assert done.returncode == 0, done.stderr
    assert "not here" in json.loads(result.read_text())["rows"][1]["error"]
    wrong = command("--rounds", 0, "--seconds", -1, "--kills", -1, "--json", tmp_path / "no" / "x.json")
    assert wrong.returncode == 2
    assert all(
        name in wrong.stderr for name in ("--rounds is 0", "--seconds is -1", "--kills is -1", "--json")
    )
