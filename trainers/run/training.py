"""One training run in a run folder: what its session is built from."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from engine.algorithms.base import Algorithm, Network
from fastcollect import (
    POLICY_VERSION,
    Collector,
    CollectorConfig,
    EnvConfig,
    PolicyConfig,
    mlp_policy,
    noisy_mlp_policy,
)
from fastcollect.control.collector import new_launcher
from fastcollect.control.launcher import Launcher
from fastcollect.control.probe import env_spec
from fastcollect.support.command import parse_kwargs
from fastcollect.support.named import below
from trainers.config.training import TrainConfig
from trainers.run.evaluation import Evaluator
from trainers.run.evolution import Evolution, first_masks
from trainers.run.learner import MEAN_ACTION, Learner, Start, as_numpy, make_algorithm
from trainers.run.metrics import MetricsWriter
from trainers.run.observers import Artifacts, CheckpointWriter, Evaluations, InterruptedRunError
from trainers.run.policy import save_policy
from trainers.run.progress import Progress
from trainers.run.record import Record
from trainers.run.session import Session
from trainers.store.checkpoints import Checkpoints
from trainers.store.folder import RunFolder

_NICENESS = 15


def acting_policy(network: Network, *, deterministic: bool = False) -> PolicyConfig:
    """The policy that acts with an algorithm's network in workers."""
    extras = () if deterministic else (*network.extras, POLICY_VERSION)
    policy = {"mlp": mlp_policy, "noisy-mlp": noisy_mlp_policy}[network.kind]
    return policy(network.hidden, extras, deterministic=deterministic)


def collector_config(config: TrainConfig) -> CollectorConfig:
    """The collector's part of a training's configuration."""
    collect, network = config.collect, config.algorithm.network
    if config.replay.minimum is not None:
        network = network._replace(extras=(*network.extras, MEAN_ACTION))
    return CollectorConfig(
        env=EnvConfig(id=config.env, kwargs=parse_kwargs(config.env_kwargs)),
        policy=acting_policy(network),
        num_envs=collect.n,
        num_env_workers=collect.N,
        num_model_workers=collect.M,
        block_length=collect.block_length,
        seed=config.seed,
        schedule=collect.schedule,
        reproducible=collect.reproducible,
        group_size=collect.group_size,
        tokens=collect.tokens,
    )


def yielding_launcher(config: CollectorConfig) -> Launcher:
    """A launcher whose workers make way for this process.

    The threads of an update wait for each other: a worker in the place of one of them holds up all. While
    the learner has nothing to do, the workers run as fast as ever.
    """
    launcher = new_launcher(config)
    own = os.getpriority(os.PRIO_PROCESS, 0)
    os.setpriority(os.PRIO_PROCESS, launcher.pid, min(own + _NICENESS, 19))
    return launcher


def algorithm_of(config: TrainConfig) -> Algorithm:
    """The algorithm that learns in a run, for what depends on the spaces before there is a folder.

    Raises ConfigError where it cannot learn, and WorkerError where the environment cannot be built.
    """
    collection = collector_config(config)
    with contextlib.closing(new_launcher(collection)) as launcher:
        return make_algorithm(config, env_spec(launcher, collection.env))


@contextlib.contextmanager
def open_session(config: TrainConfig, model_device: str = "cpu") -> Iterator[Session]:
    """A session that nobody looks on, its workers started: to train by turns, or to measure.

    model_device: "cpu" or "gpu", what model workers infer on.
    """
    collection = replace(collector_config(config), model_device=model_device)
    with contextlib.closing(yielding_launcher(collection)) as launcher:
        spec = env_spec(launcher, collection.env)
        learner = Learner(config, spec, collection.env_indices)
        # Without steps before the first update, what learns acts from the first one on.
        exploring = config.start_steps > 0
        weights = learner.algorithm.exploring(learner.state) if exploring else as_numpy(learner.acting)
        with Collector(collection, launcher, parameters=weights, spec=spec) as source:
            if exploring:
                learner.random_version = source.version
            yield Session(source, learner)


def train(
    folder: RunFolder, config: TrainConfig, start: Start, progress: Progress, *, resume: bool = False
) -> dict[str, Any]:
    """Run to the end of the budget; returns the summary, which is written too.

    Raises ConfigError for what the user can mend, WorkerError for what a worker raised, InterruptedRunError.
    """
    began = time.perf_counter()
    collection = collector_config(config)
    policy = acting_policy(config.algorithm.network, deterministic=True)
    with contextlib.ExitStack() as stack:
        launcher = stack.enter_context(contextlib.closing(yielding_launcher(collection)))
        spec = env_spec(launcher, collection.env)
        learner = Learner(config, spec, collection.env_indices, start.topology)
        checkpoints = Checkpoints(folder.path)
        step = checkpoints.latest() if resume else None
        arrays: dict[str, np.ndarray] = {}
        meta: dict[str, Any] = {}
        if step is None:
            learner.start_from(start)
        else:
            arrays, meta = checkpoints.load()
            learner.set_state(arrays, f"checkpoint {step} of {str(folder.path)!r}")
        tested = below(arrays, "evaluator/")
        evaluator = Evaluator(collection.env, policy, config.evaluation, config.seed, spec, launcher, tested)
        stack.callback(evaluator.close)
        metrics = stack.enter_context(MetricsWriter(folder.path, step, evolving=bool(start.topology)))
        record = Record(learner, metrics, progress, began, meta.get("record", {}))
        kept = Artifacts(folder, start.keep, learner)
        # On a grid of step counts that all runs share, whatever step they begin at.
        every = config.evaluation.every
        first = every * -(-learner.env_steps // every)
        evaluations = Evaluations(evaluator, record, kept, meta.get("next_evaluation", first))
        # Weights that are fresh act at random first.
        exploring = start.random_actions and not learner.updates
        weights = learner.algorithm.exploring(learner.state) if exploring else as_numpy(learner.acting)
        state = below(arrays, "collector/") or None
        source = stack.enter_context(Collector(collection, launcher, state, weights, spec))
        if step is not None and not collection.reproducible:
            source.publish(weights)
        evolution = Evolution(learner, record, first_masks(folder, learner, resumed=step is not None))
        if exploring:
            learner.random_version = source.version
        writer = CheckpointWriter(checkpoints, evaluations, record)
        session = Session(source, learner, (kept, evaluations, evolution, record, writer))
        if step is None:
            kept.save("initial", learner.state)
        session.ended = record.stopped_early
        with _stop_on_signal(session):
            session.run()
            save_policy(folder, policy, spec, as_numpy(learner.evaluated()))
            summary = record.summary(source.stats())
            folder.write_summary(summary)
    if session.signum is not None:  # too late for this run, and not for those that may follow it
        raise InterruptedRunError(session.signum)
    return summary


@contextlib.contextmanager
def _stop_on_signal(session: Session) -> Iterator[None]:
    """SIGINT and SIGTERM end the run at its next checkpoint; a second one ends it at once.

    Only a process's main thread may handle signals; elsewhere they stay whoever's they are.
    """
    main = threading.current_thread() is threading.main_thread()

    def stop(signum: int, _: object) -> None:
        if session.signum is not None:
            raise KeyboardInterrupt
        session.signum = signum

    earlier = {each: signal.signal(each, stop) for each in (signal.SIGINT, signal.SIGTERM) if main}
    try:
        yield
    finally:
        for each, handler in earlier.items():
            signal.signal(each, handler)
