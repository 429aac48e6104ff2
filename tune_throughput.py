"""Find the fastest n (environments per worker), N (env workers) and M (model workers) on this machine."""

import fastcollect.support.project_environment  # noqa: F401  (first: it may change the interpreter)

# isort: split
import tyro

from fastcollect.support.command import run
from fastcollect.tuning.command import TuneArguments, tune

if __name__ == "__main__":
    arguments = tyro.cli(TuneArguments, description=__doc__)
    run(lambda: tune(arguments))
