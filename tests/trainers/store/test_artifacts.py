"""Artifacts: what is saved is what is loaded, whole or not at all, and no content is ever executed."""

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from support.planted import HASH, plant

from fastcollect.support.errors import ConfigError
from trainers.store import artifacts

ROOT = Path(__file__).resolve().parents[3]
ARRAYS = {"actor/kernel": np.arange(600, dtype=np.float32).reshape(20, 30), "step": np.int64(7)}


def same(left, right):
    return (
        left.keys() == right.keys()
        and all(left[k].dtype == np.asarray(right[k]).dtype for k in left)
        and all(left[k].shape == np.shape(right[k]) for k in left)
        and all(left[k].tobytes() == np.asarray(right[k]).tobytes() for k in left)
    )


def files(folder):
    return sorted(path.name for path in (folder / "artifacts").iterdir())


def error_of(function, *args, **kwargs):
    with pytest.raises(ConfigError) as caught:
        function(*args, **kwargs)
    (problem,) = caught.value.problems
    return problem


DTYPES = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="?"),
    hnp.unsigned_integer_dtypes(),
    hnp.floating_dtypes(endianness="?"),
    hnp.complex_number_dtypes(),
    hnp.unicode_string_dtypes(endianness="?", min_len=1, max_len=5),
)
NAMES = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(NAMES, hnp.arrays(DTYPES, hnp.array_shapes(min_dims=0, min_side=0)), max_size=4),
    st.dictionaries(st.text(), JSON, max_size=3),
)
def test_what_is_saved_is_what_is_loaded(tmp_path, arrays, meta):
    file = artifacts.save(tmp_path, "dense", arrays, meta, config_hash=HASH)
    loaded = artifacts.load(tmp_path, "dense", HASH)
    assert same(loaded.arrays, arrays)
    assert loaded.meta == meta
    assert files(tmp_path) == [file.name, "index.json"]


def test_names_that_numpys_own_savez_cannot_take(tmp_path):
    arrays = {
        name: np.ones(2) for name in ("file", "allow_pickle", "arr_0", "a.npy", "a", "meta.json", "/x/..")
    }
    artifacts.save(tmp_path, "dense", arrays, config_hash=HASH)
    assert same(artifacts.load(tmp_path, "dense").arrays, arrays)


def test_numpy_reads_the_file_and_so_does_unzip(tmp_path):
    file = artifacts.save(tmp_path, "dense", ARRAYS, {"best": 0.5}, config_hash=HASH)
    assert file == tmp_path / "artifacts" / "dense.npz"
    with np.load(file) as loaded:
        assert loaded["actor/kernel"].tobytes() == ARRAYS["actor/kernel"].tobytes()
    assert json.loads(zipfile.ZipFile(file).read("meta.json")) == {"best": 0.5}


def test_memory_order_is_kept_and_the_same_content_is_the_same_file(tmp_path):
    arrays = {"f": np.asfortranarray(ARRAYS["actor/kernel"]), "strided": ARRAYS["actor/kernel"][::3, ::2]}
    first = artifacts.save(tmp_path, "a", arrays, {"x": 1}, config_hash=HASH).read_bytes()
    assert artifacts.save(tmp_path, "b", arrays, {"x": 1}, config_hash=HASH).read_bytes() == first
    loaded = artifacts.load(tmp_path, "a").arrays
    assert same(loaded, arrays)
    assert loaded["f"].flags.f_contiguous
    loaded["f"][:] = 0  # the caller's own


def test_saving_again_replaces_and_leaves_one_file(tmp_path):
    for step in range(5):
        artifacts.save(tmp_path, "checkpoint", {"step": step}, {"step": step}, config_hash=HASH)
        artifacts.save(tmp_path, f"other-{step}", {"x": step}, config_hash=HASH)
        loaded = artifacts.load(tmp_path, "checkpoint")
        assert (loaded.arrays["step"], loaded.meta["step"]) == (step, step)
        assert len(files(tmp_path)) == step + 3
    for step in range(5):
        assert artifacts.load(tmp_path, f"other-{step}").arrays["x"] == step


def test_another_configurations_artifact_is_refused(tmp_path):
    artifacts.save(tmp_path, "dense", ARRAYS, config_hash=HASH)
    problem = error_of(artifacts.load, tmp_path, "dense", "another")
    assert "dense" in problem
    assert HASH in problem
    assert "another" in problem


def test_what_is_not_there_is_named(tmp_path):
    assert "the folder does not exist" in error_of(artifacts.load, tmp_path / "nowhere", "dense")
    assert "'dense'" in error_of(artifacts.load, tmp_path, "dense")
    file = artifacts.save(tmp_path, "dense", ARRAYS, config_hash=HASH)
    assert "'ticket'" in error_of(artifacts.load, tmp_path, "ticket")
    file.unlink()
    problem = error_of(artifacts.load, tmp_path, "dense")
    assert str(file) in problem
    assert "is gone" in problem
    os.mkfifo(file)  # which would block whoever reads it
    assert str(file) in error_of(artifacts.load, tmp_path, "dense")


@pytest.mark.parametrize("name", ["", "../dense", "a/b", ".hidden", "dense~", "a\0b", "x" * 101, "a b"])
def test_names_that_are_no_file_names_are_refused(tmp_path, name):
    assert "a name is" in error_of(artifacts.load, tmp_path, name)
    assert "a name is" in error_of(artifacts.save, tmp_path, name, ARRAYS, config_hash=HASH)


def test_everything_that_cannot_be_saved_is_named_and_nothing_is_written(tmp_path):
    arrays = {
        "objects": np.array([object()]),
        "bytes": np.array([b"a"]),
        "rows": np.zeros(2, dtype=[("x", "f4")]),
        "": np.zeros(1),
        "a\nb": np.zeros(1),
        "good": np.zeros(1),
    }
    with pytest.raises(ConfigError) as caught:
        artifacts.save(tmp_path, "dense", arrays, {"best": float("nan")}, config_hash=HASH)
    assert len(caught.value.problems) == 6
    assert all("'dense'" in problem for problem in caught.value.problems)
    assert list(tmp_path.iterdir()) == []


def test_a_changed_file_is_told_from_the_one_that_was_saved(tmp_path):
    file = artifacts.save(tmp_path, "dense", ARRAYS, config_hash=HASH)
    content = file.read_bytes()
    before, changed = hashlib.sha256(content).hexdigest(), content[:400] + b"?" + content[401:]
    file.write_bytes(changed)
    problem = error_of(artifacts.load, tmp_path, "dense", HASH)
    assert f"artifact 'dense' of {str(tmp_path)!r} was changed: sha256 is " in problem
    assert f"sha256 is {hashlib.sha256(changed).hexdigest()}, the index says {before}" in problem


@pytest.mark.parametrize("keep", [0, 1, 30, 0.5, 0.99, -1])
def test_a_truncated_file_is_refused_even_if_the_index_vouches_for_it(tmp_path, keep):
    file = artifacts.save(tmp_path, "dense", ARRAYS, {"a": 1}, config_hash=HASH)
    content = file.read_bytes()
    content = content[: int(len(content) * keep) if isinstance(keep, float) else keep]
    file.write_bytes(content)
    assert "was changed" in error_of(artifacts.load, tmp_path, "dense")
    assert str(plant(tmp_path, content)) in error_of(artifacts.load, tmp_path, "dense")


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"dense": ',
        "[]",
        "[" * 10**5,
        "null",
        '{"dense": 5}',
        '{"dense": {}}',
        '{"dense": {"file": "../../x.npz", "sha256": "", "bytes": 1, "config_hash": ""}}',
        '{"dense": {"file": ["dense.npz"], "sha256": "", "bytes": 1, "config_hash": ""}}',
        '{"../x": {"file": "../x.npz", "sha256": "", "bytes": 1, "config_hash": ""}}',
        "\ud800",
    ],
)
def test_a_spoiled_index_is_one_error_that_names_it(tmp_path, text):
    index = tmp_path / "artifacts" / "index.json"
    index.parent.mkdir()
    index.write_bytes(text.encode(errors="surrogatepass"))
    assert str(index) in error_of(artifacts.load, tmp_path, "dense")
    assert str(index) in error_of(artifacts.files, tmp_path)
    assert str(index) in error_of(artifacts.save, tmp_path, "dense", ARRAYS, config_hash=HASH)
    assert files(tmp_path) == ["index.json"]


def test_a_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "run").write_text("")
    assert "run" in error_of(artifacts.save, tmp_path / "run", "dense", ARRAYS, config_hash=HASH)
    assert "run" in error_of(artifacts.load, tmp_path / "run", "dense")


FULL = """
    import resource, signal, sys
    import numpy as np
    from fastcollect.support.command import run
    from trainers.store import artifacts

    folder, limit = sys.argv[1], int(sys.argv[2])
    artifacts.save(folder, "dense", {"x": np.arange(9)}, {"save": 1}, config_hash="h")
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    big = {str(i): np.zeros(1000) for i in range(6)}
    run(lambda: artifacts.save(folder, "dense", big, {"save": 2}, config_hash="h"))
"""


@pytest.mark.parametrize("limit", [0, 1, 100, 300, 8_000, 20_000, 48_500])
def test_a_full_disk_leaves_the_earlier_artifact_and_ends_with_2(tmp_path, limit):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FULL), str(tmp_path), str(limit)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: '{tmp_path}/artifacts/")
    assert "File too large" in line
    loaded = artifacts.load(tmp_path, "dense", "h")
    assert (loaded.arrays["x"].tolist(), loaded.meta) == (list(range(9)), {"save": 1})
    assert files(tmp_path) == ["dense.npz", "index.json"]


def test_an_index_that_does_not_fit_takes_the_new_file_back(tmp_path):
    for i in range(60):
        artifacts.save(tmp_path, f"a{i}", {"x": i}, config_hash=HASH)
    before, handler = files(tmp_path), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, limits[1]))  # enough for an artifact, not for the index
    try:
        assert "index.json" in error_of(artifacts.save, tmp_path, "a7", {"x": -1}, config_hash=HASH)
        assert "index.json" in error_of(artifacts.save, tmp_path, "new", {"x": -1}, config_hash=HASH)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert files(tmp_path) == before
    assert artifacts.load(tmp_path, "a7").arrays["x"] == 7


KILLED = """
    import os, signal, sys
    import numpy as np
    from trainers.store import artifacts

    folder, moment = sys.argv[1], sys.argv[2]
    artifacts.save(folder, "dense", {"x": 1}, {"save": 1}, config_hash="h")
    replace = os.replace

    def die_at(source, target):
        before, after = moment.split()
        if str(target).endswith(after) and before == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)
        if str(target).endswith(after):
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = die_at
    artifacts.save(folder, "dense", {"x": 2}, {"save": 2}, config_hash="h")
"""


@pytest.mark.parametrize(
    ("moment", "save"),
    [("before .npz", 1), ("after .npz", 1), ("before index.json", 1), ("after index.json", 2)],
)
def test_a_kill_at_any_moment_leaves_the_old_or_the_new(tmp_path, moment, save):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path), moment], cwd=ROOT, timeout=60
    )
    assert done.returncode == -signal.SIGKILL
    loaded = artifacts.load(tmp_path, "dense", "h")
    assert (loaded.arrays["x"], loaded.meta["save"]) == (save, save)
    for step in (3, 4):
        artifacts.save(tmp_path, "dense", {"x": step}, config_hash="h")
        assert artifacts.load(tmp_path, "dense").arrays["x"] == step
    assert len([name for name in files(tmp_path) if not name.startswith(".")]) == 2


READER = """
    import sys
    from trainers.store import artifacts

    last = 0
    print("reading", flush=True)
    while last < 300:
        loaded = artifacts.load(sys.argv[1], "checkpoint", "h")
        assert loaded.arrays["step"] == loaded.meta["step"] >= last
        last = loaded.meta["step"]
"""


def test_a_reader_beside_the_writer_sees_whole_artifacts_only(tmp_path):
    artifacts.save(tmp_path, "checkpoint", {"step": 0}, {"step": 0}, config_hash="h")
    command = [sys.executable, "-c", textwrap.dedent(READER), str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as reader:
        assert reader.stdout.readline() == b"reading\n"
        for step in range(1, 301):
            artifacts.save(tmp_path, "checkpoint", {"step": step}, {"step": step}, config_hash="h")
        _, complaint = reader.communicate(timeout=60)
        assert reader.returncode == 0, complaint.decode()
