"""The study that reports are written of, without training."""

import pytest
from support import studies

from trainers import export
from trainers.report import film, sections

ODD = 'a<b>&"study'


@pytest.fixture(scope="session")
def study(tmp_path_factory):
    """Two tickets of two rounds with controls, from reach to push, and both tasks' dense runs."""
    path = tmp_path_factory.mktemp("report") / ODD
    with pytest.MonkeyPatch.context() as monkeypatch:
        flags = ("--stage", "all", "--tasks", "reach-v3", "--targets", "push-v3", "--seeds", "0", "1")
        return studies.study(monkeypatch, path, *flags, "--controls", "--prune.rate", "0.6")


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(export, "_ROUNDS", 1)
    monkeypatch.setattr(sections, "film", lambda *_: film.Film(None, "No episode: not here."))
