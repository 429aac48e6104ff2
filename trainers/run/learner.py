"""The learner: what it knows, how it learns from blocks, what it gives to the collector."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np

from engine.algorithms import sac
from engine.data.replay import Replay
from engine.normalizer import Moments
from fastcollect.envs.base import EnvSpec
from fastcollect.memory.block import Block
from fastcollect.support.errors import ConfigError
from trainers.config.training import TrainConfig
from trainers.run.snapshots import Snapshot, from_arrays, to_arrays

_RANDOM_LOG_STD = np.float32(np.log(0.87))
"""tanh of a normal with this spread is as near to uniform on [-1, 1] as a squashed normal comes."""


class Learner:
    """Actor, critics, normaliser and replay of one run, with the masks that its networks keep to.

    Updates are dispatched and not waited for; ``acting`` is what the newest of them gave.
    """

    def __init__(self, config: TrainConfig, spec: EnvSpec, masks: sac.Masks) -> None:
        self.config, self.masks = config, masks
        observations, actions = check_spec(config.env, spec)
        self.state = sac.init(config.algorithm, config.seed, observations, actions)
        self.moments = Moments.empty(observations)
        total = config.collect.n * config.collect.N
        storage = config.replay.storage or ("host" if jax.default_backend() == "cpu" else "device")
        self.replay = Replay(config.replay.capacity, total, observations, actions, storage)
        self.env_steps = self.updates = 0
        self.acting: sac.Parameters = {}
        self.metrics: dict[str, jax.Array] = {}
        low, high = np.asarray(spec.action.low, np.float64), np.asarray(spec.action.high, np.float64)
        self._centre, self._half_width = (low + high) / 2, (high - low) / 2
        self._next_step = np.full(total, -1, np.int64)  # the environments' own count of steps

    def start_from(self, snapshot: Snapshot) -> None:
        """Take over what a snapshot holds, with every pruned weight zero in all of its parts.

        Raises ConfigError naming every leaf of another shape, and both shapes.
        """
        snapshot = from_arrays(to_arrays(snapshot), self.state, "the start")
        self.state = sac.apply_masks(snapshot.state, self.masks)
        self.moments = snapshot.moments
        self.env_steps, self.updates = snapshot.env_steps, snapshot.updates
        self.refresh_acting()

    def refresh_acting(self) -> None:
        """Compute ``acting`` without an update."""
        mean, scale = self.moments.scaling(self.config.variance_floor)
        self.acting = jax.tree.map(jax.numpy.copy, sac.fold_normalizer(self.state.actor, mean, scale))

    def random_actor(self) -> dict[str, np.ndarray]:
        """Weights of an actor that ignores what it sees and acts at random."""
        weights = {name: np.zeros(leaf.shape, np.float32) for name, leaf in self.state.actor.items()}
        last = f"bias_{len(weights) // 2 - 1}"
        weights[last][weights[last].size // 2 :] = _RANDOM_LOG_STD
        return weights

    def learn_from(self, block: Block) -> None:
        """Store a block's transitions and count its frames into the normaliser, once."""
        rows = {
            "observation": block.observation[:-1],
            "action": ((block.action - self._centre) / self._half_width).astype(np.float32),
            "next_observation": block.next_observation,
            "reward": block.reward,
            "terminated": block.terminated,
            "truncated": block.truncated,
        }
        # The environments of a worker that was replaced count from zero again.
        continues = bool((self._next_step[block.env_index] == block.first_step).all())
        self._next_step[block.env_index] = block.first_step + len(block.reward)
        self.replay.add(block.env_index, rows, continues)
        self.moments = self.moments.update(rows["observation"].reshape(len(block), -1))
        self.env_steps += len(block)

    def due(self) -> int:
        """Updates that the ratio asks for and that were not dispatched yet."""
        return max(0, self._due_at(self.env_steps) - self.updates)

    def _due_at(self, env_steps: int) -> int:
        learned = env_steps - self.config.start_steps
        return int(learned * self.config.updates_per_step + 1e-9)

    def update(self, count: int) -> None:
        """Dispatch ``count`` updates, each from a batch of its own."""
        config = self.config.algorithm
        batches = self.replay.batches(
            self.config.seed, self.updates, count, config.batch_size, config.discount, config.n_step
        )
        mean, scale = self.moments.scaling(self.config.variance_floor)
        self.state, self.acting, self.metrics = sac.update_many(
            config, self.state, self.masks, batches, mean, scale, np.float32(self.pace())
        )
        self.updates += count

    def pace(self) -> float:
        """Share of the learning rates that the next dispatch learns with."""
        total = self._due_at(self.config.env_steps)
        return 1 - (1 - self.config.final_learning_rate) * min(1.0, self.updates / max(1, total))

    def snapshot(self) -> Snapshot:
        """What the learner is now, in arrays that later updates leave alone."""
        state = jax.tree.map(jax.numpy.copy, self.state)
        return Snapshot(state, self.moments, self.env_steps, self.updates)

    def samples(self, batches: int) -> dict[str, np.ndarray]:
        """Batches for saliency, (batches, batch, ...) raw: a function of the seed and of what is held."""
        config = self.config.algorithm
        # Numbers that no update of the run has, so that they are not what it learned from last.
        drawn = self.replay.batches(
            self.config.seed, 2**62, batches, config.batch_size, config.discount, config.n_step
        )
        return {name: np.asarray(value) for name, value in vars(drawn).items()}

    def get_state(self) -> dict[str, np.ndarray]:
        """Everything that the continuation depends on, as named arrays."""
        replay = {f"replay/{name}": value for name, value in self.replay.get_state().items()}
        # Of the last update's normaliser, which has seen more since.
        acting = {f"acting/{name}": np.asarray(value) for name, value in self.acting.items()}
        return {**to_arrays(self.snapshot()), **acting, **replay, "next_step": self._next_step.copy()}

    def set_state(self, arrays: Mapping[str, np.ndarray], where: str) -> None:
        """Go on from ``get_state``'s result. Raises ConfigError, naming ``where``, if it does not fit."""
        self.start_from(from_arrays(arrays, self.state, where))
        self.acting = {name: jax.numpy.array(arrays[f"acting/{name}"].copy()) for name in self.acting}
        self.set_replay(arrays, where)
        self._next_step[:] = arrays["next_step"]

    def set_replay(self, arrays: Mapping[str, np.ndarray], where: str) -> None:
        """Hold the transitions among ``get_state``'s arrays; what is collected next does not continue them.

        Raises ConfigError, naming ``where``, if they do not fit.
        """
        saved = {k.removeprefix("replay/"): v for k, v in arrays.items() if k.startswith("replay/")}
        try:
            self.replay.set_state(saved)
        except (KeyError, ValueError) as error:
            raise ConfigError([f"{where}: the replay does not fit: {error}"]) from error

    def check_masks(self) -> None:
        """Raises AssertionError unless every pruned weight, target and moment is exactly zero."""
        masked = sac.apply_masks(self.state, self.masks)
        for (path, now), expected in zip(
            jax.tree_util.tree_flatten_with_path(self.state)[0], jax.tree.leaves(masked), strict=True
        ):
            if not np.array_equal(np.asarray(now), np.asarray(expected), equal_nan=True):
                raise AssertionError(f"pruned entries of {jax.tree_util.keystr(path)} are not zero")


def check_spec(env: str, spec: EnvSpec) -> tuple[int, int]:
    """Sizes of an observation and an action. Raises ConfigError for what SAC cannot learn here."""
    action, problems = spec.action, []
    if action.discrete:
        problems.append(f"{env} has {action.num_actions} discrete actions; SAC here needs a box of them")
    elif not (np.isfinite(action.low).all() and np.isfinite(action.high).all()):
        problems.append(f"{env} has unbounded actions; SAC needs a bounded box")
    if len(spec.observation_shape) != 1:
        problems.append(f"{env} has observations of shape {spec.observation_shape}; SAC here needs vectors")
    if problems:
        raise ConfigError(problems)
    return spec.observation_shape[0], int(np.prod(action.shape))


def as_numpy(parameters: Mapping[str, jax.Array]) -> dict[str, np.ndarray]:
    """Parameters for ``Collector.publish``; waits for the update that gives them."""
    return {name: np.asarray(value) for name, value in parameters.items()}
