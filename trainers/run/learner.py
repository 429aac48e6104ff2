"""The learner: what it knows, how it learns from blocks, what it gives to the collector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import numpy as np

from engine.algorithms import base
from engine.algorithms.base import AgentState, Algorithm
from engine.data.replay import Replay
from engine.data.transition import Batch
from engine.networks import Parameters
from fastcollect.envs.base import EnvSpec
from fastcollect.memory.block import Block
from fastcollect.support.errors import ConfigError
from fastcollect.support.named import below
from trainers.config.training import TrainConfig
from trainers.run.start import Start
from trainers.store.states import from_arrays, to_arrays


@dataclass(frozen=True, kw_only=True)
class LearnerConfig:
    """How an algorithm that replays transitions is fed; see TrainConfig for what it is made from.

    env_steps: the budget, at whose last update the learning rates are ``final_learning_rate`` times what they
    were. num_envs, first_env: of the source of blocks. storage: "host" or "device".
    """

    seed: int
    num_envs: int
    first_env: int
    batch_size: int
    n_step: int
    start_steps: int
    env_steps: int
    updates_per_step: float
    updates_per_dispatch: int
    final_learning_rate: float
    capacity: int
    storage: str


def learner_config(config: TrainConfig, num_envs: int, first_env: int = 0) -> LearnerConfig:
    """The learner's part of a training's configuration."""
    return LearnerConfig(
        seed=config.seed,
        num_envs=num_envs,
        first_env=first_env,
        batch_size=config.algorithm.batch_size,
        n_step=config.algorithm.n_step,
        start_steps=config.start_steps,
        env_steps=config.env_steps,
        updates_per_step=config.updates_per_step,
        updates_per_dispatch=config.updates_per_dispatch,
        final_learning_rate=config.final_learning_rate,
        capacity=config.replay.capacity,
        storage=config.replay.storage or ("host" if jax.default_backend() == "cpu" else "device"),
    )


def make_algorithm(config: TrainConfig, spec: EnvSpec) -> Algorithm:
    """The algorithm for an environment. Raises ConfigError for spaces in which it cannot learn."""
    if problems := config.algorithm.space_problems(spec):
        raise ConfigError([f"{config.env} {problem}" for problem in problems])
    return config.algorithm.make(spec, config.variance_floor)


class Learner:
    """An agent's state and its replay, which learn from blocks at the ratio asked for.

    Updates are dispatched and not waited for; ``acting`` is what the newest of them gave.
    """

    def __init__(self, config: LearnerConfig, algorithm: Algorithm, spec: EnvSpec) -> None:
        self.config, self.algorithm = config, algorithm
        self.state = algorithm.init(config.seed)
        self.updates = 0
        self.pruned: tuple[str, ...] = ()
        self.metrics: dict[str, jax.Array] = {}
        actions = int(np.prod(spec.action.shape))
        self.replay = Replay(
            config.capacity, config.num_envs, spec.observation_shape[0], actions, config.storage
        )
        low, high = np.asarray(spec.action.low, np.float64), np.asarray(spec.action.high, np.float64)
        self._centre, self._half_width = (low + high) / 2, (high - low) / 2
        self._next_step = np.full(config.num_envs, -1, np.int64)  # the environments' own count of steps
        self.acting: Parameters = {}
        self.refresh_acting()

    @property
    def env_steps(self) -> int:
        """Environment steps learned from."""
        return int(self.state.env_steps)

    def start_from(self, start: Start) -> None:
        """Take over what a run begins with, with every pruned weight zero in all parts of the state.

        Raises ConfigError naming every leaf of another shape, and both shapes.
        """
        if start.state is not None:
            self._set(from_arrays(to_arrays(start.state), self.state, "the start"))
        try:
            self._set(base.masked(self.state, start.masks))
        except ValueError as error:
            raise ConfigError([f"the start: {error}"]) from error
        if start.replay is not None:
            self.set_replay(start.replay, "the replay of the start")

    def _set(self, state: AgentState) -> None:
        self.state, self.updates = state, int(state.updates)
        self.pruned = base.pruned_networks(state)
        self.refresh_acting()

    def refresh_acting(self) -> None:
        """Compute ``acting`` without an update."""
        mean, scale = self.state.normalizer.scaling(self.algorithm.variance_floor)
        self.acting = jax.tree.map(jax.numpy.copy, self.algorithm.acting(self.state, mean, scale))

    def learn_from(self, block: Block) -> None:
        """Store a block's transitions and count its frames into the normaliser, once.

        Raises ValueError for environments before the first one that this learner is for.
        """
        envs = block.env_index - self.config.first_env
        if envs.min() < 0:
            raise ValueError(
                f"a block of environment {block.env_index.min()}; allowed: {self.config.first_env} and more"
            )
        rows = {
            "observation": block.observation,
            "action": ((block.action - self._centre) / self._half_width).astype(np.float32),
            "reward": block.reward,
            "terminated": block.terminated,
            "final_row": block.episodes.row,
            "final_observation": block.episodes.final_observation,
        }
        self._make_room(int(envs.max()) + 1)
        # The environments of a worker that was replaced count from zero again.
        continues = bool((self._next_step[envs] == block.first_step).all())
        self._next_step[envs] = block.first_step + len(block.reward)
        self.replay.add(envs, rows, continues)
        seen = block.observation[:-1].reshape(len(block), -1)
        self.state = self.state.replace(
            normalizer=self.state.normalizer.update(seen), env_steps=np.int64(self.env_steps + len(block))
        )

    def _make_room(self, num_envs: int) -> None:
        """For environments that came with workers that were added on the way."""
        if more := max(0, num_envs - self.replay.num_envs):
            self.replay = self.replay.resized(num_envs)
            self._next_step = np.pad(self._next_step, (0, more), constant_values=-1)

    def due(self) -> int:
        """Updates that the ratio asks for and that were not dispatched yet."""
        return max(0, self._due_at(self.env_steps) - self.updates)

    def _due_at(self, env_steps: int) -> int:
        learned = env_steps - self.config.start_steps
        return int(learned * self.config.updates_per_step + 1e-9)

    def update(self, count: int) -> None:
        """Dispatch ``count`` updates, each from a batch of its own."""
        batches, pace = self._batches(self.updates, count), np.float32(self.pace())
        self.state, self.acting, self.metrics = base.learn(
            self.algorithm, self.state, batches, pace, self.pruned
        )
        self.updates += count

    def _batches(self, first: int, count: int) -> Batch:
        config = self.config
        return self.replay.batches(config.seed, first, count, config.batch_size, config.n_step)

    def pace(self) -> float:
        """Share of the learning rates that the next dispatch learns with."""
        total = self._due_at(self.config.env_steps)
        return 1 - (1 - self.config.final_learning_rate) * min(1.0, self.updates / max(1, total))

    def samples(self, batches: int) -> dict[str, np.ndarray]:
        """Batches for saliency, (batches, batch, ...) raw: a function of the seed and of what is held."""
        # Numbers that no update of the run has, so that they are not what it learned from last.
        return {name: np.asarray(value) for name, value in vars(self._batches(2**62, batches)).items()}

    def get_state(self) -> dict[str, np.ndarray]:
        """Everything that the continuation depends on, as named arrays."""
        replay = {f"replay/{name}": value for name, value in self.replay.get_state().items()}
        # Of the last update's normaliser, which has seen more since.
        acting = {f"acting/{name}": np.asarray(value) for name, value in self.acting.items()}
        return {**to_arrays(self.state), **acting, **replay, "next_step": self._next_step.copy()}

    def set_state(self, arrays: Mapping[str, np.ndarray], where: str) -> None:
        """Go on from ``get_state``'s result. Raises ConfigError, naming ``where``, if it does not fit."""
        self._set(from_arrays(arrays, self.state, where))
        self.acting = {name: jax.numpy.array(arrays[f"acting/{name}"].copy()) for name in self.acting}
        self._make_room(len(arrays["next_step"]))
        self.set_replay(arrays, where)
        self._next_step[:] = arrays["next_step"]

    def set_replay(self, arrays: Mapping[str, np.ndarray], where: str) -> None:
        """Hold the transitions among ``get_state``'s arrays; what is collected next does not continue them.

        Raises ConfigError, naming ``where``, if they do not fit.
        """
        try:
            self.replay.set_state(below(arrays, "replay/"))
        except (KeyError, ValueError) as error:
            raise ConfigError([f"{where}: the replay does not fit: {error}"]) from error

    def check_masks(self) -> None:
        """Raises AssertionError unless every pruned weight, target and moment is exactly zero."""
        expected = jax.tree.leaves(base.masked(self.state))
        for (path, now), zeroed in zip(
            jax.tree_util.tree_flatten_with_path(self.state)[0], expected, strict=True
        ):
            if not np.array_equal(np.asarray(now), np.asarray(zeroed), equal_nan=True):
                raise AssertionError(f"pruned entries of {jax.tree_util.keystr(path)} are not zero")


def as_numpy(parameters: Mapping[str, jax.Array]) -> dict[str, np.ndarray]:
    """Parameters for ``BlockSource.publish``; waits for the update that gives them."""
    return {name: np.asarray(value) for name, value in parameters.items()}
