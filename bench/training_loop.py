"""The product's training loop without what surrounds it: no evaluations, checkpoints or metrics."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import jax

from engine.algorithms.sac import DENSE
from fastcollect.control.collector import Collector
from fastcollect.control.probe import env_spec
from trainers.config.training import TrainConfig
from trainers.run.learner import Learner, as_numpy
from trainers.run.session import collector_config, yielding_launcher


@dataclass(frozen=True)
class TrainingLoop:
    """Workers that collect and a learner that keeps the ratio of updates to their steps."""

    collector: Collector
    learner: Learner

    def turn(self) -> int:
        """Take one block and make the updates that it brings; the environment steps in it."""
        learner = self.learner
        block = self.collector.take()
        learner.learn_from(block)
        updates = learner.config.updates_per_dispatch
        while learner.due() >= updates:
            ready = learner.acting
            learner.update(updates)
            self.collector.publish(as_numpy(ready))
        return len(block)

    def wait(self) -> None:
        """Return when every update made so far is computed."""
        jax.block_until_ready((self.learner.state, self.learner.acting))


@contextlib.contextmanager
def training_loop(config: TrainConfig, model_device: str = "cpu") -> Iterator[TrainingLoop]:
    """The loop, its workers started; model_device: what model workers infer on."""
    collection = replace(collector_config(config), model_device=model_device)
    with contextlib.closing(yielding_launcher(collection)) as launcher:
        learner = Learner(config, env_spec(launcher, collection.env), DENSE)
        learner.refresh_acting()
        with Collector(collection, launcher, parameters=as_numpy(learner.acting)) as collector:
            yield TrainingLoop(collector, learner)
