"""Named arrays and metadata as one ``.npz`` file that ``numpy.load`` reads, hashed while it is written.

Reading takes nothing on trust: no pickle, no compression, and no memory is set aside for what a header
promises before the file was found to hold it.
"""

import hashlib
import io
import json
import math
import zipfile
from collections.abc import Mapping
from typing import Any, BinaryIO, NamedTuple

import numpy as np

KINDS = "biufcU"
ALLOWED = "booleans, integers, floats, complex numbers and texts"
_META = "meta.json"


class Artifact(NamedTuple):
    """arrays: by name, as they were saved. meta: the JSON object saved with them."""

    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]


class _Hashed(io.RawIOBase):
    """Hashes what it hands on. There is no way back in it, so that what was hashed stays."""

    def __init__(self, stream: BinaryIO, sha256: "hashlib._Hash") -> None:
        self._stream, self._sha256 = stream, sha256

    def write(self, data: Any, /) -> int:
        self._sha256.update(data)
        return self._stream.write(data)


def write(stream: BinaryIO, arrays: Mapping[str, np.ndarray], meta: bytes, sha256: "hashlib._Hash") -> None:
    """Write a file, hashed on the way, in small pieces: an array may be as large as a replay."""
    # By hand, as numpy.savez takes arrays as keyword arguments and cannot save one called "file".
    with zipfile.ZipFile(_Hashed(stream, sha256), "w", zipfile.ZIP_STORED) as archive:
        with archive.open(_META, "w") as member:
            member.write(meta)
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, version=(1, 0), allow_pickle=False)


def read(stream: BinaryIO, size: int) -> Artifact:
    """What is in an open file of this size. Raises anything at all for content that is none of ours."""
    with zipfile.ZipFile(stream) as archive:
        members = archive.infolist()
        if any(m.compress_type != zipfile.ZIP_STORED or m.compress_size != m.file_size for m in members):
            raise ValueError("it is compressed")
        if sum(m.file_size for m in members) > size:
            raise ValueError("its members are larger than the file")
        named = {m.filename: m for m in members}
        if len(named) != len(members):
            raise ValueError("it holds two members of one name")
        meta = json.loads(archive.read(named.pop(_META)))
        if not isinstance(meta, dict):
            raise ValueError("its metadata is no JSON object")
        if strange := [name for name in named if not name.endswith(".npy")]:
            raise ValueError(f"{strange[0]!r} is no array")
        arrays = {name.removesuffix(".npy"): _read_array(archive, member) for name, member in named.items()}
    return Artifact(arrays, meta)


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    # The header is judged before memory is set aside for what it promises.
    with archive.open(member) as stream:
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError(f"{member.filename!r} is of another version of the format")
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
        if dtype.kind not in KINDS or not dtype.itemsize:
            raise ValueError(f"{member.filename!r} holds {dtype}; allowed: {ALLOWED}")
        if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != member.file_size - stream.tell():
            raise ValueError(f"{member.filename!r} is of shape {shape}, and its size is not that of {dtype}")
    with archive.open(member) as stream:
        array = np.lib.format.read_array(stream, allow_pickle=False)
    if array.dtype.kind == "U":
        array.tolist()  # raises ValueError for what is no text
    return array
