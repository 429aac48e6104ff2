"""What the benchmarks know of how the product trains: the one file to change when training changes."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from bench.methods.base import Parallelism
from bench.methods.learners import LearnerRequest
from bench.methods.stock import spec_of
from engine.algorithms import sac
from engine.networks import mlp, tanh_gaussian
from engine.normalizer import Moments
from fastcollect.control.collector import Collector
from fastcollect.control.probe import env_spec
from fastcollect.support.errors import ConfigError
from trainers.command import TrainArguments, control_rounds, parse, train_config
from trainers.config.training import CollectConfig, ReplayConfig, TrainConfig, check_prune
from trainers.run.learner import Learner, as_numpy
from trainers.run.session import collector_config, yielding_launcher


@dataclass(frozen=True)
class TrainingLoop:
    """Workers that collect, and a learner that keeps the ratio of updates to their steps."""

    collector: Collector
    learner: Learner

    @property
    def updates(self) -> int:
        """Updates that were dispatched so far."""
        return self.learner.updates

    def turn(self) -> int:
        """Take one block and dispatch the updates that it brings; returns the environment steps in it."""
        learner = self.learner
        block = self.collector.take()
        learner.learn_from(block)
        while learner.due() >= learner.config.updates_per_dispatch:
            ready = learner.acting
            learner.update(learner.config.updates_per_dispatch)
            self.collector.publish(as_numpy(ready))
        return len(block)

    def wait(self) -> None:
        """Return when every update dispatched so far is computed."""
        jax.block_until_ready((self.learner.state, self.learner.acting))


@contextlib.contextmanager
def training_loop(config: TrainConfig, model_device: str = "cpu") -> Iterator[TrainingLoop]:
    """The product's loop without evaluations, checkpoints and metrics, its workers started.

    model_device: what model workers infer on. Raises ConfigError for an environment that cannot be learned.
    """
    collection = replace(collector_config(config), model_device=model_device)
    with contextlib.closing(yielding_launcher(collection)) as launcher:
        learner = Learner(config, env_spec(launcher, collection.env), sac.DENSE)
        learner.refresh_acting()
        with Collector(collection, launcher, parameters=as_numpy(learner.acting)) as collector:
            yield TrainingLoop(collector, learner)


def collecting_config(env: str, hidden: Sequence[int], size: Parallelism) -> TrainConfig:
    """The product's defaults with networks and workers of these sizes, learning from the first step on."""
    collect = CollectConfig(n=size.n, N=size.N, M=size.M)
    return TrainConfig(env=env, start_steps=0, sac=sac.SACConfig(hidden=tuple(hidden)), collect=collect)


def learner_config(request: LearnerRequest, storage: str | None = None) -> TrainConfig:
    """The configuration of a request for updates. storage: where the replay lies, see ReplayConfig."""
    algorithm = sac.SACConfig(
        hidden=tuple(request.hidden),
        batch_size=request.batch,
        discount=request.discount,
        target_rate=request.target_rate,
        **{f"{name}_learning_rate": request.learning_rate for name in ("actor", "critic", "temperature")},
    )
    return TrainConfig(
        env=request.env,
        updates_per_step=request.updates_per_step,
        start_steps=0,
        sac=algorithm,
        replay=ReplayConfig(capacity=request.rows, storage=storage),
    )


def filled_learner(request: LearnerRequest, storage: str) -> tuple[Callable[[], int], Callable[[], None]]:
    """The product's learner alone, its replay full of random transitions.

    Returns a function that dispatches some updates and says how many, and one that returns when all of them
    are computed.
    """
    config = learner_config(request, storage)
    learner = Learner(config, spec_of(*request.spaces), sac.DENSE)
    envs, rng = config.collect.n * config.collect.N, np.random.default_rng(0)
    shape = (request.rows // envs, envs)
    rows = {
        name: rng.standard_normal((*shape, request.observations), np.float32)
        for name in ("observation", "next_observation")
    }
    rows["action"] = rng.uniform(-1, 1, (*shape, request.actions)).astype(np.float32)
    rows["reward"] = rng.uniform(0, 1, shape).astype(np.float32)
    rows |= {name: np.zeros(shape, bool) for name in ("terminated", "truncated")}
    learner.replay.add(np.arange(envs), rows, False)

    def update() -> int:
        before = learner.acting
        learner.update(config.updates_per_dispatch)
        jax.block_until_ready(before)  # as the training loop does
        return config.updates_per_dispatch

    return update, lambda: jax.block_until_ready((learner.state, learner.acting))


def single_updates(
    arguments: TrainArguments, observations: int, actions: int
) -> tuple[Callable, Callable, float, int]:
    """The product's losses as the original study calls them, and their discount and batch size.

    The first function gives an action (actions,) for one observation (observations,) and is not compiled; the
    second updates once from a batch of transitions, named as in ``engine.algorithms.sac.Batch``, from which
    the normaliser is updated, too, and reads every metric.
    """
    config, key = arguments.sac, jax.random.key(0)
    state, moments = sac.init(config, 0, observations, actions), Moments.empty(observations)

    @jax.jit
    def update(state: sac.SACState, batch: sac.Batch) -> tuple[sac.SACState, dict[str, jax.Array]]:
        return sac.update(config, state, sac.DENSE, batch, sac.noises(state, 1, batch.action.shape)[0])

    def act(row: np.ndarray) -> np.ndarray:
        nonlocal key
        mean, scale = moments.scaling(1e-4)
        key, own = jax.random.split(key)
        head = mlp(state.actor, jnp.asarray((row - mean) * scale, jnp.float32)[None])
        noise = jax.random.normal(own, (1, head.shape[1] // 2))
        return np.asarray(tanh_gaussian(head, noise)[0])[0]

    def learn(batch: Mapping[str, np.ndarray]) -> None:
        nonlocal state, moments
        for name in ("observation", "next_observation"):
            moments = moments.update(batch[name])
        prepared = sac.prepare(config, sac.Batch(**batch), *moments.scaling(1e-4))
        state, metrics = update(state, prepared)
        for value in metrics.values():
            float(value)

    return act, learn, config.discount, config.batch_size


def study(flags: Sequence[str]) -> tuple[TrainArguments, list[str]]:
    """What train.py makes of its flags, and what it would refuse before a dense run and a ticket.

    Raises ConfigError for flags that cannot be read; exits with 2 for those that do not exist.
    """
    arguments, problems = parse(flags), []
    # Rounds of controls can be checked only if the pruning, which makes rounds, is right.
    for check in (train_config, lambda each: (check_prune(each.prune), control_rounds(each))):
        try:
            check(arguments)
        except ConfigError as error:
            problems += error.problems
    return arguments, problems
