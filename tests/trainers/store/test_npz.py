"""Content of an artifact that is not what it says: one error that names the file, and nothing is executed."""

import contextlib
import io
import pickle
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.planted import HASH, plant

from fastcollect.support.errors import ConfigError
from trainers.store import artifacts

META = ("meta.json", b"{}")
DICT = "{{'descr': {}, 'fortran_order': False, 'shape': {}}}"


def error_of(function, *args, **kwargs):
    with pytest.raises(ConfigError) as caught:
        function(*args, **kwargs)
    (problem,) = caught.value.problems
    return problem


def npz(members, **how):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", **how) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return stream.getvalue()


def forged():
    """A member that claims, in the zip's directory and in its own header, to hold 8 GiB."""
    stream, start = io.BytesIO(), header(DICT.format("'<f8'", "(1073741824,)"))
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(*META)
        archive.writestr("a.npy", start)
        archive.filelist[-1].file_size = archive.filelist[-1].compress_size = len(start) + 2**33
    return stream.getvalue()


def npy(array, **how):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, **how)
    return stream.getvalue()


def header(text):
    text = text.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


def test_a_pickle_in_any_place_is_never_opened(tmp_path):
    sprung = tmp_path / "sprung"
    objects = npy(np.array([Trap(sprung)], dtype=object), allow_pickle=True)
    meta = ("meta.json", b"{}")
    pickled = pickle.dumps(Trap(sprung))
    for content in (
        npz([meta, ("a.npy", objects)]),
        npz([meta, ("a.npy", pickled)]),
        npz([("meta.json", pickled), ("a.npy", npy(np.ones(2)))]),
        npz([meta, ("a", pickled)]),
        objects,
        pickled,
    ):
        file = plant(tmp_path, content)
        assert str(file) in error_of(artifacts.load, tmp_path, "dense")
        assert not sprung.exists()
    np.load(io.BytesIO(objects), allow_pickle=True)
    assert sprung.exists()  # it would have


HOSTILE = {
    "no zip": b"\x93NUMPY and no more",
    "empty": b"",
    "no metadata": npz([("a.npy", npy(np.ones(2)))]),
    "metadata is a list": npz([("meta.json", b"[]")]),
    "metadata is torn": npz([("meta.json", b'{"a": ')]),
    "metadata is deep": npz([("meta.json", b"[" * 10**6)]),
    "a compressed bomb": npz([META, ("a.npy", npy(np.zeros(10**6)))], compression=zipfile.ZIP_DEFLATED),
    "a forged size": forged(),
    "a huge shape": npz([META, ("a.npy", header(DICT.format("'<f8'", "(1099511627776,)")) + b"0" * 64)]),
    "an absurd shape": npz([META, ("a.npy", header(DICT.format("'<f8'", f"({10**30}, 0)")))]),
    "a negative shape": npz([META, ("a.npy", header(DICT.format("'<f8'", "(-1, -2)")) + b"0" * 16)]),
    "many dimensions": npz([META, ("a.npy", header(DICT.format("'<f8'", "(1,) * 99")) + b"0" * 8)]),
    "65 dimensions": npz([META, ("a.npy", header(DICT.format("'<f8'", str((1,) * 65))) + b"0" * 8)]),
    "no shape": npz([META, ("a.npy", header("{'descr': '<f8'}"))]),
    "shape of text": npz([META, ("a.npy", header(DICT.format("'<f8'", "('a',)")))]),
    "no dtype": npz([META, ("a.npy", header(DICT.format("'nonsense'", "(1,)")))]),
    "a structured dtype": npz([META, ("a.npy", npy(np.zeros(2, dtype=[("x", "f4")])))]),
    "texts without letters": npz([META, ("a.npy", header(DICT.format("'<U0'", "(1099511627776,)")))]),
    "texts that are none": npz([META, ("a.npy", header(DICT.format("'<U1'", "(1,)")) + b"\xff" * 4)]),
    "a header of code": npz([META, ("a.npy", header("__import__('os').abort()"))]),
    "a header that ends early": npz([META, ("a.npy", header("{'descr': '''"))]),
    "a header that is deep": npz([META, ("a.npy", header("(" * 9000))]),
    "a header that is cut off": npz([META, ("a.npy", b"\x93NUMPY\x01\x00\xff\xff{")]),
    "another version": npz([META, ("a.npy", npy(np.ones(2), version=(2, 0)))]),
    "the wrong magic": npz([META, ("a.npy", b"MUMPY" + npy(np.ones(2)))]),
    "too little data": npz([META, ("a.npy", npy(np.ones(9))[:-8])]),
    "too much data": npz([META, ("a.npy", npy(np.ones(9)) + b"more")]),
    "no array": npz([META, ("readme.txt", b"hello")]),
}
# Refused by a check before memory is set aside, not by what fails later.
CHECKED = {
    "a compressed bomb": "it is compressed",
    "a forged size": "larger than the file",
    "a huge shape": "its size is not that",
    "a negative shape": "its size is not that",
    "a structured dtype": "allowed: booleans",
    "too little data": "its size is not that",
    "too much data": "its size is not that",
    "another version": "another version",
}


@pytest.mark.filterwarnings("ignore:Reading .npy")
@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_content_is_one_error_that_names_the_file(tmp_path, what):
    file = plant(tmp_path, HOSTILE[what])
    problem = error_of(artifacts.load, tmp_path, "dense", HASH)
    assert str(file) in problem
    assert CHECKED.get(what, "") in problem


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_arrays_of_one_name_are_refused(tmp_path):
    file = plant(tmp_path, npz([META, ("a.npy", npy(np.ones(2))), ("a.npy", npy(np.ones(3)))]))
    assert str(file) in error_of(artifacts.load, tmp_path, "dense")


@pytest.mark.filterwarnings("ignore")
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_flipped_byte_is_an_error_or_harmless(tmp_path, data):
    arrays = {"a": np.arange(4, dtype=np.int16), "b/c": np.ones((2, 1))}
    file = artifacts.save(tmp_path, "dense", arrays, {"a": [1, None]}, config_hash=HASH)
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    file.unlink()
    plant(tmp_path, bytes(content))
    # The zip's checksums cover the data, not every field around it; a traceback is what must not come.
    with contextlib.suppress(ConfigError):
        loaded = artifacts.load(tmp_path, "dense", HASH)
        assert all(array.dtype.kind in "biufcU" for array in loaded.arrays.values())
