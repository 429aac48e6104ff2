"""Replay: preallocated storage of raw transitions, one ring of steps for each environment.

Steps of an environment lie next to each other in time, so that an observation is stored once: it is also the
next observation of the step before it. Only where an episode ended, or where steps are missing, the true
last observation stands in a table of its own. What decides a batch (which rows, how far each reaches,
whether it bootstraps) is drawn here in NumPy from counters alone; the wide arrays are only gathered from.
"""

import bisect
from collections.abc import Mapping

import jax
import numpy as np

from engine.data.storage import STORAGES, Draw
from engine.data.transition import Batch


class Replay:
    """Raw transitions of ``num_envs`` environments: the oldest steps of each give way to new ones.

    capacity: transitions in all, rounded down to as many of each environment. mean_actions: also keep the
    action that the policy would have taken without noise.
    """

    def __init__(
        self,
        capacity: int,
        num_envs: int,
        observations: int,
        actions: int,
        storage: str,
        mean_actions: bool = False,
    ) -> None:
        self.capacity, self.num_envs = capacity, num_envs
        self.steps = capacity // num_envs
        # The newest step's next observation needs a place too. Row e * slots + t % slots has step t of env e.
        self.slots = self.steps + 1
        self.written = np.zeros(num_envs, np.int64)  # steps of each environment that ever came in
        self._first = np.zeros(num_envs, np.int64)  # the first of them that this replay kept
        self._choices = observations, actions, storage, mean_actions
        self._widths = {"observation": observations, "action": actions}
        if mean_actions:
            self._widths["mean_action"] = actions
        rows = self.slots * num_envs
        self._terminated = np.zeros(rows, np.bool_)
        self._reward = np.zeros(rows, np.float32)
        self._final = np.full(rows, -1, np.int32)  # place among the final observations; -1: the step goes on
        self._places, self._unused = 0, list[int]()  # how many places there are, and those given back
        self._storage = STORAGES[storage](rows, self._widths)

    @property
    def added(self) -> int:
        """Transitions that ever came in."""
        return int(self.written.sum())

    def __len__(self) -> int:
        """Transitions held."""
        return int(self._held().sum())

    def add(self, env_index: np.ndarray, rows: Mapping[str, np.ndarray], continues: bool) -> None:
        """Take B consecutive steps of b environments.

        env_index: (b,). rows: "observation" (B + 1, b, o), "action" and, if it is kept, "mean_action"
        (B, b, ...), "reward" and "terminated" (B, b); "final_row" (k,), flat rows t * b + i of the steps that
        ended an episode, by termination or truncation, and "final_observation" (k, o), what these led to.
        continues: False where step 0 does not follow the last step that came in of these environments, so
        that no sum of rewards crosses the gap.
        Raises ValueError for more steps than an environment's ring has.
        """
        count, envs = rows["reward"].shape
        if count > self.steps:
            raise ValueError(f"{count} steps do not fit into {self.steps} of each environment")
        first = self.written[env_index]
        base = env_index * self.slots
        if not continues:
            self._end_before(base, first)
        at = base + (first + np.arange(count + 1)[:, None]) % self.slots
        overwritten = self._final[at]
        self._unused += overwritten[overwritten >= 0].tolist()
        self._final[at] = -1
        flat = at.ravel()
        for name in self._widths:
            of = flat if name == "observation" else flat[:-envs]
            self._storage.write(name, of, rows[name].reshape(of.size, -1))
        self._reward[at[:-1]] = rows["reward"]
        self._terminated[at[:-1]] = rows["terminated"]
        self._keep_final(flat[rows["final_row"]], rows["final_observation"])
        self.written[env_index] += count

    def _end_before(self, base: np.ndarray, first: np.ndarray) -> None:
        """Let what comes next not continue the newest steps, whose next observations are set aside."""
        base, first = base[first > 0], first[first > 0]
        newest, following = base + (first - 1) % self.slots, base + first % self.slots
        going = self._final[newest] < 0
        self._keep_final(newest[going], self._storage.read("observation", following[going]))

    def _keep_final(self, rows: np.ndarray, observations: np.ndarray) -> None:
        more = max(0, len(rows) - len(self._unused))
        self._unused += range(self._places, self._places + more)
        self._places += more
        rest = len(self._unused) - len(rows)
        places = np.array(self._unused[rest:], np.int64)
        del self._unused[rest:]
        self._final[rows] = places
        self._storage.write("final", places, observations.reshape(-1, self._widths["observation"]))

    def draw(
        self, seed: int, update: int, batch_size: int, n_step: int, delay: int = 0, between: bool = False
    ) -> Draw:
        """The batch of one update, (batch,): a function of seed, update and what is held, nothing else.

        Uniform over the transitions held, with replacement. A sum of rewards ends early at an episode's
        end and at the newest step, and then bootstraps from where it ended. delay: updates of a smaller
        number take one step, in arrays of the same shapes. between: also say where the observations between
        lie. Raises ValueError if nothing is held.
        """
        generator = np.random.Generator(np.random.Philox(key=[seed, update]))
        held = self._held()
        ends = np.cumsum(held)
        if not ends[-1]:
            raise ValueError("nothing to draw from")
        chosen = generator.integers(ends[-1], size=batch_size)
        env = np.searchsorted(ends, chosen, "right")
        age = chosen - (ends[env] - held[env])  # 0 is the oldest held
        step = self.written[env] - held[env] + age
        base = env * self.slots
        row = last = base + step % self.slots
        rewards = np.zeros((batch_size, n_step), np.float32)
        rewards[:, 0] = self._reward[row]
        steps = np.ones(batch_size, np.int32)
        reached = [row]
        going = self._final[row] < 0
        for k in range(1, n_step if update >= delay else 1):
            going &= age + k < held[env]
            following = base + (step + k) % self.slots
            last = np.where(going, following, last)
            reached.append(last)
            rewards[:, k] = np.where(going, self._reward[following], 0)
            steps += going
            going &= self._final[following] < 0
        next_row = base + (step + steps) % self.slots
        reached += [last] * (n_step - len(reached))
        others = np.stack(reached, -1)[:, 1:] if between else None
        return Draw(row, next_row, self._final[last], rewards, steps, self._terminated[last], others)

    def batches(
        self,
        seed: int,
        first: int,
        count: int,
        batch_size: int,
        n_step: int,
        delay: int = 0,
        between: bool = False,
    ) -> Batch:
        """The batches of ``count`` updates from number ``first`` on, (count, batch, ...); see ``draw``."""
        draws = [self.draw(seed, first + k, batch_size, n_step, delay, between) for k in range(count)]
        return self._storage.gather(jax.tree.map(lambda *each: np.stack(each), *draws))

    def oldest(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Observations (c, o) and mean actions (c, a) of the ``count`` oldest transitions, or of all held.

        A transition is as old as there are newer steps of its environment. Of equally old ones those of the
        first environments come first.
        """
        held = self._held()
        share = _oldest(held, count)
        rows = self._rows(self.written - held + share, share)
        return self._storage.read("observation", rows), self._storage.read("mean_action", rows)

    def shrink(self, count: int) -> None:
        """Drop the ``count`` oldest transitions, as ``oldest`` counts them; room for as many stays."""
        held = self._held()
        self._first = self.written - held + _oldest(held, count)

    def resized(self, num_envs: int) -> "Replay":
        """The same capacity for more environments, with the newest steps of those that were there."""
        wider = Replay(self.capacity, num_envs, *self._choices)
        wider.set_state(self.get_state())
        return wider

    def get_state(self) -> dict[str, np.ndarray]:
        """What is held, as named arrays whose size follows what is held, not the capacity.

        Of each environment in turn from its oldest step to its newest: "observation", "action", "reward",
        "terminated", "ended", and "mean_action" if it is kept. "written", "held" and "newest" (what follows
        the newest steps) have a row for each environment; "final_observation" has one for each of "ended".
        """
        held = self._held()
        rows = self._rows(self.written, held)
        newest = np.arange(self.num_envs) * self.slots + self.written % self.slots
        places = self._final[rows]
        ended = places >= 0
        return {
            "written": self.written.copy(),
            "held": held,
            "reward": self._reward[rows],
            "terminated": self._terminated[rows],
            "ended": ended,
            **{name: self._storage.read(name, rows) for name in self._widths},
            "newest": self._storage.read("observation", newest),
            "final_observation": self._storage.read("final", places[ended]),
        }

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Hold what ``get_state`` returned, or of it the newest steps that there is room for.

        For a replay that is still empty and has at least as many environments. Raises ValueError for arrays
        that do not fit each other, or this replay.
        """
        held = self._check_state(state)
        envs = len(held)
        kept = np.minimum(held, self.steps)
        self.written[:envs] = state["written"]
        self._first[:envs] = state["written"] - kept
        chosen = _last(kept, np.cumsum(held))
        rows = self._rows(state["written"], kept)
        self._reward[rows] = state["reward"][chosen]
        self._terminated[rows] = state["terminated"][chosen]
        for name in self._widths:
            self._storage.write(name, rows, state[name][chosen])
        newest = np.arange(envs) * self.slots + state["written"] % self.slots
        self._storage.write("observation", newest, state["newest"])
        ended, place = state["ended"][chosen], np.cumsum(state["ended"]) - 1
        self._keep_final(rows[ended], state["final_observation"][place[chosen][ended]])

    def _check_state(self, state: Mapping[str, np.ndarray]) -> np.ndarray:
        """How many steps each environment of a saved state holds. Raises ValueError as ``set_state`` does."""
        written, total = state["written"], len(state["reward"])
        if self.added or written.ndim != 1 or len(written) > self.num_envs:
            raise ValueError(
                f"a replay of {written.size} environments does not fit an empty one of {self.num_envs}"
            )
        if missing := self._widths.keys() - state.keys():
            raise ValueError(f"{', '.join(sorted(missing))} is missing")
        observations = self._widths["observation"]
        expected: dict[str, tuple[int, ...]] = {
            **dict.fromkeys(("reward", "terminated", "ended"), (total,)),
            **{name: (total, width) for name, width in self._widths.items()},
            "newest": (len(written), observations),
            "final_observation": (int(np.count_nonzero(state["ended"])), observations),
        }
        wrong = [
            f"{name} of shape {state[name].shape} does not fit {shape}"
            for name, shape in expected.items()
            if state[name].shape != shape
        ]
        if wrong:
            raise ValueError("; ".join(wrong))
        held = state["held"]
        if held.shape != written.shape or ((held < 0) | (held > written)).any() or held.sum() != total:
            raise ValueError(f"{total} saved transitions do not fit environments of {written.tolist()} steps")
        return held

    def _held(self) -> np.ndarray:
        return np.minimum(self.written - self._first, self.steps)

    def _rows(self, written: np.ndarray, count: np.ndarray) -> np.ndarray:
        """Where each environment's newest ``count`` of ``written`` steps lie, from the oldest of them on."""
        return np.repeat(np.arange(len(count)) * self.slots, count) + _last(count, written) % self.slots


def _oldest(held: np.ndarray, count: int) -> np.ndarray:
    """How many of the ``count`` oldest transitions are each environment's, of those that it holds.

    The environments with the most are levelled first, so that all that hold as many lose as many; what is
    left over comes from the first ones.
    """
    count = min(count, int(held.sum()))
    levels = range(int(held.max()) + 1)
    level = bisect.bisect_left(levels, -count, key=lambda level: -int(np.maximum(held - level, 0).sum()))
    share = np.maximum(held - level, 0)
    share[np.flatnonzero(held >= level)[: count - int(share.sum())]] += 1
    return share


def _last(counts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Of each pair the ``count`` numbers before ``end``, one pair after the other."""
    return np.concatenate([np.arange(end - count, end) for count, end in zip(counts, ends, strict=True)])
