"""The learner: what it begins with, how it learns from blocks, what it gives to the collector."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from engine.algorithms import base
from engine.algorithms.base import AgentState, Algorithm, Masks
from engine.data.capacity import BATCHES, distance, excess
from engine.data.replay import Replay
from engine.data.transition import Batch
from engine.networks import Parameters
from engine.sparse.topology import Topology
from fastcollect import POLICY_VERSION, Block, ConfigError, EnvSpec
from fastcollect.support.named import below
from trainers.config.training import TrainConfig, updates_due
from trainers.store.layout import from_arrays, to_arrays

MEAN_ACTION = "mean_action"
"""The extra that a replay of dynamic capacity keeps beside actions."""


@dataclass(frozen=True)
class Start:
    """What a run begins with.

    masks: networks left out are dense. state: None for fresh weights. replay: None, or arrays of
    ``Learner.get_state`` to begin with. random_actions: whether it collects at random until start_steps.
    keep: which artifacts it leaves beside "final": any of "initial", "anchor", "best", "saliency". topology:
    how masks evolve, of networks whose masks do.
    """

    masks: Masks = field(default_factory=dict)
    state: AgentState | None = None
    replay: Mapping[str, np.ndarray] | None = None
    random_actions: bool = True
    keep: tuple[str, ...] = ("initial", "anchor", "best", "saliency")
    topology: Mapping[str, Topology] = field(default_factory=dict)


def make_algorithm(config: TrainConfig, spec: EnvSpec) -> Algorithm:
    """The algorithm for an environment. Raises ConfigError for spaces in which it cannot learn."""
    if problems := config.algorithm.space_problems(spec):
        raise ConfigError([f"{config.env} {problem}" for problem in problems])
    return config.algorithm.make(spec, config.variance_floor)


class Learner:
    """An agent's state and its replay, which learn from blocks at the ratio asked for.

    envs: the global indices of the environments that blocks come from, see ``BlockSource.env_indices``.
    topology: of networks whose masks evolve. Updates are dispatched and not waited for; ``acting`` holds the
    acting weights of the newest of them. ``random_version`` is the last version of weights that act at
    random, 0 where none do.
    Raises ConfigError as ``make_algorithm``.
    """

    def __init__(
        self, config: TrainConfig, spec: EnvSpec, envs: range, topology: Mapping[str, Topology] | None = None
    ) -> None:
        self.config, self.algorithm, self._first_env = config, make_algorithm(config, spec), envs.start
        self._set(self.algorithm.init(config.seed).replace(topology=dict(topology or {})))
        self.metrics: dict[str, jax.Array] = {}
        actions = int(np.prod(spec.action.shape))
        storage = config.replay.storage or ("host" if jax.default_backend() == "cpu" else "device")
        sizes, self._dynamic = (spec.observation_shape[0], actions), config.replay.minimum is not None
        self.replay = Replay(config.replay.capacity, len(envs), *sizes, storage, self._dynamic)
        low, high = np.asarray(spec.action.low, np.float64), np.asarray(spec.action.high, np.float64)
        self._centre, self._half_width = (low + high) / 2, (high - low) / 2
        self._next_step = np.full(len(envs), -1, np.int64)  # the environments' own count of steps
        self.random_version, self._distance, self._drops = 0, math.nan, 0

    def _set(self, state: AgentState) -> None:
        self.state, self.updates = state, int(state.updates)
        self.pruned = base.pruned_networks(state)
        scaling = map(jax.numpy.asarray, state.normalizer.scaling(self.algorithm.variance_floor))
        acting = self.algorithm.acting(state, *scaling)
        self.acting: Parameters = jax.tree.map(jax.numpy.copy, acting)

    def evaluated(self) -> Parameters:
        """The weights that evaluations are of: ``acting``, or the averages that the algorithm keeps.

        Those act with the normaliser of now, in buffers of their own.
        """
        if not self.state.averages:
            return self.acting
        scaling = map(jax.numpy.asarray, self.state.normalizer.scaling(self.algorithm.variance_floor))
        acting = self.algorithm.acting(base.evaluated(self.state), *scaling)
        return jax.tree.map(jax.numpy.copy, acting)

    @property
    def env_steps(self) -> int:
        """Environment steps learned from."""
        return int(self.state.env_steps)

    def start_from(self, start: Start) -> None:
        """Take over what a run begins with, with every pruned weight zero in all parts of the state.

        Raises ConfigError naming every leaf of another shape, and both shapes.
        """
        state = self.state
        if start.state is not None:
            state = from_arrays(to_arrays(start.state), state, "the start")
        try:
            self._set(base.masked(state, start.masks))
        except ValueError as error:
            raise ConfigError([f"the start: {error}"]) from error
        if start.replay is not None:
            self.set_replay(start.replay, "the replay of the start")

    def learn_from(self, block: Block) -> None:
        """Store a block's transitions and count its frames into the normaliser, once.

        Raises ValueError for environments before this learner's first one, and otherwise as ``make_room``.
        """
        envs = block.env_index - self._first_env
        if envs.min() < 0:
            raise ValueError(
                f"a block of environment {block.env_index.min()}; allowed: {self._first_env} and more"
            )
        self.make_room(range(int(block.env_index.max()) + 1))
        rows = {
            "observation": block.observation,
            "action": self._in_unit_box(block.action),
            "reward": block.reward,
            "terminated": block.terminated,
            "final_row": block.episodes.row,
            "final_observation": block.episodes.final_observation,
        }
        if self._dynamic:
            # What acted at random meant what it did.
            random = block.extras[POLICY_VERSION] <= self.random_version
            random = random.reshape(*random.shape, *[1] * (block.action.ndim - 2))
            mean = self._in_unit_box(block.extras[MEAN_ACTION])
            rows[MEAN_ACTION] = np.where(random, rows["action"], mean)
        # The environments of a worker that was replaced count from zero again.
        continues = bool((self._next_step[envs] == block.first_step).all())
        self._next_step[envs] = block.first_step + len(block.reward)
        self.replay.add(envs, rows, continues)
        seen = block.observation[:-1].reshape(len(block), -1)
        self.state = self.state.replace(
            normalizer=self.state.normalizer.update(seen), env_steps=np.int64(self.env_steps + len(block))
        )
        every = self.config.replay.check_every
        if self._dynamic and self.env_steps // every > (self.env_steps - len(block)) // every:
            self._check_distance()

    def _in_unit_box(self, action: np.ndarray) -> np.ndarray:
        return ((action - self._centre) / self._half_width).astype(np.float32)

    def _check_distance(self) -> None:
        """Drop the oldest transitions if the policy that acts has left behind the one they are of."""
        config = self.config.replay
        assert config.minimum is not None
        observation, stored = self.replay.oldest(BATCHES * self.config.algorithm.batch_size)
        mean = np.asarray(self.algorithm.mean_action(self.acting, observation))
        self._distance = distance(mean, stored)
        if count := excess(len(self.replay), self._distance, config.minimum, config.max_distance):
            self.replay.shrink(count)
            self._drops += 1

    def capacity(self) -> dict[str, Any]:
        """Of a replay of dynamic capacity, for metrics: its size, the last check's distance, its drops."""
        if not self._dynamic:
            return {}
        last = None if math.isnan(self._distance) else self._distance
        return {"replay_size": len(self.replay), "policy_distance": last, "replay_drops": self._drops}

    def make_room(self, envs: range) -> None:
        """Also learn from environments up to the last of these, which came with workers that were added.

        Raises ConfigError where the replay would not hold a block of each, and stays as it is then.
        """
        num_envs = envs.stop - self._first_env
        if (more := num_envs - self.replay.num_envs) <= 0:
            return
        capacity, least = self.replay.capacity, num_envs * self.config.collect.block_length
        if capacity < least:
            allowed = f"{num_envs} environments x block_length = {least} and more"
            raise ConfigError([f"replay.capacity is {capacity}; allowed: {allowed}"])
        self.replay = self.replay.resized(num_envs)
        self._next_step = np.pad(self._next_step, (0, more), constant_values=-1)

    def due(self) -> int:
        """Updates that the ratio asks for and that were not dispatched yet."""
        return max(0, updates_due(self.config, self.env_steps) - self.updates)

    def update(self, count: int) -> None:
        """Dispatch ``count`` updates, each from a batch of its own."""
        progress = min(1.0, self.updates / max(1, updates_due(self.config, self.config.env_steps)))
        pace = np.float32(1 - (1 - self.config.final_learning_rate) * progress)
        batches = self._batches(self.updates, count)
        self.state, self.acting, self.metrics = base.learn(
            self.algorithm, self.state, batches, pace, self.pruned
        )
        self.updates += count

    def _batches(self, first: int, count: int) -> Batch:
        of = self.config.algorithm
        window = of.n_step, of.n_step_delay, of.observations_between
        return self.replay.batches(self.config.seed, first, count, of.batch_size, *window)

    def samples(self, batches: int) -> dict[str, np.ndarray]:
        """Batches for saliency, (batches, batch, ...) raw: a function of the seed and of what is held."""
        # Numbers that no update of the run has, so that they are not what it learned from last.
        found = vars(self._batches(2**62, batches)).items()
        return {name: np.asarray(value) for name, value in found if value is not None}

    def get_state(self) -> dict[str, np.ndarray]:
        """Everything that the continuation depends on, as named arrays."""
        replay = {f"replay/{name}": value for name, value in self.replay.get_state().items()}
        # Of the last update's normaliser, which has seen more since.
        acting = {f"acting/{name}": np.asarray(value) for name, value in self.acting.items()}
        checks = {"distance": np.array(self._distance), "drops": np.array(self._drops)}
        own = {"next_step": self._next_step.copy()} | (checks if self._dynamic else {})
        return {**to_arrays(self.state), **acting, **replay, **own}

    def set_state(self, arrays: Mapping[str, np.ndarray], where: str) -> None:
        """Go on from ``get_state``'s result. Raises ConfigError, naming ``where``, if it does not fit."""
        self._set(from_arrays(arrays, self.state, where))
        self.acting = {name: jax.numpy.array(arrays[f"acting/{name}"].copy()) for name in self.acting}
        self.make_room(range(self._first_env + len(arrays["next_step"])))
        self.set_replay(arrays, where)
        self._next_step[:] = arrays["next_step"]
        if self._dynamic:
            self._distance, self._drops = float(arrays["distance"]), int(arrays["drops"])

    def set_replay(self, arrays: Mapping[str, np.ndarray], where: str) -> None:
        """Hold the transitions among ``get_state``'s arrays; what is collected next does not continue them.

        Raises ConfigError, naming ``where``, if they do not fit.
        """
        try:
            self.replay.set_state(below(arrays, "replay/"))
        except (KeyError, ValueError) as error:
            raise ConfigError([f"{where}: the replay does not fit: {error}"]) from error

    def check_masks(self) -> None:
        """Raises AssertionError unless every pruned weight, target, average and moment is exactly zero."""
        now, zeroed = to_arrays(self.state), to_arrays(base.masked(self.state))
        if wrong := [name for name in now if not np.array_equal(now[name], zeroed[name], equal_nan=True)]:
            raise AssertionError(f"pruned entries of {', '.join(wrong)} are not zero")


def as_numpy(parameters: Mapping[str, jax.Array]) -> dict[str, np.ndarray]:
    """Parameters for ``BlockSource.publish``; waits for the update that gives them."""
    return {name: np.asarray(value) for name, value in parameters.items()}
