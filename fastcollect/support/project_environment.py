"""Lets ``python command.py`` work as written after ``make``: on import, moves to the project's ``.venv``.

Nothing happens where the packages are there already, or where there is no ``.venv``.
"""

import importlib.util
import os
import sys
from pathlib import Path

_PYTHON = Path(__file__).resolve().parents[2] / ".venv" / "bin" / "python"

if importlib.util.find_spec("tyro") is None and _PYTHON.exists() and Path(sys.prefix) != _PYTHON.parents[1]:
    os.execv(_PYTHON, [str(_PYTHON), *sys.orig_argv[1:]])
