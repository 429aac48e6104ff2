"""Run folders of a small configuration."""

import pytest

from fastcollect.support.errors import ConfigError
from trainers.store.folder import RunFolder
from trainers.store.identity import Identity

CONFIG = {"env": "reach-v3", "seed": 1, "algorithm": {"rate": 6e-4, "hidden": [256, 256]}, "stop": None}
COMMAND = ["python", "train.py", "--env-kwargs", "a=b c"]


def problems_of(function, *args, **kwargs):
    with pytest.raises(ConfigError) as caught:
        function(*args, **kwargs)
    return caught.value.problems


def error_of(function, *args, **kwargs):
    (problem,) = problems_of(function, *args, **kwargs)
    return problem


def create(path, config=CONFIG, **kwargs):
    return RunFolder.create(path, identity(config), COMMAND, **kwargs)


def identity(config=CONFIG):
    return Identity(kind="dense", config=config)
