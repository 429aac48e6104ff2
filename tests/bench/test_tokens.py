"""The comparison of token carriers: its channels, its count of killed writers, its file."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.channels import CHANNELS, PipeChannel, fork_partner
from bench.kills import count_outcomes
from bench.tokens import round_trip, throughput

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


@pytest.mark.parametrize("name", CHANNELS)
def test_a_channel_carries_tokens_in_order_and_times_out_when_empty(name):
    channel = CHANNELS[name]()
    tokens = [(1, -2, 3, 2**31 - 1), (4, 5, 6, 7), (8, 9, 10, 11)]
    for token in tokens:
        channel.send(token)
    assert [tuple(token) for token in channel.receive(1.0)] == tokens
    assert channel.receive(0.01) == []
    assert channel.receive_one(0.01) is None
    channel.close()


@pytest.mark.parametrize("name", CHANNELS)
def test_both_are_measured_between_processes(name):
    latency = round_trip(CHANNELS[name], 0.05)
    assert 0 < latency["round_trip_us"] <= latency["round_trip_p99_us"]
    rate = throughput(CHANNELS[name], 0.05)
    assert rate["tokens_per_second"] > 0
    assert rate["batch"] > 0


def test_killed_writers_leave_pipes_usable():
    assert count_outcomes(PipeChannel, 10) == {"usable": 10}


class LockedWhenSent(PipeChannel):
    """A channel that nobody can use once its writer is gone: the survivor hangs on its own token."""

    def send(self, token):
        while token == (1, 2, 3, 4):
            self.receive(1.0)
        super().send(token)


class TornWhenSent(PipeChannel):
    """A channel that delivers half of one token and half of another."""

    def receive(self, seconds):
        return [(*token[:2], 0, 0) for token in super().receive(seconds)]


@pytest.mark.parametrize(("kind", "outcome"), [(LockedWhenSent, "unusable"), (TornWhenSent, "corrupt")])
def test_the_count_can_tell_a_dead_channel_and_a_torn_token(kind, outcome):
    assert count_outcomes(kind, 3) == {outcome: 3}


def test_a_partner_is_ended_with_its_parent_s_interest():
    channel = PipeChannel()
    process = fork_partner(channel.send, (1, 1, 1, 1))
    assert channel.receive_one(5.0) == (1, 1, 1, 1)
    process.join(5)
    assert process.exitcode == 0
    channel.close()


def test_the_command_writes_its_file(tmp_path):
    result = tmp_path / "result.json"
    done = command("--rounds", 2, "--seconds", "0.05", "--kills", 3, "--json", result)
    assert done.returncode == 0, done.stderr
    found = json.loads(result.read_text())
    assert list(found) == ["machine", "command", "seconds", "rounds", "rows", "ratios", "note"]
    assert [row["mechanism"] for row in found["rows"]] == ["pipe", "faster_fifo"]
    for row in found["rows"]:
        assert set(row["round_trip_us"]) == {"median", "min", "max"}
        assert len(row["rounds"]) == 2
        assert sum(row["kills"].values()) == 3
    both = found["rows"][0]["rounds"][0], found["rows"][1]["rounds"][0]
    assert found["ratios"]["tokens_per_second"]["pipe"]["faster_fifo"] > 0
    assert both[0].keys() == both[1].keys()
    assert "unusable" in done.stdout


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
