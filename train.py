"""Train a dense policy, draw lottery tickets from it, transfer them to another task."""

import fastcollect.support.project_environment  # noqa: F401  (first: it may change the interpreter)

# isort: split
import sys

from fastcollect.support.command import run
from trainers.command import main

if __name__ == "__main__":
    run(lambda: main(sys.argv[1:]))
