import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from fastcollect.memory.board import WeightsBoard
from fastcollect.memory.segment import FieldSpec

FIELDS = {
    "kernel": FieldSpec((256, 300), np.dtype(np.float32)),
    "bias": FieldSpec((300,), np.dtype(np.float32)),
}


def constant(value):
    return {name: np.full(field.shape, value, field.dtype) for name, field in FIELDS.items()}


def hammer(fd):
    """A process that publishes as fast as it can; version v holds v everywhere."""
    code = (
        "import sys, numpy as np\n"
        "from fastcollect.memory.board import WeightsBoard\n"
        "from fastcollect.memory.segment import FieldSpec\n"
        "fields = {'kernel': FieldSpec((256, 300), np.dtype(np.float32)),"
        " 'bias': FieldSpec((300,), np.dtype(np.float32))}\n"
        "board = WeightsBoard(fields, int(sys.argv[1]))\n"
        "while True:\n"
        "    value = board.version + 1\n"
        "    board.publish({k: np.full(f.shape, value, f.dtype) for k, f in fields.items()})\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.Popen([sys.executable, "-c", code, str(fd)], pass_fds=[fd], env=environment)


def test_a_reader_never_sees_half_an_update_of_a_hammering_writer():
    board = WeightsBoard(FIELDS)
    board.publish(constant(1))
    writer = hammer(board.segment.fd)
    try:
        while board.version < 3:
            time.sleep(0.01)
        seen, until = [], time.monotonic() + 3
        while time.monotonic() < until:
            version, parameters = board.read()
            for array in parameters.values():
                assert (array == version).all()
            seen.append(version)
        assert seen == sorted(seen)
        assert len(set(seen)) > 20
    finally:
        writer.kill()
        writer.wait()


def test_a_writer_killed_half_way_leaves_a_whole_version_to_read():
    for attempt in range(5):
        board = WeightsBoard(FIELDS)
        board.publish(constant(1))
        writer = hammer(board.segment.fd)
        while board.version < 3:
            time.sleep(0.001)
        time.sleep(0.003 * attempt)
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        version, parameters = board.read()
        assert all((array == version).all() for array in parameters.values())
        board.segment.close()


def test_a_corrupted_buffer_is_never_returned():
    board = WeightsBoard(FIELDS)
    version = board.publish(constant(4))
    board._arrays[version % 3]["bias"][7] = 5  # what a store that arrives late looks like
    repaired = threading.Timer(0.2, lambda: board._arrays[version % 3]["bias"].__setitem__(7, 4))
    repaired.start()
    _, parameters = board.read()
    assert (parameters["bias"] == 4).all()
    repaired.join()


def test_versions_count_up_and_arrive_in_another_board_over_the_same_memory():
    board = WeightsBoard(FIELDS)
    other = WeightsBoard(FIELDS, os.dup(board.segment.fd))
    assert other.version == 0
    for version in range(1, 8):
        assert board.publish(constant(10 * version)) == version
        got, parameters = other.read()
        assert got == version
        assert (parameters["kernel"] == 10 * version).all()


def test_wrong_names_and_shapes_are_all_named():
    board = WeightsBoard(FIELDS)
    with pytest.raises(ValueError, match=r"missing parameter 'bias'.*kernel.*\(2, 2\).*unknown.*'extra'"):
        board.publish({"kernel": np.zeros((2, 2)), "extra": np.zeros(1)})


def test_staged_weights_wait_until_they_are_published():
    board = WeightsBoard(FIELDS)
    board.publish(constant(1))
    weights = constant(2)
    assert board.stage(weights) == 2
    weights["bias"][:] = 99  # the board keeps its own copy
    assert board.read()[0] == 1
    board.publish_staged()
    board.publish_staged()
    version, parameters = board.read()
    assert version == 2
    assert (parameters["bias"] == 2).all()
