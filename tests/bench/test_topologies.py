"""The comparison of topologies: what it runs, what it does not run again, how it counts."""

import json

import pytest

from bench import topologies
from bench.topologies import Run, TopologyArguments, check, compare, lines_of, planned, train_all
from fastcollect.support.errors import ConfigError

pytestmark = pytest.mark.slow


def row(run, **changes):
    flops = {"training": {"dense": 400, "masked": 100}}
    made = {"asked": [300_000], "return": 50.0, "curve": [[0, 1.0], [300_000, 50.0]], "wall_seconds": 60.0}
    return {**run._asdict(), **made, "flops": flops, **changes}


def test_runs_come_topology_by_topology_so_that_a_part_compares():
    few = {"envs": ("Ant-v5",), "topologies": ("dense", "set"), "seeds": (0, 1), "algos": ("td3",)}
    found = planned(TopologyArguments(json="file", **few))
    assert found == [Run("Ant-v5", "td3", topology, seed) for topology in ("dense", "set") for seed in (0, 1)]
    assert len(planned(TopologyArguments(json="file"))) == 2 * 2 * 7 * 3


def test_shares_are_of_the_dense_mean():
    of = [Run("Hopper-v5", "sac", topology, seed) for topology in ("dense", "rlx2") for seed in (1, 0)]
    rows = [row(run, **{"return": value}) for run, value in zip(of, (300.0, 100.0, 250.0, 50.0), strict=True)]
    rows.append(row(Run("Hopper-v5", "td3", "dense", 0), **{"return": 7.0}))
    rows[2]["wall_seconds"] = 180.0
    dense, rlx2 = lines_of(rows, "Hopper-v5", "sac")
    assert dense[3:] == ["200", "100, 300", "100.0", "100.0", "0.25", "1.0"]
    assert rlx2[3:] == ["150", "50, 250", "75.0", "109.7", "0.25", "2.0"]


def test_no_run_begins_that_would_end_too_late(monkeypatch):
    now = [0.0]

    def made(run, arguments, processor):
        now[0] += 60.0
        return row(run)

    monkeypatch.setattr(topologies, "train", made)
    monkeypatch.setattr(topologies.time, "monotonic", lambda: now[0])
    runs = [Run("Ant-v5", "sac", "set", seed) for seed in range(9)]
    arguments = TopologyArguments(json="file", minutes=3.5)
    # After the third, half a minute is left.
    assert [found["seed"] for found in train_all(runs, arguments, [0])] == [0, 1, 2]
    assert len(list(train_all(runs, TopologyArguments(json="file"), [0, 1]))) == 9


def test_real_runs_are_kept_and_not_made_again(tmp_path, monkeypatch):
    small = ("--start-steps", "128", "--algorithm.hidden", "8", "8", "--evaluation.every", "256")
    small += ("--evaluation.episodes", "1", "--updates-per-step", "0.25")
    few = {"envs": ("Hopper-v5",), "topologies": ("dense", "rlx2"), "seeds": (3,), "algos": ("td3",)}
    arguments = TopologyArguments(json=tmp_path / "results.json", env_steps=512, flags=small, **few)
    compare(arguments)
    rows = json.loads(arguments.json.read_text())["rows"]
    assert {found["topology"] for found in rows} == {"dense", "rlx2"}
    for found in rows:
        assert [steps for steps, _ in found["curve"]] == [0, 256, 512]
        assert found["return"] == found["curve"][-1][1]
        assert found["updates"] == 96
    density = {found["topology"]: found["density"]["actor"] for found in rows}
    assert density["dense"] == 1
    assert 0.02 <= density["rlx2"] < 0.1  # of a few hundred weights
    assert (tmp_path / "results.png").read_bytes()[:4] == b"\x89PNG"
    monkeypatch.setattr(topologies, "train", None)
    compare(arguments)
    assert json.loads(arguments.json.read_text())["rows"] == rows


def test_everything_wrong_is_said_at_once(tmp_path):
    (tmp_path / "file").write_text(json.dumps({"rows": [row(Run("Ant-v5", "sac", "set", 0))]}))
    wrong = {"topologies": ("dance",), "seeds": (), "minutes": -1.0, "env_steps": 5}
    with pytest.raises(ConfigError) as caught:
        check(TopologyArguments(json=tmp_path / "file", envs=("Ant-v5", "Antelope"), **wrong))
    text = "\n".join(caught.value.problems)
    for named in ("--envs", "Antelope", "dance", "--seeds", "--minutes", "other lengths or flags"):
        assert named in text


@pytest.mark.parametrize("content", ["", "[]", '{"rows": 3}', '{"rows": [{"env": "Ant-v5"}]}'])
def test_a_file_of_something_else_is_left_alone(content, tmp_path):
    file = tmp_path / "file"
    file.write_text(content)
    with pytest.raises(ConfigError, match="no rows of this command"):
        check(TopologyArguments(json=file))
    assert file.read_text() == content
