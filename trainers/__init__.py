"""Training, from a command line (``trainers.command``) or from Python:

    from trainers import configure, load, train

    run = train(configure("reach-v3", env_steps=50_000))
    run.summary["success_any"], run.policy(observation)

Rooms: ``config`` (what a user chooses, and where each value comes from), ``run`` (one training run),
``store`` (what lies on the disk), ``study`` (stages, rewinds, controls, transfers), ``report`` (the page
about runs); ``export`` and ``command`` are command lines. May import ``fastcollect`` and ``engine``.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainers.notebook import TrainConfig, TrainedRun, configure, load, train

__all__ = ["TrainConfig", "TrainedRun", "configure", "load", "train"]


def __getattr__(name: str) -> Any:
    # Late, because what only reads a run has no use for JAX and the simulators.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("trainers.notebook"), name)
