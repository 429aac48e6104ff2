"""What the benchmarks know of how the product trains: the one file to change when training changes."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bench.methods.learners import LearnerRequest, Storage
from bench.methods.training import TrainingRequest
from engine.algorithms import CONFIGS, AlgorithmConfig
from engine.algorithms.base import AgentState, noises
from engine.data.transition import Batch
from engine.networks import mlp, tanh_gaussian
from engine.sparse.topology import Topology, initial
from fastcollect import BlockSource, EnvSpec, Parallelism
from fastcollect.envs.gym_vector import space_spec
from trainers.command import TrainArguments, read
from trainers.config.training import ALGORITHM, CollectConfig, ReplayConfig, TrainConfig
from trainers.run.learner import Learner, Start, as_numpy
from trainers.run.policy import TrainedPolicy
from trainers.run.training import acting_policy, open_session


class TrainingLoop(NamedTuple):
    """The product's loop without evaluations, checkpoints and metrics.

    turn: takes one block, dispatches the updates that it brings and returns the environment steps in it.
    updates: how many were dispatched so far. policy: gives what a user would be left with now, from an
    observation its action. wait: returns when all updates are computed. close: ends the workers.
    """

    collector: BlockSource
    turn: Callable[[], int]
    updates: Callable[[], int]
    policy: Callable[[], TrainedPolicy]
    wait: Callable[[], None]
    close: Callable[[], None]


def _wait(learner: Learner) -> None:
    jax.block_until_ready((learner.state, learner.acting))


def training_loop(config: TrainConfig, model_device: str = "cpu") -> TrainingLoop:
    """Start workers and learner. model_device: what model workers infer on.

    Raises ConfigError for an environment that cannot be learned.
    """
    stack = contextlib.ExitStack()
    session = stack.enter_context(open_session(config, model_device))
    learner, spec = session.learner, session.source.spec
    network = acting_policy(config.algorithm.network, deterministic=True)
    return TrainingLoop(
        collector=session.source,
        turn=lambda: len(session.turn()),
        updates=lambda: learner.updates,
        policy=lambda: TrainedPolicy(network, spec, as_numpy(learner.evaluated())),
        wait=lambda: _wait(learner),
        close=stack.close,
    )


def _config(
    env: str, algorithm: Mapping[str, Any], algo: str = ALGORITHM, start_steps: int = 0, **settings: Any
) -> TrainConfig:
    """The product's defaults but for these, learning from the first step on."""
    make: Callable[..., AlgorithmConfig] = CONFIGS[algo]
    return TrainConfig(env=env, start_steps=start_steps, algo=algo, algorithm=make(**algorithm), **settings)


def collecting_config(env: str, hidden: Sequence[int], size: Parallelism) -> TrainConfig:
    """Networks and workers of these sizes."""
    return _config(env, {"hidden": tuple(hidden)}, collect=CollectConfig(n=size.n, N=size.N, M=size.M))


def _rates(algo: str) -> list[str]:
    made: Any = CONFIGS[algo]()
    return [name for name in vars(made) if name.endswith("_learning_rate")]


def training_config(request: LearnerRequest, storage: Storage | None = None) -> TrainConfig:
    """The configuration of a request for updates. storage: where the replay lies, see ReplayConfig."""
    algorithm = {
        "hidden": tuple(request.hidden),
        "batch_size": request.batch,
        "discount": request.discount,
        "target_rate": request.target_rate,
    }
    algorithm |= dict.fromkeys(_rates(request.algo), request.learning_rate)
    replay = ReplayConfig(capacity=request.rows, storage=storage)
    settings: dict[str, Any] = {"updates_per_step": request.updates_per_step, "replay": replay}
    return _config(request.env, algorithm, request.algo, **settings)


def published_training(request: TrainingRequest) -> TrainingLoop:
    """Start what a request for a training asks for, on eight environments."""
    algorithm: dict[str, Any] = dict.fromkeys(_rates(request.algo), request.learning_rate)
    algorithm |= {"hidden": tuple(request.hidden), "batch_size": request.batch, "reward_scale": 1.0}
    algorithm |= {"discount": request.discount, "target_rate": request.target_rate}
    if request.algo == "sac":
        algorithm["initial_temperature"] = 1.0
    config = _config(
        request.env,
        algorithm,
        request.algo,
        start_steps=request.start_steps,
        seed=request.seed,
        env_steps=2**40,  # a caller counts
        updates_per_step=request.updates_per_step,
        final_learning_rate=1.0,
        replay=ReplayConfig(capacity=request.rows),
        collect=CollectConfig(n=4, N=2),
    )
    return training_loop(config)


def _begin_sparse(learner: Learner, method: str) -> None:
    """Give it the sparse networks of RLx2 for HalfCheetah, and their interval (Tan et al. 2023)."""
    found = learner.state.parameters
    sparsities = {"actor": 0.9, "critic": 0.8}
    learner.start_from(Start({name: initial(found[name], s, "erk") for name, s in sparsities.items()}))
    if method != "static":
        topology = {n: Topology.make(method, interval=10_000, end=3_000_000) for n in sparsities}
        learner.state = learner.state.replace(topology=topology)


def filled_learner(
    request: LearnerRequest, storage: Storage, sparse: str | None = None
) -> tuple[Callable[[], int], Callable[[], None]]:
    """The product's learner alone, its replay full of random transitions.

    sparse: dense networks if None, else how the masks of sparse ones evolve, if not "static". Returns a
    function that dispatches some updates and says how many, and one that returns when all of them are
    computed.
    """
    config, spec = training_config(request, storage), space_spec(*request.spaces)
    envs, rng = config.collect.n * config.collect.N, np.random.default_rng(0)
    learner = Learner(config, spec, range(envs))
    if sparse:
        _begin_sparse(learner, sparse)
    steps = request.rows // envs
    rows = {
        "observation": rng.standard_normal((steps + 1, envs, request.observations), np.float32),
        "action": rng.uniform(-1, 1, (steps, envs, request.actions)).astype(np.float32),
        "reward": rng.uniform(0, 1, (steps, envs)).astype(np.float32),
        **{name: np.zeros((steps, envs), bool) for name in ("terminated", "truncated")},
        "final_row": np.zeros(0, np.int64),
        "final_observation": np.zeros((0, request.observations), np.float32),
    }
    learner.replay.add(np.arange(envs), rows, False)

    def update() -> int:
        before = learner.acting
        learner.update(config.updates_per_dispatch)
        jax.block_until_ready(before)  # as the training loop does
        return config.updates_per_dispatch

    return update, lambda: _wait(learner)


def single_updates(
    arguments: TrainArguments, spec: EnvSpec
) -> tuple[Callable[[np.ndarray], np.ndarray], Callable[[Mapping[str, np.ndarray]], None], int]:
    """The product's losses as the original study calls them, and their batch size.

    The first function gives an action (actions,) for one observation (observations,) and is not compiled; the
    second updates once from a batch of single steps (observation, action, reward, next_observation,
    terminated), from which the normaliser is updated, too, and reads every metric.
    """
    config, key = arguments.algorithm, jax.random.key(0)
    algorithm = config.make(spec, variance_floor=1e-4)
    state = algorithm.init(0)

    @jax.jit
    def update(state: AgentState, batch: Batch, mean: jax.Array, scale: jax.Array) -> tuple[AgentState, dict]:
        drawn = jax.tree.map(lambda leaf: leaf[0], noises(algorithm, state, 1, batch.action.shape))
        return algorithm.update(state, algorithm.prepare(batch, mean, scale), drawn, jnp.float32(1))

    def act(row: np.ndarray) -> np.ndarray:
        nonlocal key
        mean, scale = state.normalizer.scaling(algorithm.variance_floor)
        key, own = jax.random.split(key)
        head = mlp(state.parameters["actor"], jnp.asarray((row - mean) * scale, jnp.float32)[None])
        noise = jax.random.normal(own, (1, head.shape[1] // 2))
        return np.asarray(tanh_gaussian(head, noise)[0])[0]

    def learn(batch: Mapping[str, np.ndarray]) -> None:
        nonlocal state
        moments = state.normalizer
        for name in ("observation", "next_observation"):
            moments = moments.update(batch[name])
        steps = Batch(
            observation=batch["observation"],
            action=batch["action"],
            rewards=batch["reward"][:, None],
            steps=np.ones(len(batch["reward"]), np.int32),
            next_observation=batch["next_observation"],
            terminated=batch["terminated"] > 0,
        )
        core = state.replace(normalizer=None, env_steps=None)
        core, metrics = update(core, steps, *moments.scaling(algorithm.variance_floor))
        state = core.replace(normalizer=moments, env_steps=state.env_steps)
        for value in metrics.values():
            float(value)

    return act, learn, config.batch_size


def study(flags: Sequence[str]) -> tuple[TrainArguments, list[str]]:
    """What train.py makes of its flags, and what it would refuse before a dense run and a ticket.

    Raises ConfigError for flags that cannot be read; exits with 2 for those that do not exist.
    """
    return read(flags).built(stage="ticket")
