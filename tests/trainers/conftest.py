"""The training command in this process."""

import signal

import pytest

from fastcollect.support.command import run
from trainers import command


@pytest.fixture
def call(capsys):
    """``train.py`` with these flags in this process: (exit code, lines of errors)."""
    handler = signal.getsignal(signal.SIGTERM)

    def call(*flags):
        with pytest.raises(SystemExit) as caught:
            run(lambda: command.main([str(flag) for flag in flags]))
        lines = capsys.readouterr().err.splitlines()
        return caught.value.code, [line for line in lines if line.startswith("error: ")]

    yield call
    signal.signal(signal.SIGTERM, handler)
