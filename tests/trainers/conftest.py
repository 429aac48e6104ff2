"""The training command in this process, and one whole dense run for all tests that only look at one."""

import signal

import pytest
from support.training import Silent, keep_learners, launcher, tiny_config

from fastcollect.support.command import run
from trainers import command
from trainers.run import training
from trainers.store.identity import dense_identity
from trainers.study import stages


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


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory):
    """The folder of a reproducible dense run of ``tiny_config()``, and the learner that it ended with."""
    path, config = tmp_path_factory.mktemp("uninterrupted") / "dense", tiny_config()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "new_launcher", lambda config: launcher())
        made = keep_learners(patch)
        context = stages.Context(dense_identity(config), ["test"], Silent(), False, "title")
        stages.dense(context, path, config)
    return path, made[0]
