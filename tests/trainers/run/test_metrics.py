"""Rows of metrics: strict JSON, nothing twice after a resume, and the same in TensorBoard."""

import json
import math
import os
import resource
import signal
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorboardX.proto.event_pb2 import Event

from fastcollect.support.errors import ConfigError
from fastcollect.support.plain import plain
from trainers.run.metrics import MetricsWriter
from trainers.store.rows import read_rows

ROOT = Path(__file__).resolve().parents[3]


def row(step, **more):
    return {"env_steps": step, "updates": step // 2, "wall_seconds": step / 10, **more}


def error_of(function, *args, **kwargs):
    with pytest.raises(ConfigError) as caught:
        function(*args, **kwargs)
    (problem,) = caught.value.problems
    return problem


def scalars(folder):
    """{tag: [(step, value), ...]} of every event file, as it lies there."""
    out = {}
    for file in sorted((folder / "tensorboard").iterdir()):
        content, at = file.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            event = Event.FromString(content[at + 12 : at + 12 + length])
            at += length + 16
            for value in event.summary.value:
                out.setdefault(value.tag, []).append((event.step, value.simple_value))
    return out


def steps(folder, name="metrics.jsonl"):
    return [r["env_steps"] for r in read_rows(folder / name)]


def test_rows_lie_in_both_places_when_the_call_returns(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        first = row(10, actor_loss=np.float32(0.5), stage="dense", per_goal=np.array([1.0, 0.0]), done=True)
        writer.write_metrics(first)
        writer.write_evaluation(row(10, success=jnp.float32(0.25)))
        assert read_rows(tmp_path / "metrics.jsonl") == [{**first, "actor_loss": 0.5, "per_goal": [1.0, 0.0]}]
        assert read_rows(tmp_path / "evaluations.jsonl") == [row(10, success=0.25)]
        assert scalars(tmp_path) == {
            "training/updates": [(10, 5.0)],
            "training/wall_seconds": [(10, 1.0)],
            "training/actor_loss": [(10, 0.5)],
            "training/done": [(10, 1.0)],
            "evaluation/updates": [(10, 5.0)],
            "evaluation/wall_seconds": [(10, 1.0)],
            "evaluation/success": [(10, 0.25)],
        }


def test_what_json_does_not_know_is_null_and_no_scalar(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write_metrics(
            row(1, a=float("nan"), b=np.float32("inf"), c=[1.0, math.nan], d=None, e=10**400)
        )
        assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
        assert read_rows(tmp_path / "metrics.jsonl") == [
            row(1, a=None, b=None, c=[1.0, None], d=None, e=10**400)
        ]
        assert scalars(tmp_path).keys() == {"training/updates", "training/wall_seconds"}


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.dictionaries(st.text(), ANY, max_size=3), max_size=4))
def test_every_row_is_one_strict_line_that_comes_back(tmp_path, extras):
    rows = [{**extra, **row(step)} for step, extra in enumerate(extras)]
    with MetricsWriter(tmp_path) as writer:
        for r in rows:
            writer.write_metrics(r)
    assert read_rows(tmp_path / "metrics.jsonl") == plain(rows)
    with MetricsWriter(tmp_path, resume_at=100):
        assert read_rows(tmp_path / "metrics.jsonl") == plain(rows)


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        ({"env_steps": 1, "updates": 1}, "wall_seconds"),
        ({}, "env_steps, updates, wall_seconds"),
        ({**row(1), "env_steps": 1.5}, "1.5"),
        ({**row(1), "env_steps": None}, "None"),
        ({**row(1), "env_steps": -1}, "-1"),
    ],
)
def test_a_row_without_its_step_is_a_mistake(tmp_path, bad, what):
    with MetricsWriter(tmp_path) as writer:
        with pytest.raises(ValueError, match=what):
            writer.write_metrics(bad)
        assert steps(tmp_path) == []


def write_until(folder, last, resume_at=None, by=10):
    with MetricsWriter(folder, resume_at) as writer:
        for step in range(0 if resume_at is None else resume_at + by, last + 1, by):
            writer.write_metrics(row(step, loss=1.0))
            if step % 20 == 0:
                writer.write_evaluation(row(step, success=0.5))


@pytest.mark.parametrize("resume_at", [0, 10, 40, 95, 100])
def test_a_resumed_run_has_nothing_twice(tmp_path, resume_at):
    write_until(tmp_path, 100)
    with MetricsWriter(tmp_path, resume_at):
        kept = list(range(0, resume_at + 1, 10))
        assert steps(tmp_path) == kept
        assert steps(tmp_path, "evaluations.jsonl") == [s for s in kept if s % 20 == 0]
        assert [step for step, _ in scalars(tmp_path)["training/loss"]] == kept
    resume_at -= resume_at % 10
    write_until(tmp_path, 100, resume_at)
    once = list(range(0, 101, 10))
    assert steps(tmp_path) == once
    assert scalars(tmp_path)["training/loss"] == [(step, 1.0) for step in once]
    assert scalars(tmp_path)["evaluation/success"] == [(step, 0.5) for step in once[::2]]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1


def test_events_of_a_resumed_run_are_in_order_of_step_and_time(tmp_path):
    write_until(tmp_path, 60)
    with MetricsWriter(tmp_path, 60) as writer:
        writer.write_metrics(row(70))
    (file,) = (tmp_path / "tensorboard").iterdir()
    content, at, times = file.read_bytes(), 0, []
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        event = Event.FromString(content[at + 12 : at + 12 + length])
        times += [(event.step, event.wall_time)] if event.summary.value else []
        at += length + 16
    assert times == sorted(times)
    assert [t for _, t in times] == sorted(t for _, t in times)


def test_a_run_that_starts_over_keeps_nothing(tmp_path):
    write_until(tmp_path, 100)
    write_until(tmp_path, 20)
    assert steps(tmp_path) == [0, 10, 20]
    assert [step for step, _ in scalars(tmp_path)["training/loss"]] == [0, 10, 20]


def test_a_resume_without_earlier_files_starts_empty(tmp_path):
    with MetricsWriter(tmp_path, 50):
        assert steps(tmp_path) == steps(tmp_path, "evaluations.jsonl") == []


KILLED = """
    import os, signal, sys
    from trainers.run.metrics import MetricsWriter

    writer = MetricsWriter(sys.argv[1])
    for step in range(0, 60, 10):
        writer.write_metrics({"env_steps": step, "updates": 0, "wall_seconds": 0.0})
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_run_has_every_row_that_it_wrote(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)], cwd=ROOT, timeout=60
    )
    assert done.returncode == -signal.SIGKILL
    assert steps(tmp_path) == [0, 10, 20, 30, 40, 50]
    assert [step for step, _ in scalars(tmp_path)["training/updates"]] == [0, 10, 20, 30, 40, 50]
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(b'{"env_steps": 60, "upd')
    (events,) = (tmp_path / "tensorboard").iterdir()
    os.truncate(events, events.stat().st_size - 5)
    write_until(tmp_path, 70, 30)
    assert steps(tmp_path) == [0, 10, 20, 30, 40, 50, 60, 70]
    assert [step for step, _ in scalars(tmp_path)["training/updates"]] == [0, 10, 20, 30, 40, 50, 60, 70]


def test_a_torn_last_line_is_the_only_thing_forgiven(tmp_path):
    file = tmp_path / "metrics.jsonl"
    whole = b'{"env_steps": 1, "wall_seconds": 0}\n'
    line = b'{"env_steps": 2, "wall_seconds": 0}\n'
    for end in range(len(line)):
        file.write_bytes(whole + line[:end])
        assert steps(tmp_path) == [1]
    file.write_bytes(whole + line)
    assert steps(tmp_path) == [1, 2]
    file.write_bytes(whole + b"\0" * 20)
    assert steps(tmp_path) == [1]
    file.write_bytes(b"")
    assert steps(tmp_path) == []


@pytest.mark.parametrize(
    "line",
    [b'{"env_steps": 2', b"", b"[]", b"5", b'{"a": NaN}', b"\xff", b"\0\0\0\0", b"[" * 10**5, b'{"a"\r: '],
)
def test_any_other_line_is_an_error_that_names_it(tmp_path, line):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"env_steps": 1, "wall_seconds": 0}\n' + line + b"\n" + b'{"env_steps": 3}\n')
    assert error_of(read_rows, file).startswith(f"{str(file)!r}, line 2")
    before = file.read_bytes()
    assert error_of(MetricsWriter, tmp_path, 1).startswith(f"{str(file)!r}, line 2")
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    "bad",
    [
        '{"wall_seconds": 1}',
        '{"env_steps": "1", "wall_seconds": 1}',
        '{"env_steps": 1.5, "wall_seconds": 1}',
        '{"env_steps": 1, "wall_seconds": 1e999}',
        '{"env_steps": 99999999999999999999, "wall_seconds": 1}',
    ],
)
def test_a_row_that_cannot_be_placed_is_an_error_on_resume(tmp_path, bad):
    (tmp_path / "evaluations.jsonl").write_text(bad + "\n")
    assert "line 1" in error_of(MetricsWriter, tmp_path, 10)


def test_a_missing_file_is_named(tmp_path):
    assert str(tmp_path / "x.jsonl") in error_of(read_rows, tmp_path / "x.jsonl")


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "no").touch()
    assert str(tmp_path / "no" / "run") in error_of(MetricsWriter, tmp_path / "no" / "run")


FULL = """
    import resource, signal, sys
    from fastcollect.support.command import run
    from trainers.run.metrics import MetricsWriter

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    def train():
        with MetricsWriter(sys.argv[1]) as writer:
            for step in range(10_000):
                writer.{method}({{"env_steps": step, "updates": 0, "wall_seconds": 0.0 {more}}})

    run(train)
"""


@pytest.mark.parametrize("method", ["write_metrics", "write_evaluation"])
@pytest.mark.parametrize("more", ["", ', "x": [1] * 50'])
def test_a_full_disk_ends_the_run_with_2_and_no_torn_row(tmp_path, method, more):
    code = textwrap.dedent(FULL).format(method=method, more=more)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"error: '{tmp_path}/")
    assert done.stderr.endswith("cannot be written: File too large\n")
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        assert (tmp_path / name).read_bytes()[-1:] in (b"", b"\n")
    found = steps(tmp_path, "metrics.jsonl" if method == "write_metrics" else "evaluations.jsonl")
    assert found == list(range(len(found)))
    assert found
    with MetricsWriter(tmp_path, found[-1]):
        pass


def test_a_resume_on_a_full_disk_keeps_the_rows(tmp_path):
    write_until(tmp_path, 100)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    handler, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, limits[1]))
    try:
        assert "metrics.jsonl" in error_of(MetricsWriter, tmp_path, 50)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_the_library_is_loaded_when_it_is_needed_and_brings_nothing_heavy():
    code = """
        import sys, tempfile, threading
        from trainers.run.metrics import MetricsWriter
        print("tensorboardX" in sys.modules)
        with MetricsWriter(tempfile.mkdtemp()) as writer:
            writer.write_metrics({"env_steps": 1, "updates": 0, "wall_seconds": 0.0})
            print("tensorboardX" in sys.modules, threading.active_count())
        print(*sorted({"torch", "tensorflow", "jax", "matplotlib", "moviepy"} & set(sys.modules)))
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.split() == ["False", "True", "1"], done.stderr


def test_the_rows_of_a_run_are_text_that_other_programs_read(tmp_path):
    write_until(tmp_path, 20)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["env_steps"] for line in lines] == [0, 10, 20]
