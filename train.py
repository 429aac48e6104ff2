"""Train a dense policy, draw lottery tickets from it, transfer them to another task."""

import fastcollect.project_environment  # noqa: F401  (first: it may change the interpreter)

# isort: split
import sys

from fastcollect.command import run
from trainers.command import parse, train

if __name__ == "__main__":
    run(lambda: train(parse(sys.argv[1:])))
