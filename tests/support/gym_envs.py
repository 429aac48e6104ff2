"""Gymnasium environments for the adapter's tests, and how a batch of them is built and stepped."""

import gymnasium
import numpy as np
from gymnasium import spaces

from fastcollect.envs import gym
from fastcollect.envs.base import BatchedEnv, StepBuffers


class Counter(gymnasium.Env):
    """observation = (mark, episode, step); episodes last 1 to 5 steps. What goes wrong is asked for."""

    observation_space = spaces.Box(0, 10_000, (3,), np.int32)
    action_space = spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, mark=0, fail_step=None, fail_reset=None, info=None):
        self.mark, self.fail_step, self.fail_reset, self.info = mark, fail_step, fail_reset, info or {}
        self.episode, self.steps, self.seeds, self.actions = -1, 0, [], []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.episode += 1
        self.steps = 0
        if self.episode == self.fail_reset:
            raise OSError("no more episodes")
        return self.observe(), {}

    def step(self, action):
        self.actions.append(action)
        self.steps += 1
        if self.steps == self.fail_step:
            raise ZeroDivisionError("the simulator exploded")
        ended = self.steps == self.length(self.episode)
        truncates = self.episode % 2 == 0
        return self.observe(), float(self.steps), ended and not truncates, ended and truncates, self.info

    def observe(self):
        return np.array([self.mark, self.episode, self.steps], np.int32)

    def length(self, episode):
        return 1 + (self.mark + 3 * episode) % 5


class Pixels(gymnasium.Env):
    """uint8 images drawn from np_random, in reset and in every step."""

    observation_space = spaces.Box(0, 255, (8, 6, 3), np.uint8)
    action_space = spaces.Discrete(4)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.draw(), {}

    def step(self, action):
        return self.draw(), float(action), bool(self.np_random.random() < 0.1), False, {}

    def draw(self):
        return self.np_random.integers(0, 256, (8, 6, 3), np.uint8)


class Spaces(gymnasium.Env):
    """Nothing but its spaces."""

    def __init__(self, observation, action):
        self.observation_space, self.action_space = observation, action


class OwnGenerator(Pixels):
    """Draws from a generator that nobody seeds."""

    def draw(self):
        return np.random.default_rng().integers(0, 256, (8, 6, 3), np.uint8)


class NoGenerator:
    """Not even a gymnasium.Env: the four names are enough to step it."""

    observation_space = Counter.observation_space
    action_space = Counter.action_space

    def reset(self, *, seed=None):
        return np.zeros(3, np.int32), {}

    def step(self, action):
        return np.zeros(3, np.int32), 0.0, False, False, {}

    def close(self):
        pass


class Declared(Counter):
    has_success = True


def make_scaled(scale):
    """A factory: wrappers are the user's own choice."""
    return gymnasium.wrappers.TransformReward(gymnasium.make("Pendulum-v1"), lambda r: scale * r)


def start(n, **kwargs):
    env = gym.make(np.arange(n), **kwargs)
    assert isinstance(env, BatchedEnv)
    out = StepBuffers.allocate(env.spec, n)
    env.reset(out.observation)
    return env, out


def draw_actions(env, steps, seed=0):
    rng = np.random.default_rng(seed)
    action = env.spec.action
    if action.discrete:
        return rng.integers(0, action.num_actions, (steps, env.num_envs))
    return rng.uniform(-1, 1, (steps, env.num_envs, *action.shape)).astype(action.dtype)


def run(env, out, actions):
    for action in actions:
        env.step(action, out)


STOCK = {
    "Pendulum-v1": {},
    "CartPole-v1": {},
    "MountainCarContinuous-v0": {"max_episode_steps": 15},
    "Acrobot-v1": {"max_episode_steps": 30},
    "FrozenLake-v1": {"is_slippery": True},
    "Pixels": {},
}


def make_stock(name, kwargs):
    return Pixels() if name == "Pixels" else gymnasium.make(name, **kwargs)


def arguments(name, kwargs):
    return {"entry_point": Pixels} if name == "Pixels" else {"env_id": name, "env_kwargs": kwargs}
