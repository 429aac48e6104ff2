"""A group of environments that step together, as env workers and the serial collector run it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fastcollect.envs.base import BatchedEnv, EnvSpec, EnvStepError, State, StepBuffers
from fastcollect.envs.registry import EnvConfig
from fastcollect.memory.board import WeightsBoard
from fastcollect.memory.ring import POISON, Ring, RingConfig, RingIndex
from fastcollect.memory.tokens import TokenChannel
from fastcollect.policies.base import POLICY_VERSION, Policy, PolicyConfig
from fastcollect.support import noise as noise_streams
from fastcollect.support.errors import ConfigError
from fastcollect.support.named import below


class ActionError(EnvStepError, ValueError):
    """The policy gave an action that is not one; the text names the value."""


@dataclass(frozen=True, kw_only=True)
class EnvWorkerConfig:
    """What an env worker has to know, or the serial collector in place of one.

    noise: the kind of noise of the policy. first_env: the global index of the first environment. life: how
    often these environments were started before; a replacement must not repeat a dead worker's episodes.
    check: poison blocks before they are written. inline: infer here (M = 0).
    Of a process alone: ident, its number. model: the model worker to ask. waiting: groups that do not begin
    before a block is given back to them (those of a restored worker, or of a replacement whose predecessor
    published their block of the round).
    """

    env: EnvConfig
    policy: PolicyConfig
    ring: RingConfig
    noise: str | None
    first_env: int
    seed: int
    life: int
    check: bool
    inline: bool
    tokens: TokenChannel
    ident: int = 0
    model: int = 0
    waiting: Sequence[int] = ()


class Group:
    """Writes transitions of one batched environment into its ring, block after block.

    The life of a step: a policy fills the ``slot``, ``step`` does the rest. When ``complete``, the caller
    publishes block ``index.written``, and ``open_block`` starts the next one once ``index.can_write``.
    """

    def __init__(
        self, config: EnvWorkerConfig, env: BatchedEnv, ring: Ring, number: int, first_env: int
    ) -> None:
        self.env, self.number, self.first_env = env, number, first_env
        self.index, self.first_step, self.t = RingIndex(ring.config.capacity), 0, 0
        self._ring, self._check, self._length = ring, config.check, ring.config.length
        self._blocks, self._raw, self._noise = ring.blocks[number], ring.raw[number], ring.noise[number]
        self._fill_noise = noise_streams.FILL[config.noise] if config.noise else None
        # A second life of the same environments draws other noise, too.
        seed = config.seed + (config.life << 32)
        self._starts = noise_streams.stream_starts(seed, np.arange(first_env, first_env + env.num_envs))
        self._final_observation = StepBuffers.allocate(env.spec, env.num_envs).final_observation
        self._return, self._steps = np.zeros(env.num_envs, np.float64), np.zeros(env.num_envs, np.int64)
        self._success_any = np.zeros(env.num_envs, np.bool_)
        self._success_first = np.full(env.num_envs, -1, np.int64)
        self._begin_block(0)
        env.reset(self._block["observation"][0])

    def slot(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """(observation, noise, action, extras) of the current step; a policy reads two, writes two."""
        t, block = self.t, self._block
        extras = {name: array[t] for name, array in self._extras.items()}
        return block["observation"][t], self._noise[t], block["action"][t], extras

    @property
    def complete(self) -> bool:
        """Whether the current block is full."""
        return self.t == self._length

    def step(self) -> None:
        """Step the environments with the actions in the current slot. Raises ActionError, EnvStepError."""
        t, block = self.t, self._block
        action = block["action"][t]
        self._check_action(action)
        out = StepBuffers(
            block["observation"][t + 1],
            block["reward"][t],
            block["terminated"][t],
            block["truncated"][t],
            self._final_observation,
            block["success"][t],
        )
        self.env.step(action, out)
        self._track(t, out)
        self.t = t + 1
        self._ring.rows[self.number] += self.env.num_envs

    def publish(self) -> int:
        """Hand the full block over; returns its number."""
        number = self.index.written
        self._block["header"][:] = (number, self.first_step, self._ends, 0)
        self.index = self.index.wrote()
        self._ring.published[self.number] = self.index.written
        self.first_step += self._length
        return number

    def open_block(self) -> None:
        """Begin the next block with the last observation of the previous one."""
        last_observation = self._block["observation"][-1].copy()
        self._begin_block(self.index.position(self.index.written))
        self._block["observation"][0] = last_observation

    def get_state(self) -> State:
        """What the continuation depends on, after ``publish`` and before ``open_block``; n environments.

        first_step () int64: of the next block. observation (n, ...): its first one. episode_return (n,)
        float64, episode_steps (n,) int64, success_any (n,) bool, success_first (n,) int64: of the running
        episodes. env/NAME: the environment's own. Raises StateUnsupportedError where it has none.
        """
        held = {name: array.copy() for name, array in self._held().items()}
        return held | {f"env/{name}": np.asarray(value) for name, value in self.env.get_state().items()}

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from there, the last block not yet freed. Raises ValueError naming all arrays that differ."""
        problems = [
            f"{name} is {_shape_of(state.get(name))} in the saved state, {_shape_of(array)} here"
            for name, array in self._held().items()
            if _shape_of(state.get(name)) != _shape_of(array)
        ]
        if problems:
            raise ValueError("; ".join(problems))
        self.first_step = int(state["first_step"])
        written = self.first_step // self._length
        self.index = RingIndex(self.index.capacity, written, written - 1)
        self._bind(self.index.position(written - 1), self._length)
        for name, array in self._held().items():
            array[...] = state[name]
        self.env.set_state(below(state, "env/"))

    def _held(self) -> dict[str, np.ndarray]:
        return {
            "first_step": np.array(self.first_step),
            "observation": self._block["observation"][self.t],
            "episode_return": self._return,
            "episode_steps": self._steps,
            "success_any": self._success_any,
            "success_first": self._success_first,
        }

    def _bind(self, position: int, t: int) -> None:
        self._block: dict[str, np.ndarray] = self._blocks[position]
        self.t = t
        self._extras = below(self._block, "extra/")

    def _begin_block(self, position: int) -> None:
        self._bind(position, 0)
        self._ends = 0
        if self._check:
            self._raw[position][:] = POISON
        if not self.env.spec.has_success:
            self._block["success"][:] = False
        if self._fill_noise:
            self._fill_noise(self._starts, self.first_step, self._noise)

    def _check_action(self, action: np.ndarray) -> None:
        choices = self.env.spec.action.num_actions
        # One comparison for both ends: a negative number is a huge unsigned one.
        good = np.isfinite(action) if choices is None else action.view(f"u{action.dtype.itemsize}") < choices
        if not good.all():
            row = int(np.argwhere(~good)[0][0])
            allowed = "finite numbers" if choices is None else f"an integer from 0 to {choices - 1}"
            raise ActionError(row, f"the policy gave the action {action[row]}; allowed: {allowed}")

    def _track(self, t: int, out: StepBuffers) -> None:
        self._return += out.reward
        self._steps += 1
        if self.env.spec.has_success:
            fresh = out.success & ~self._success_any
            if fresh.any():
                self._success_first[fresh] = self._steps[fresh] - 1
                self._success_any |= fresh
        done = out.terminated | out.truncated
        if done.any():
            self._end_episodes(t, np.flatnonzero(done), out)

    def _end_episodes(self, t: int, ended: np.ndarray, out: StepBuffers) -> None:
        block = self._block
        rows = slice(self._ends, self._ends + len(ended))
        block["end_row"][rows] = t * self.env.num_envs + ended
        block["end_return"][rows] = self._return[ended]
        block["end_length"][rows] = self._steps[ended]
        block["end_success_any"][rows] = self._success_any[ended]
        block["end_success_last"][rows] = out.success[ended]
        block["end_success_first"][rows] = self._success_first[ended]
        block["end_observation"][rows] = self._final_observation[ended]
        self._ends = rows.stop
        self._return[ended] = self._steps[ended] = self._success_any[ended] = 0
        self._success_first[ended] = -1


def _shape_of(array: np.ndarray | None) -> str:
    return "missing" if array is None else f"{array.dtype} of shape {array.shape}"


def build_policy(config: PolicyConfig, spec: EnvSpec, *, batched: bool) -> Policy:
    """What ``config.build`` returns. Raises ConfigError that names the policy where that raises."""
    try:
        return config.build(spec, batched=batched)
    except (ImportError, ValueError, TypeError) as error:
        raise ConfigError([f"policy {config.name!r}: {error}"]) from error


class Inference:
    """A policy and the board that its weights come from."""

    def __init__(self, policy: Policy, board: WeightsBoard) -> None:
        self._policy, self._board, self._version = policy, board, 0

    def refresh(self) -> int:
        """Let the policy load newer weights, if there are any; returns the version in use."""
        if self._board.version != self._version:
            self._version, parameters = self._board.read()
            self._policy.load(parameters)
        return self._version

    def act(self, group: Group) -> None:
        """Fill the current slot of a group in this process."""
        version = self.refresh()
        observation, noise, action, extras = group.slot()
        if POLICY_VERSION in extras:
            extras.pop(POLICY_VERSION)[...] = version
        self._policy.act(observation, noise, action, extras)
