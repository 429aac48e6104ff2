"""The page's arithmetic against numbers worked out by hand, and a real run of a moment."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.compare import CompareArguments, compare, markdown, picture
from bench.harness.results import ratios, summary
from fastcollect.support.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
MACHINE = {
    "cpu": "Abacus",
    "cpus": 2,
    "memory_gib": 1,
    "system": "Linux",
    "versions": {"python": "3"},
    "commit": "c",
}


def row(label, env, rounds, error=None, **more):
    found = {"label": label, "method": label, "env": env, "n": 4, "N": 2, "M": 0, "policy": None, **more}
    if error:
        return found | {"fps": None, "error": error}
    costs = {"start_seconds": 1.25, "cpus_busy": 1.96, "num_envs": 8, "memory_mib": 100.0}
    return found | {"fps": summary(rounds), "fps_rounds": rounds} | costs


def column(env, *rows):
    rates = {each["label"]: each.get("fps_rounds") for each in rows}
    among = ratios(rates)
    return {"env": env, "rows": [each | {"ratios": among.get(each["label"], {})} for each in rows]}


def document():
    first = column(
        "A-v1",
        row("ours, default", "A-v1", [80.0, 100.0, 90.0]),
        row("ours, tuned", "A-v1", [100.0, 300.0, 200.0], n=64, policy="mlp-16x16"),
        row("peer", "A-v1", [50.0, 50.0, 20.0]),
    )
    second = column(
        "B-v1",
        row("ours, default", "B-v1", [10.0] * 3),
        row("ours, tuned", "B-v1", [12.0] * 3, M=1),
        row("peer", "B-v1", None, error="peer is not installed"),
        row("other", "B-v1", [4.0] * 3),
    )
    envs = [first, second]
    return {"machine": MACHINE, "command": "python -m it", "seconds": 2.0, "rounds": 3, "envs": envs}


def test_the_page_holds_medians_ratios_settings_costs_and_reasons():
    page = markdown(document())
    for line in (
        "| steps per second | A-v1 | B-v1 |",
        "| ours, tuned | 200 (100 \u2013 300) | 12 (12 \u2013 12) |",
        "| peer | 50 (20 \u2013 50) |  |",
        "| other |  | 4 (4 \u2013 4) |",
        # 100/50, 300/50, 200/20: the median of the rounds' ratios, not the ratio of the medians.
        "| peer | 6.00 |  |",
        # 100/80, 300/100, 200/90.
        "| ours, default | 2.22 | 1.20 |",
        "| other |  | 3.00 |",
        "| A-v1 | 64 | 2 | 0 | mlp-16x16 |",
        "| B-v1 | 4 | 2 | 1 | None |",
        # 100 MiB for 8 environments.
        "| peer | 1.2 / 2.0 / 12.5 |  |",
        "- peer (B-v1): peer is not installed",
    ):
        assert line in page.splitlines()
    assert "Abacus, 2 CPUs" in page
    assert "`python -m it`" in page


def test_one_reason_for_several_environments_is_one_line():
    found = document()
    found["envs"][0]["rows"][2] = row("peer", "A-v1", None, error="peer is not installed")
    assert "- peer (A-v1, B-v1): peer is not installed" in markdown(found)


def test_the_picture_is_one():
    assert picture(document()).startswith(b"\x89PNG")


def test_wrong_values_are_gathered_before_anything_runs(tmp_path):
    wrong = CompareArguments(
        out=tmp_path / "out", envs=("CartPole-v1", "NoSuch-v0"), methods=("nosuch",), tune_seconds=0
    )
    with pytest.raises(ConfigError) as error:
        compare(wrong)
    text = "\n".join(error.value.problems)
    assert all(part in text for part in ("NoSuch-v0", "'nosuch'", "--tune-seconds is 0"))
    assert not (tmp_path / "out").exists()


def test_a_real_run_writes_its_folder(tmp_path):
    out = tmp_path / "table"
    command = ["-m", "bench.compare", "--out", str(out), "--envs", "CartPole-v1", "--methods"]
    command += ["gymnasium-single", "ours-fast", "--seconds", "0.2", "--rounds", "1", "--tune-seconds", "3"]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in out.iterdir()) == ["table.json", "table.md", "table.png"]
    (found,) = json.loads((out / "table.json").read_text())["envs"]
    rows = {each["label"]: each for each in found["rows"]}
    assert list(rows) == ["ours, default", "ours, tuned", "gymnasium-single", "ours-fast"]
    assert rows["ours, default"]["n"] == 4096
    assert rows["gymnasium-single"]["num_envs"] == 1
    assert all(rows[label]["fps"]["median"] > 0 for label in list(rows)[:3])
    assert "Meta-World's tasks only" in (out / "table.md").read_text()
    assert (out / "table.md").read_text() == done.stdout
