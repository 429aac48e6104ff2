"""Many MuJoCo simulation states that take turns in one MjData, and batches of environments made of them.

One MjData for each environment would push the others out of the processor's cache. A state is a few
hundred bytes, so copying it into a single MjData and back costs less than the cache misses it saves
(measured: 3 to 15 % of a step), and the results are the same to the bit.
"""

import abc
from collections.abc import Mapping
from itertools import pairwise

import mujoco
import numpy as np

from fastcollect.envs.base import EnvSpec, State, StepBuffers, check_action, restore_arrays
from fastcollect.envs.generators import generators_to_array, make_generators, restore_generators


class SimulationRows:
    """The simulation states of n environments, as the rows of one matrix.

    fields: names of MjData's arrays that decide, with the model, how a simulation goes on. That is
    ``qpos``, ``qvel``, ``qacc_warmstart`` and whatever the actions set; no model here has activations.
    matrix: (n, size) float64. columns[name]: (n, k) view of it. parts[i]: environment i's fields, in order,
    each a contiguous view.
    """

    def __init__(self, model: mujoco.MjModel, fields: tuple[str, ...], num_envs: int) -> None:
        self._fields = fields
        data = mujoco.MjData(model)
        bounds = np.cumsum([0, *(getattr(data, field).size for field in fields)])
        self.matrix = np.zeros((num_envs, bounds[-1]))
        spans = [slice(start, stop) for start, stop in pairwise(bounds)]
        self.columns = {field: self.matrix[:, span] for field, span in zip(fields, spans, strict=True)}
        self.parts = [tuple(row[span] for span in spans) for row in self.matrix]

    def live_views(self, data: mujoco.MjData) -> tuple[np.ndarray, ...]:
        """Flat views into ``data`` that match one of ``parts``; they follow the simulation."""
        return tuple(getattr(data, field).reshape(-1) for field in self._fields)

    def load(self, env_index: int, data: mujoco.MjData) -> None:
        """Copy environment ``env_index``'s state into ``data``."""
        for view, part in zip(self.live_views(data), self.parts[env_index], strict=True):
            view[...] = part

    def save(self, env_index: int, data: mujoco.MjData) -> None:
        """Copy ``data``'s state to environment ``env_index``."""
        for view, part in zip(self.live_views(data), self.parts[env_index], strict=True):
            part[...] = view


class SimulatedBatch(abc.ABC):
    """A ``BatchedEnv`` of n simulations, whose episodes end at the horizon, if nothing ends them before.

    A subclass says how episodes begin (``_begin``) and what a step does (``_advance``), and puts further
    arrays on which the continuation depends into ``_arrays``.
    """

    def __init__(
        self, model: mujoco.MjModel, fields: tuple[str, ...], seeds: np.ndarray, spec: EnvSpec
    ) -> None:
        assert spec.max_episode_steps is not None
        self.num_envs, self.spec, self._horizon = len(seeds), spec, spec.max_episode_steps
        self._model, self._data = model, mujoco.MjData(model)
        self._simulation = SimulationRows(model, fields, self.num_envs)
        self._generators = make_generators(seeds)
        self._elapsed = np.full(self.num_envs, -1, np.int64)
        self._arrays = {"simulation": self._simulation.matrix, "elapsed": self._elapsed}

    @abc.abstractmethod
    def _begin(self, rows: np.ndarray, observation: np.ndarray) -> None:
        """Start new episodes in ``rows``, (k,) integers, and write these rows of observation."""

    @abc.abstractmethod
    def _advance(self, action: np.ndarray, out: StepBuffers) -> None:
        """Simulate a step; write observations, rewards, successes, and terminations, which are False."""

    def reset(self, observation: np.ndarray) -> None:
        """Start a new episode everywhere; observation: (n, *observation_shape) float64, written."""
        self._begin(np.arange(self.num_envs), observation)
        self._elapsed.fill(0)

    def step(self, action: np.ndarray, out: StepBuffers) -> None:
        """action: (n, *action.shape) float32. See ``BatchedEnv.step``; ValueError for another shape."""
        self._require_episode()
        check_action(action, self.num_envs, self.spec.action)
        out.terminated[...] = False
        self._advance(action, out)
        self._elapsed += 1
        np.equal(self._elapsed, self._horizon, out=out.truncated)
        ended = np.flatnonzero(out.terminated | out.truncated)
        if ended.size:
            out.final_observation[ended] = out.observation[ended]
            self._begin(ended, out.observation)
            self._elapsed[ended] = 0

    def _require_episode(self) -> None:
        if self._elapsed[0] < 0:
            raise RuntimeError("no episode has begun: call reset or set_state first")

    def get_state(self) -> State:
        """See ``BatchedEnv.get_state``."""
        self._require_episode()
        state = {name: array.copy() for name, array in self._arrays.items()}
        return {**state, "generators": generators_to_array(self._generators)}

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        """See ``BatchedEnv.set_state``. Raises ValueError for a state of another batch."""
        restore_arrays(self._arrays, state)
        restore_generators(self._generators, state["generators"])

    def close(self) -> None:
        """Let go of the arrays; nothing else is held."""
        self._arrays.clear()


def without_cameras(path: str) -> mujoco.MjSpec:
    """A model's specification without cameras and lights, whose poses MuJoCo computes in every substep."""
    spec = mujoco.MjSpec.from_file(path)
    for element in [*spec.cameras, *spec.lights]:
        element.delete()
    return spec
