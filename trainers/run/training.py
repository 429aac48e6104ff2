"""One training run in a run folder: what its session is built from."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from engine.algorithms.base import Network
from fastcollect.control.collector import Collector, new_launcher
from fastcollect.control.config import CollectorConfig
from fastcollect.control.launcher import Launcher
from fastcollect.control.probe import env_spec
from fastcollect.envs.base import EnvSpec
from fastcollect.envs.registry import EnvConfig
from fastcollect.policies import POLICY_VERSION, PolicyConfig, mlp_policy
from fastcollect.support.command import parse_kwargs
from fastcollect.support.named import below
from trainers.config.training import TrainConfig
from trainers.run.evaluation import Evaluator
from trainers.run.learner import Learner, as_numpy, learner_config, make_algorithm
from trainers.run.metrics import MetricsWriter
from trainers.run.observers import (
    Artifacts,
    CheckpointWriter,
    Evaluations,
    InterruptedRunError,
    Measurements,
)
from trainers.run.policy import save_policy
from trainers.run.progress import Progress
from trainers.run.record import Record
from trainers.run.session import Session
from trainers.run.start import Start
from trainers.store.checkpoints import Checkpoints
from trainers.store.folder import RunFolder

_NICENESS = 15


def acting_policy(network: Network, *, deterministic: bool = False) -> PolicyConfig:
    """The policy that acts with an algorithm's network in workers."""
    extras = () if deterministic else (*network.extras, POLICY_VERSION)
    return {"mlp": mlp_policy}[network.kind](network.hidden, extras, deterministic=deterministic)


def collector_config(config: TrainConfig) -> CollectorConfig:
    """The collector's part of a training's configuration."""
    collect = config.collect
    return CollectorConfig(
        env=EnvConfig(id=config.env, kwargs=parse_kwargs(config.env_kwargs)),
        policy=acting_policy(config.algorithm.network),
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


def new_learner(config: TrainConfig, collection: CollectorConfig, spec: EnvSpec) -> Learner:
    """A learner of fresh weights for what a collector of this configuration hands out."""
    algorithm = make_algorithm(config, spec)
    return Learner(learner_config(config, collection.total_envs, collection.first_env), algorithm, spec)


@contextlib.contextmanager
def open_session(config: TrainConfig, model_device: str = "cpu") -> Iterator[Session]:
    """A session that nobody looks on, its workers started: to train by turns, or to measure.

    model_device: "cpu" or "gpu", what model workers infer on.
    """
    collection = replace(collector_config(config), model_device=model_device)
    with contextlib.closing(yielding_launcher(collection)) as launcher:
        learner = new_learner(config, collection, env_spec(launcher, collection.env))
        with Collector(collection, launcher, parameters=as_numpy(learner.acting)) as source:
            yield Session(source, learner)


def train(
    folder: RunFolder, config: TrainConfig, start: Start, progress: Progress, *, resume: bool = False
) -> dict[str, Any]:
    """Run to the end of the budget; returns the summary, which is written too.

    Raises ConfigError for what the user can mend, WorkerError for what a worker raised, InterruptedRunError.
    """
    began = time.perf_counter()
    collection = collector_config(config)
    with contextlib.ExitStack() as stack:
        launcher = stack.enter_context(contextlib.closing(yielding_launcher(collection)))
        spec = env_spec(launcher, collection.env)
        learner = new_learner(config, collection, spec)
        policy = acting_policy(config.algorithm.network, deterministic=True)
        evaluator = Evaluator(
            collection.env, policy, config.evaluation, config.seed, spec.max_episode_steps, launcher
        )
        stack.callback(evaluator.close)
        checkpoints, record = Checkpoints(folder.path), Record(config, began)
        resumed = resume and checkpoints.latest() is not None
        saved = None
        if resumed:
            saved = _restore(checkpoints, folder, learner, evaluator, record)
        else:
            learner.start_from(start)
        metrics = MetricsWriter(folder.path, learner.env_steps if resumed else None)
        stack.enter_context(contextlib.closing(metrics))
        record.goes_on(learner)
        kept = Artifacts(folder, config.anchor_steps, start.keep, resumed=resumed)
        evaluations = Evaluations(config.evaluation, evaluator, record, metrics, progress, kept)
        if saved is not None:
            evaluations.next = saved["next_evaluation"]
        source = stack.enter_context(_start_collector(collection, launcher, learner, start, saved))
        measurements = Measurements(record, metrics, progress)
        writer = CheckpointWriter(checkpoints, evaluations, record)
        session = Session(source, learner, (kept, evaluations, measurements, writer))
        with _stop_on_signal(session):
            session.run()
            save_policy(folder, policy, spec, as_numpy(learner.acting))
            summary = record.summary(learner, source.stats())
            folder.write_summary(summary)
    if session.signum is not None:  # too late for this run, and not for those that may follow it
        raise InterruptedRunError(session.signum)
    return summary


def _restore(
    checkpoints: Checkpoints, folder: RunFolder, learner: Learner, evaluator: Evaluator, record: Record
) -> dict[str, Any]:
    """Go on from the newest checkpoint; returns the rest of it: collector, next_evaluation."""
    arrays, meta = checkpoints.load()
    learner.set_state(arrays, f"checkpoint {checkpoints.latest()} of {str(folder.path)!r}")
    evaluator.set_state(below(arrays, "evaluator/"))
    record.set_state(meta["record"])
    return {"collector": below(arrays, "collector/"), "next_evaluation": meta["next_evaluation"]}


def _start_collector(
    config: CollectorConfig,
    launcher: Launcher,
    learner: Learner,
    start: Start,
    saved: Mapping[str, Any] | None,
) -> Collector:
    """The collector, acting at random first if weights are fresh."""
    exploring = start.random_actions and not learner.updates
    weights: Mapping[str, np.ndarray] = as_numpy(learner.acting)
    if exploring:
        weights = learner.algorithm.exploring(learner.state)
    if saved is None:
        return Collector(config, launcher, parameters=weights)
    collector = Collector(config, launcher, state=saved["collector"])
    if not config.reproducible:
        collector.publish(weights)
    return collector


@contextlib.contextmanager
def _stop_on_signal(session: Session) -> Iterator[None]:
    """SIGINT and SIGTERM end the run at its next checkpoint; a second one ends it at once.

    Only a process's main thread may handle signals; elsewhere they stay whoever's they are.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signum: int, _: object) -> None:
        if session.signum is not None:
            raise KeyboardInterrupt
        session.signum = signum

    earlier = {each: signal.signal(each, stop) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in earlier.items():
            signal.signal(each, handler)
