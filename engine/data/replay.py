"""Replay: preallocated storage of raw transitions, one ring of steps for each environment.

Keeping an environment's steps next to each other in time makes n-step returns a matter of indices. What
decides a batch (which rows, how far each reaches, whether it bootstraps) is drawn here in NumPy from
counters alone; the wide arrays lie on the host or on the device and are only gathered from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from engine.algorithms.sac import Batch

WIDE = ("observation", "action", "next_observation")


@dataclass(frozen=True)
class Draw:
    """Which transitions make up K batches; every array is (K, batch).

    row: where observation and action lie. last_row: where the next observation lies, n - 1 steps on or where
    the episode ended. reward: float32, discounted and summed. bootstrap: float32, see Batch.
    """

    row: np.ndarray
    last_row: np.ndarray
    reward: np.ndarray
    bootstrap: np.ndarray


class HostStorage:
    """The wide arrays in the host's memory; batches are gathered by NumPy and sent."""

    def __init__(self, rows: int, widths: Mapping[str, int]) -> None:
        self._arrays = {name: np.zeros((rows, width), np.float32) for name, width in widths.items()}

    def write(self, rows: np.ndarray, values: Mapping[str, np.ndarray]) -> None:
        """Overwrite these rows."""
        for name, array in self._arrays.items():
            array[rows] = values[name]

    def gather(self, draw: Draw) -> Batch:
        """(K, batch, ...) arrays of their own."""
        return Batch(
            observation=self._arrays["observation"][draw.row],
            action=self._arrays["action"][draw.row],
            reward=draw.reward,
            next_observation=self._arrays["next_observation"][draw.last_row],
            bootstrap=draw.bootstrap,
        )

    def read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Copies of these rows."""
        return {name: array[rows] for name, array in self._arrays.items()}


class DeviceStorage:
    """The wide arrays in the device's memory; only indices, rewards and new rows travel."""

    def __init__(self, rows: int, widths: Mapping[str, int]) -> None:
        self._arrays = {name: jnp.zeros((rows, width), jnp.float32) for name, width in widths.items()}

    def write(self, rows: np.ndarray, values: Mapping[str, np.ndarray]) -> None:
        """Overwrite these rows, in place on the device."""
        fresh = {name: values[name].astype(np.float32) for name in self._arrays}
        self._arrays = _write(self._arrays, rows, fresh)

    def gather(self, draw: Draw) -> Batch:
        """(K, batch, ...) arrays on the device."""
        return _gather(self._arrays, draw.row, draw.last_row, draw.reward, draw.bootstrap)

    def read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Copies of these rows on the host."""
        return {name: np.array(array[rows]) for name, array in self._arrays.items()}


@partial(jax.jit, donate_argnums=0)
def _write(
    arrays: dict[str, jax.Array], rows: jax.Array, fresh: dict[str, jax.Array]
) -> dict[str, jax.Array]:
    return {name: array.at[rows].set(fresh[name], unique_indices=True) for name, array in arrays.items()}


@jax.jit
def _gather(
    arrays: dict[str, jax.Array], row: jax.Array, last_row: jax.Array, reward: jax.Array, bootstrap: jax.Array
) -> Batch:
    return Batch(
        observation=arrays["observation"][row],
        action=arrays["action"][row],
        reward=reward,
        next_observation=arrays["next_observation"][last_row],
        bootstrap=bootstrap,
    )


STORAGES = {"host": HostStorage, "device": DeviceStorage}


class Replay:
    """Raw transitions of ``num_envs`` environments: the oldest steps of each give way to new ones.

    capacity: transitions in all, rounded down to as many of each environment.

    Row e * steps + t % steps holds step t of environment e. ``added`` counts what ever came in.
    """

    def __init__(self, capacity: int, num_envs: int, observations: int, actions: int, storage: str) -> None:
        self.steps = capacity // num_envs
        self.num_envs = num_envs
        self.written = np.zeros(num_envs, np.int64)  # steps of each environment that ever came in
        self._ended = np.zeros(self.steps * num_envs, np.bool_)  # no later step continues this one
        self._terminated = np.zeros(self.steps * num_envs, np.bool_)
        self._reward = np.zeros(self.steps * num_envs, np.float32)
        widths = {"observation": observations, "action": actions, "next_observation": observations}
        self._widths = widths
        self._storage = STORAGES[storage](self.steps * num_envs, widths)

    @property
    def added(self) -> int:
        """Transitions that ever came in."""
        return int(self.written.sum())

    def __len__(self) -> int:
        """Transitions held."""
        return int(np.minimum(self.written, self.steps).sum())

    def add(self, env_index: np.ndarray, rows: Mapping[str, np.ndarray], continues: bool) -> None:
        """Take B consecutive steps of b environments.

        env_index: (b,). rows: "observation", "action", "next_observation", (B, b, ...) each, and "reward",
        "terminated", "truncated", (B, b). continues: False where step 0 does not follow the last step that
        came in of these environments, so that no sum of rewards crosses the gap.
        """
        count = rows["reward"].shape[0]
        if count > self.steps:
            raise ValueError(f"{count} steps do not fit into {self.steps} of each environment")
        first = self.written[env_index]
        if not continues and first.any():
            self._ended[env_index * self.steps + (first - 1) % self.steps] = True
        at = env_index * self.steps + (first + np.arange(count)[:, None]) % self.steps
        flat = at.ravel()
        self._reward[at] = rows["reward"]
        self._terminated[at] = rows["terminated"]
        self._ended[at] = rows["terminated"] | rows["truncated"]
        self._storage.write(flat, {name: rows[name].reshape(flat.size, -1) for name in WIDE})
        self.written[env_index] += count

    def draw(self, seed: int, update: int, batch_size: int, discount: float, n_step: int) -> Draw:
        """The batch of one update, (batch,): a function of seed, update and what is held, nothing else.

        Uniform over the transitions held, with replacement. A sum of rewards ends early at an episode's
        end and at the newest step, and then bootstraps from where it ended.
        """
        generator = np.random.Generator(np.random.Philox(key=[seed, update]))
        held = np.minimum(self.written, self.steps)
        ends = np.cumsum(held)
        if not ends[-1]:
            raise ValueError("nothing to draw from")
        chosen = generator.integers(ends[-1], size=batch_size)
        env = np.searchsorted(ends, chosen, "right")
        age = chosen - (ends[env] - held[env])  # 0 is the oldest held
        step = self.written[env] - held[env] + age
        base = env * self.steps
        row = last = base + step % self.steps
        reward = self._reward[row].astype(np.float64)
        bootstrap = np.full(batch_size, discount)
        going = ~self._ended[row]
        for k in range(1, n_step):
            going &= age + k < held[env]
            following = base + (step + k) % self.steps
            last = np.where(going, following, last)
            reward += np.where(going, discount**k * self._reward[following].astype(np.float64), 0)
            bootstrap = np.where(going, discount ** (k + 1), bootstrap)
            going &= ~self._ended[following]
        bootstrap = np.where(self._terminated[last], 0, bootstrap)
        return Draw(row, last, reward.astype(np.float32), bootstrap.astype(np.float32))

    def batches(
        self, seed: int, first: int, count: int, batch_size: int, discount: float, n_step: int
    ) -> Batch:
        """The batches of ``count`` updates from number ``first`` on, (count, batch, ...)."""
        draws = [self.draw(seed, first + k, batch_size, discount, n_step) for k in range(count)]
        fields = ("row", "last_row", "reward", "bootstrap")
        return self._storage.gather(Draw(*(np.stack([getattr(d, f) for d in draws]) for f in fields)))

    def get_state(self) -> dict[str, np.ndarray]:
        """What is held, as named arrays whose size follows what is held, not the capacity."""
        rows = self._held_rows()
        return {
            "written": self.written.copy(),
            "reward": self._reward[rows],
            "terminated": self._terminated[rows],
            "ended": self._ended[rows],
            **self._storage.read(rows),
        }

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Hold what ``get_state`` returned, in a replay of the same shape. Raises ValueError otherwise."""
        if state["written"].shape != self.written.shape:
            raise ValueError(
                f"a replay of {state['written'].size} environments does not fit one of {self.num_envs}"
            )
        places = int(np.minimum(state["written"], self.steps).sum())
        if places != len(state["reward"]):
            raise ValueError(f"{len(state['reward'])} saved transitions do not fit {places} places")
        for name, width in self._widths.items():
            if state[name].shape != (places, width):
                raise ValueError(f"{name} of shape {state[name].shape} does not fit {(places, width)}")
        self.written[:] = state["written"]
        rows = self._held_rows()
        self._reward[rows] = state["reward"]
        self._terminated[rows] = state["terminated"]
        self._ended[rows] = state["ended"]
        self._storage.write(rows, {name: state[name] for name in WIDE})

    def _held_rows(self) -> np.ndarray:
        held = np.minimum(self.written, self.steps)
        return np.concatenate([e * self.steps + np.arange(n) for e, n in enumerate(held)])
