"""A small continuous environment whose every field encodes (environment, episode, step, last action).

Its episodes last ``horizon`` steps, some less; its state and a generator of its own can be saved. Variants
are what training must refuse.
"""

import os
from pathlib import Path

import numpy as np

from fastcollect.envs.base import ActionSpec, EnvSpec

LOW, HIGH = np.array([-2.0, -1.0], np.float32), np.array([2.0, 3.0], np.float32)
BOX = ActionSpec(shape=(2,), dtype=np.dtype(np.float32), low=LOW, high=HIGH)
CHOICE = ActionSpec(shape=(), dtype=np.dtype(np.int64), num_actions=3)
FREE = ActionSpec(shape=(2,), dtype=np.dtype(np.float32), low=np.full(2, -np.inf), high=np.full(2, np.inf))
OBSERVATIONS, ACTIONS = 6, 2


def spec(horizon, action=BOX, shape=(OBSERVATIONS,)):
    return EnvSpec(
        observation_shape=shape,
        observation_dtype=np.dtype(np.float32),
        observation_low=np.full(shape, -np.inf),
        observation_high=np.full(shape, np.inf),
        action=action,
        max_episode_steps=horizon,
        has_success=True,
    )


def code(seed):
    """A small number that tells environments apart, exact in float32."""
    return np.asarray(seed) % 99991


def episode_length(seed, episode, horizon):
    """horizon for two episodes of three, else 1 to horizon."""
    seed, episode = np.asarray(seed), np.asarray(episode)
    return np.where((code(seed) + episode) % 3 == 0, 1 + (code(seed) + episode) % horizon, horizon)


def reward(seed, episode, step, action):
    return code(seed) % 8 + episode * 0.5 + step * 2.0**-6 - 0.1 * np.square(action).sum(-1)


def success(seed, episode, step):
    return (code(seed) + np.asarray(episode) + np.asarray(step)) % 5 == 0


def trainer_pid():
    """The process that started this worker's launcher."""
    return int(Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()[1])


class TinyEnv:
    """observation = (code, episode, step, last action, a draw of its own generator).

    signal_file: a file of "num_envs step signal target", obeyed once: a batch of that many environments
    sends this signal at that step of its own to "trainer" or to "self".
    """

    action = BOX
    shape = (OBSERVATIONS,)

    def __init__(self, seeds, horizon=8, signal_file=None, scale=1.0):
        self.num_envs = len(seeds)
        self.spec = spec(horizon, self.action, self.shape)
        self._horizon, self._scale = horizon, scale
        self._seeds = np.asarray(seeds)
        self._episode = np.full(self.num_envs, -1)
        self._step = np.zeros(self.num_envs, np.int64)
        self._draws = self._seeds.astype(np.uint64)
        self._steps = np.zeros(1, np.int64)
        self._file = None if signal_file is None else Path(signal_file)

    def _observe(self, out, action):
        self._draws = self._draws * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)
        draw = (self._draws >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
        columns = [code(self._seeds), self._episode, self._step, *np.transpose(action), draw]
        out[...] = 0
        out.reshape(self.num_envs, -1)[:, : len(columns)] = np.stack(columns, 1)

    def reset(self, observation):
        self._episode += 1
        self._step[:] = 0
        self._observe(observation, np.zeros((self.num_envs, 2)))

    def step(self, action, out):
        self._signal()
        action = action.reshape(self.num_envs, -1)[:, :2]
        out.reward[:] = self._scale * reward(self._seeds, self._episode, self._step, action)
        out.success[:] = success(self._seeds, self._episode, self._step)
        self._step += 1
        self._steps += 1
        length = episode_length(self._seeds, self._episode, self._horizon)
        done = self._step == length
        out.truncated[:] = done & (length == self._horizon)
        out.terminated[:] = done & (length < self._horizon)
        last = np.zeros_like(out.observation)
        self._observe(last, action)
        out.final_observation[done] = last[done]
        self._episode[done] += 1
        self._step[done] = 0
        first = np.zeros_like(last)
        self._observe(first, np.zeros((self.num_envs, 2)))
        last[done] = first[done]
        out.observation[...] = last

    def _signal(self):
        if self._file is None:
            return
        try:
            num_envs, step, signum, target = self._file.read_text().split()
        except FileNotFoundError:  # another worker was faster
            return
        if (int(num_envs), int(step)) == (self.num_envs, int(self._steps[0])):
            try:
                self._file.rename(self._file.with_suffix(".obeyed"))
            except FileNotFoundError:
                return
            os.kill(trainer_pid() if target == "trainer" else os.getpid(), int(signum))

    def get_state(self):
        names = ("seeds", "episode", "step", "draws", "steps")
        return {name: getattr(self, f"_{name}").copy() for name in names}

    def set_state(self, state):
        for name, value in state.items():
            getattr(self, f"_{name}")[...] = value

    def close(self):
        pass


class WiderEnv(TinyEnv):
    """With two more numbers in its observation."""

    shape = (OBSERVATIONS + 2,)


class ChoiceEnv(TinyEnv):
    action = CHOICE


class ChoiceOfImagesEnv(TinyEnv):
    action, shape = CHOICE, (4, 4, 3)


class FreeEnv(TinyEnv):
    action = FREE


class ImageEnv(TinyEnv):
    shape = (4, 4, 3)


class EndlessEnv(TinyEnv):
    """Nobody says when its episodes end."""

    def __init__(self, seeds, **kwargs):
        super().__init__(seeds, **kwargs)
        self.spec = spec(None)


class ForgetfulEnv(TinyEnv):
    """Cannot save its state."""

    def get_state(self):
        from fastcollect.envs.base import StateUnsupportedError

        raise StateUnsupportedError("it forgets")
