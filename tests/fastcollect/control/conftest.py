"""One launcher for all collectors of files that are not about launchers: starting one outlasts most tests."""

import importlib

import pytest

SHARING = {"test_collector", "test_schedule", "test_source", "test_state"}


@pytest.fixture(autouse=True)
def _one_launcher(request, monkeypatch):
    if request.path.stem in SHARING:
        # By name, because whatever names a launcher is taken to start one.
        training = importlib.import_module("support.training")
        collector = importlib.import_module("fastcollect.control.collector")
        monkeypatch.setattr(collector, "new_launcher", lambda config: training.launcher())
