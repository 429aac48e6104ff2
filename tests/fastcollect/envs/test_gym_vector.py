"""Vector environments of every autoreset mode: no row crosses a reset, no row is a reset's fake step."""

import functools

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from fastcollect.envs import gym_vector
from fastcollect.envs.base import (
    BatchedEnv,
    EnvStepError,
    StateUnsupportedError,
    StepBuffers,
    UnsupportedSpaceError,
)

N = 5


def episode_length(mark, episode):
    return 1 + (mark + 3 * episode) % 4


def is_success(mark, episode, step):
    return (mark + episode + step) % 3 == 0


class Counter(gymnasium.Env):
    """observation = (mark, episode, step)."""

    observation_space = spaces.Box(0, 10_000, (3,), np.int32)
    action_space = spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, mark=0):
        self.state = [mark, -1, 0]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state[1:] = [self.state[1] + 1, 0]
        return np.array(self.state, np.int32), {}

    def step(self, action):
        self.state[2] += 1
        mark, episode, step = self.state
        ended = step == episode_length(mark, episode)
        info = {"success": is_success(mark, episode, step)}
        flags = ended and episode % 2 == 1, ended and episode % 2 == 0
        return np.array(self.state, np.int32), float(step), *flags, info


def make_sync(num_envs, mode, cls=SyncVectorEnv):
    makers = [lambda mark=mark: Counter(mark) for mark in range(num_envs)]
    return cls(makers, autoreset_mode=mode)


class Native(VectorEnv):
    """The same counters as arrays, one of each mode; reset takes one seed only."""

    single_observation_space = Counter.observation_space
    single_action_space = Counter.action_space

    def __init__(self, num_envs, mode=AutoresetMode.DISABLED, ignores_mask=False, final_obs=True):
        self.metadata = {} if mode is None else {"autoreset_mode": mode}
        self.num_envs, self.mode = num_envs, mode
        self.ignores_mask, self.final_obs = ignores_mask, final_obs
        self.observation_space = gymnasium.vector.utils.batch_space(self.single_observation_space, num_envs)
        self.action_space = gymnasium.vector.utils.batch_space(self.single_action_space, num_envs)
        self.state = np.stack([np.arange(num_envs), np.full(num_envs, -1), np.zeros(num_envs)], 1)
        self.state = self.state.astype(np.int32)
        self.pending = np.zeros(num_envs, np.bool_)
        self.closes = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        mask = np.ones(self.num_envs, np.bool_)
        if options and not self.ignores_mask:
            mask = options["reset_mask"]
        self.begin(mask)
        return self.state, {}

    def begin(self, mask):
        self.state[mask, 1] += 1
        self.state[mask, 2] = 0
        self.pending[mask] = False

    def step(self, actions):
        fake = self.pending.copy()
        self.begin(fake)
        self.state[~fake, 2] += 1
        mark, episode, step = self.state.T.copy()
        ended = (step == episode_length(mark, episode)) & ~fake
        info = {"success": is_success(mark, episode, step)}
        if self.mode is AutoresetMode.SAME_STEP:
            if self.final_obs:
                info["final_obs"] = self.state.copy()
            self.begin(ended)
        elif self.mode is AutoresetMode.NEXT_STEP:
            self.pending = ended
        reward = np.where(fake, 0, step).astype(np.float32)
        return self.state, reward, ended & (episode % 2 == 1), ended & (episode % 2 == 0), info

    def close_extras(self, **kwargs):
        self.closes += 1


def start(n=N, **kwargs):
    env = gym_vector.make(np.arange(n), **kwargs)
    assert isinstance(env, BatchedEnv)
    out = StepBuffers.allocate(env.spec, n)
    env.reset(out.observation)
    return env, out


def check_counters(env, out, steps=40, success=True):
    """Every row of every step is a real one, and follows the model of the counters."""
    model = [[mark, 0, 0] for mark in range(env.num_envs)]
    assert out.observation.tolist() == model
    out.final_observation.fill(-7)
    final = out.final_observation.copy()
    for _ in range(steps):
        env.step(np.zeros((env.num_envs, 2), np.float32), out)
        for mark, row in enumerate(model):
            row[2] += 1
            ended = row[2] == episode_length(mark, row[1])
            assert out.reward[mark] == row[2]
            assert out.terminated[mark] == (ended and row[1] % 2 == 1)
            assert out.truncated[mark] == (ended and row[1] % 2 == 0)
            if success:
                assert out.success[mark] == is_success(*row)
            if ended:
                final[mark] = row
                row[1:] = [row[1] + 1, 0]
        assert out.observation.tolist() == model
        assert out.final_observation.tolist() == final.tolist()


@pytest.mark.parametrize("mode", AutoresetMode)
def test_sync_vector_env(mode):
    env, out = start(entry_point=make_sync, env_kwargs={"mode": mode}, has_success=True)
    check_counters(env, out)
    env.close()
    env.close()


@pytest.mark.parametrize("mode", AutoresetMode)
def test_async_vector_env(mode):
    # Not fork: other tests of this process have loaded JAX.
    unforked = functools.partial(AsyncVectorEnv, context="forkserver")
    env, out = start(3, entry_point=make_sync, env_kwargs={"mode": mode, "cls": unforked})
    check_counters(env, out, success=False)
    env.close()


@pytest.mark.parametrize("mode", [*AutoresetMode, "SameStep", "Disabled"])
def test_a_users_vector_env(mode):
    vouched = mode is AutoresetMode.NEXT_STEP
    kwargs = {"mode": AutoresetMode(mode)}
    env, out = start(entry_point=Native, env_kwargs=kwargs, has_success=True, honours_reset_mask=vouched)
    check_counters(env, out)
    env.close()
    env.close()


def test_next_step_is_refused_unless_vouched_for():
    with pytest.raises(ValueError, match=r"Native resets in the step after .*NEXT_STEP.*gym:ID"):
        start(entry_point=Native, env_kwargs={"mode": AutoresetMode.NEXT_STEP})
    with pytest.raises(ValueError, match=r"CartPoleVectorEnv .*NEXT_STEP"):
        start(env_id="CartPole-v1")


def test_a_mode_that_is_not_said_is_refused():
    with pytest.raises(ValueError, match="metadata has no 'autoreset_mode'"):
        start(entry_point=Native, env_kwargs={"mode": None})


def test_an_ignored_reset_mask_is_noticed():
    env, out = start(entry_point=Native, env_kwargs={"ignores_mask": True})
    with pytest.raises(EnvStepError, match="ignores the mask") as error:
        check_counters(env, out)
    assert error.value.env_index in range(N)
    # Vouching for CartPoleVectorEnv, wrongly: it knows no reset_mask.
    env, out = start(env_id="CartPole-v1", honours_reset_mask=True)
    assert env.spec.max_episode_steps == 500
    with pytest.raises(EnvStepError, match="ignores the mask"):
        run(env, out, 200)


def run(env, out, steps):
    rng = np.random.default_rng(0)
    for _ in range(steps):
        env.step(rng.integers(0, 2, env.num_envs), out)


def test_a_missing_final_observation_is_an_error():
    kwargs = {"mode": AutoresetMode.SAME_STEP, "final_obs": False}
    env, out = start(entry_point=Native, env_kwargs=kwargs)
    with pytest.raises(EnvStepError, match=r"row 0 .*final_obs") as error:
        check_counters(env, out)
    assert error.value.env_index == 0


def make_cartpoles(num_envs):
    mode = AutoresetMode.SAME_STEP
    return gymnasium.make_vec(
        "CartPole-v1", num_envs, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode}
    )


def test_equals_stock_environments():
    env, out = start(4, entry_point=make_cartpoles)
    assert env.spec.max_episode_steps == 500
    stock = [gymnasium.make("CartPole-v1") for _ in range(4)]
    for i in range(4):
        assert out.observation[i].tobytes() == stock[i].reset(seed=i)[0].tobytes()
    rng = np.random.default_rng(0)
    for _ in range(100):
        action = rng.integers(0, 2, 4)
        env.step(action, out)
        for i in range(4):
            observation, reward, terminated, truncated, _ = stock[i].step(action[i])
            assert (out.reward[i], out.terminated[i], out.truncated[i]) == (reward, terminated, truncated)
            if terminated:
                assert out.final_observation[i].tobytes() == observation.tobytes()
                observation, _ = stock[i].reset()
            assert out.observation[i].tobytes() == observation.tobytes()


def test_seeds_one_for_each_row_or_the_first():
    class Seeds(Native):
        def reset(self, *, seed=None, options=None):
            self.seed = seed
            return super().reset(seed=seed, options=options)

    class Lists(Seeds):
        def reset(self, *, seed=None, options=None):
            self.seed = seed
            return Native.reset(self, options=options)

    for cls, expected in ((Seeds, 7), (Lists, [7, 9])):
        env = gym_vector.make(np.array([7, 9]), entry_point=cls)
        out = StepBuffers.allocate(env.spec, 2)
        env.reset(out.observation)
        assert env._env.seed == expected
        env.reset(out.observation)
        assert env._env.seed is None


def test_a_registered_vector_entry_point():
    gymnasium.register("Counters-v0", vector_entry_point=Native, max_episode_steps=None)
    try:
        env, out = start(env_id="Counters-v0")
        check_counters(env, out, success=False)
    finally:
        gymnasium.registry.pop("Counters-v0")


def test_misuse():
    env, _ = start(entry_point=Native)
    for call in (env.get_state, lambda: env.set_state({})):
        with pytest.raises(StateUnsupportedError):
            call()
    with pytest.raises(ValueError, match="exactly one"):
        gym_vector.make(np.arange(2))
    env = gym_vector.make(np.arange(2), entry_point=Native)
    with pytest.raises(RuntimeError, match="reset"):
        env.step(np.zeros((2, 2), np.float32), StepBuffers.allocate(env.spec, 2))

    class Texts(Native):
        single_observation_space = spaces.Text(4)

    with pytest.raises(UnsupportedSpaceError, match="observation space Text"):
        gym_vector.make(np.arange(2), entry_point=Texts)
