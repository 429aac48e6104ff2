"""The peers of bench.fps: what a missing one says, what the baseline counts, and a sign of life of each."""

import re
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from bench.cartridge import build
from bench.fps import Options, make_plan
from bench.harness import measure
from bench.methods import METHODS, naive, names
from bench.methods.base import Request, UnsupportedError
from bench.methods.sample_factory import encoder_arguments
from bench.methods.vector_envs import single
from fastcollect.control.parallelism import Parallelism

ROOT = Path(__file__).resolve().parents[2]
PEER_METHODS = [name for name in names(Request) if METHODS[name].peer]


def request(method, env="CartPole-v1", n=4, N=2, M=1, policy=None):
    return Request(method=method, env=env, parallelism=Parallelism(n, N, M), policy=policy)


def measured(*args, **changes):
    return measure.measure([request(*args, **changes)], 0.0, 0.2)


@pytest.fixture(autouse=True)
def no_profiles(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_every_peer_has_a_complete_pinned_file():
    files = {file.stem: file.read_text().splitlines() for file in (ROOT / "bench" / "peers").glob("*.txt")}
    assert set(files) == {method.peer for method in METHODS.values() if method.peer}
    for lines in files.values():
        assert re.fullmatch(r"# check: import [\w., ]+", lines[0])
        pins = [line for line in lines if not line.startswith("#")]
        assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)
        names = Counter(pin.partition("==")[0].lower() for pin in pins)
        assert max(names.values()) == 1
        assert {"numpy", "gymnasium", "metaworld", "mujoco", "cloudpickle", "psutil"} <= set(names)
        assert {"crafter", "opensimplex", "ruamel.yaml", "pyboy", "pysdl2", "pysdl2-dll"} <= set(names)
        assert not any("nvidia" in name for name in names)


def test_a_peer_that_could_not_be_installed_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "PEERS", tmp_path)
    folder = tmp_path / "pufferlib"
    folder.mkdir()
    (folder / "install.log").write_text("Collecting numpy\nERROR: no matching distribution for numpy\n\n")
    with pytest.raises(measure.MeasurementError) as found:
        measured("pufferlib")
    why = "ERROR: no matching distribution for numpy"
    assert str(found.value) == f"make peers could not install pufferlib: {why}"


def test_a_peer_that_was_never_tried_names_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "PEERS", tmp_path)
    with pytest.raises(
        measure.MeasurementError, match="sample-factory is not installed; make peers installs it"
    ):
        measured("sample-factory")


def test_the_naive_design_counts_steps_in_whole_rollouts_and_leaves_no_process():
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    subject = naive.naive(request("naive"))
    try:
        counts = [subject.step() for _ in range(20)]
        children = [c for c in psutil.Process().children(recursive=True) if c.pid not in before]
        assert len(children) >= 3
    finally:
        subject.close()
    assert set(counts) == {4 * naive.ROLLOUT_STEPS}
    assert subject.num_envs == 8
    left = psutil.wait_procs(children, timeout=5)[1]
    assert not [process for process in left if "resource_tracker" not in " ".join(process.cmdline())]


def test_a_naive_design_that_loses_a_process_says_so():
    subject = naive.naive(request("naive", N=1))
    try:
        worker = next(c for c in psutil.Process().children() if "spawn_main" in " ".join(c.cmdline()))
        worker.kill()
        deadline = time.monotonic() + 30
        with pytest.raises(RuntimeError, match="naive design ended"):
            while time.monotonic() < deadline:
                subject.step()
    finally:
        subject.close()


def test_one_stock_environment_counts_one_step_at_a_time():
    subject = single(request("gymnasium-single", n=1, N=1, M=0))
    assert [subject.step() for _ in range(100)] == [1] * 100
    subject.close()


@pytest.mark.parametrize("method", ["naive", "gymnasium-single"])
def test_the_baselines_run(method):
    found = measured(method)
    assert found["rate"] > 10
    assert found["num_envs"] == (8 if method == "naive" else 1)


def skip_without(peer):
    try:
        measure.peer_python(peer)
    except measure.MeasurementError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("method", PEER_METHODS)
def test_an_installed_peer_runs(method):
    skip_without(METHODS[method].peer)
    found = measured(method)
    assert found["rate"] > 10
    assert found["num_envs"] == (4 if method.startswith("sb3") else 8)


@pytest.mark.parametrize("env", ["CrafterReward-v1", "gameboy"])
@pytest.mark.parametrize("method", PEER_METHODS)
def test_an_installed_peer_plays_from_images_and_leaves_nothing_behind(method, env, tmp_path):
    skip_without(METHODS[method].peer)
    if env == "gameboy":
        (tmp_path / "game.gb").write_bytes(build())
        env = f"gameboy:{tmp_path / 'game.gb'}"
    found = measured(method, env=env, n=1, N=1)
    assert found["rate"] > 1
    assert found["num_envs"] == 1
    cache = str(tmp_path / "cache")
    processes = psutil.process_iter(["environ"])
    started = [each for each in processes if (each.info["environ"] or {}).get("XDG_CACHE_HOME") == cache]
    assert not psutil.wait_procs(started, timeout=5)[1]


def test_sample_factory_is_told_the_policy_in_its_own_words():
    assert encoder_arguments(request("sample-factory", policy="8,4")) == ["--encoder_mlp_layers", "8", "4"]
    images = encoder_arguments(request("sample-factory", env="CrafterReward-v1"))
    assert images[:3] == ["--encoder_conv_architecture=convnet_impala", "--encoder_conv_mlp_layers", "256"]
    with pytest.raises(UnsupportedError, match="hidden widths"):
        encoder_arguments(request("sample-factory", policy="random"))


def test_peers_have_settings_of_their_own_and_the_naive_design_those_given():
    peers = tuple(name for name in names(Request) if METHODS[name].role == "peer")
    rows = {case.row["method"]: case.row for case in make_plan(Options(env="reach-v3", methods=peers))}
    assert (rows["naive"]["n"], rows["naive"]["M"]) == (16, 1)
    assert {row["settings"] for row in rows.values()} == {"fixed"}
    assert rows["sb3-dummy"]["n"] == rows["gymnasium-sync"]["n"]
    assert rows["envpool"]["policy"] is None
    assert rows["sample-factory"]["policy"] == "mlp-256x256"
    options = Options(env="CartPole-v1", methods=("naive",), num_envs=(5,), num_env_workers=(3,))
    (case,) = make_plan(options)
    assert (*(case.row[key] for key in "nNM"), case.row["settings"]) == (5, 3, 1, "chosen")
