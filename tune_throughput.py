"""Find the fastest n (environments per worker), N (env workers) and M (model workers) on this machine."""

import fastcollect.project_environment  # noqa: F401  (first: it may change the interpreter)

# isort: split
import tyro

from fastcollect.command import run
from fastcollect.tune import TuneArguments, tune

if __name__ == "__main__":
    arguments = tyro.cli(TuneArguments, description=__doc__)
    run(lambda: tune(arguments))
