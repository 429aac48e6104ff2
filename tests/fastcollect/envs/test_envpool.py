"""The EnvPool backend against EnvPool itself, whose reset takes a step of its own."""

import builtins

import numpy as np
import pytest

envpool = pytest.importorskip("envpool")

from fastcollect.envs import envpool as backend  # noqa: E402
from fastcollect.envs.base import (  # noqa: E402
    BatchedEnv,
    EnvStepError,
    StateUnsupportedError,
    StepBuffers,
    UnsupportedSpaceError,
)
from fastcollect.envs.registry import UnknownEnvError  # noqa: E402


def start(seeds, **kwargs):
    env = backend.make(np.asarray(seeds, np.int64), **kwargs)
    assert isinstance(env, BatchedEnv)
    out = StepBuffers.allocate(env.spec, env.num_envs)
    env.reset(out.observation)
    return env, out


def draw_actions(env, steps):
    rng = np.random.default_rng(0)
    action = env.spec.action
    if action.discrete:
        return rng.integers(0, action.num_actions, (steps, env.num_envs))
    return rng.uniform(-1, 1, (steps, env.num_envs, *action.shape)).astype(action.dtype)


@pytest.mark.parametrize(
    ("env_id", "options"),
    [
        ("CartPole-v1", {}),
        ("CartPole-v1", {"max_episode_steps": 12}),
        ("Pendulum-v1", {"max_episode_steps": 11}),
        ("FrozenLake-v1", {}),
        ("Catch-v0", {}),
        ("HalfCheetah-v5", {"max_episode_steps": 9}),
    ],
)
def test_equals_envpool_less_its_reset_steps(env_id, options):
    seeds = [3, 11, 4]
    env, out = start(seeds, env_id=env_id, **options)
    # One pool for each row, so that a row's reset step is nobody else's step.
    pools = [
        envpool.make(env_id, env_type="gymnasium", num_envs=1, num_threads=1, seed=[s], **options)
        for s in seeds
    ]
    for i, pool in enumerate(pools):
        assert out.observation[i].tobytes() == np.asarray(pool.reset()[0][0], out.observation.dtype).tobytes()
    ends = 0
    for action in draw_actions(env, 80):
        env.step(action, out)
        for i, pool in enumerate(pools):
            observation, reward, terminated, truncated, _ = pool.step(action[i : i + 1])
            assert out.reward[i] == reward[0]
            assert (out.terminated[i], out.truncated[i]) == (terminated[0], truncated[0])
            if terminated[0] or truncated[0]:
                ends += 1
                last = observation[0].astype(env.spec.observation_dtype)
                assert out.final_observation[i].tobytes() == last.tobytes()
                observation, reward, *_ = pool.step(action[i : i + 1])
                assert reward[0] == 0
            first = observation[0].astype(env.spec.observation_dtype)
            assert out.observation[i].tobytes() == first.tobytes()
    assert ends > 5
    env.close()
    env.close()


def test_a_row_does_not_depend_on_its_batch():
    many, a = start(range(9), env_id="CartPole-v1")
    one, b = start([6], env_id="CartPole-v1")
    for action in draw_actions(many, 60):
        assert a.observation[6].tobytes() == b.observation[0].tobytes()
        many.step(action, a)
        one.step(action[6:7], b)


def test_rows_that_go_on_keep_their_final_observation_slot():
    env, out = start(range(20), env_id="CartPole-v1")
    out.final_observation.fill(7.0)
    ended = np.zeros(20, np.bool_)
    for action in draw_actions(env, 14):
        env.step(action, out)
        ended |= out.terminated
        assert (out.final_observation[~ended] == 7.0).all()
    assert 0 < ended.sum() < 20


def test_specs():
    cheetah = start([0], env_id="HalfCheetah-v5")[0].spec
    assert (cheetah.observation_shape, cheetah.observation_dtype) == ((17,), np.float64)
    assert (cheetah.action.shape, cheetah.max_episode_steps) == ((6,), 1000)
    assert not cheetah.has_success
    lake = start([0], env_id="FrozenLake-v1")[0].spec
    assert (lake.observation_shape, lake.observation_dtype, lake.action.num_actions) == ((), np.int64, 4)


def test_success():
    env, out = start([0, 1], env_id="MetaWorld/Reach-v3")
    assert env.spec.has_success
    out.success.fill(True)
    env.step(np.zeros((2, 4), np.float32), out)
    assert out.success.tolist() == [False, False]


def test_misuse():
    env, out = start([0, 1], env_id="CartPole-v1")
    with pytest.raises(EnvStepError, match="action 2 of row 1 is not one of 0 to 1") as error:
        env.step(np.array([0, 2]), out)
    assert error.value.env_index == 1
    with pytest.raises(ValueError, match="shape"):
        env.step(np.zeros((2, 1), np.int64), out)
    for call in (env.get_state, lambda: env.set_state({})):
        with pytest.raises(StateUnsupportedError):
            call()
    env = backend.make(np.arange(2), env_id="CartPole-v1")
    with pytest.raises(RuntimeError, match="reset"):
        env.step(np.zeros(2, np.int64), out)
    with pytest.raises(UnknownEnvError, match=r"'envpool:Cartpole-v7'.*'envpool:CartPole-v1'"):
        backend.make(np.arange(2), env_id="Cartpole-v7")
    with pytest.raises(UnsupportedSpaceError, match="space Dict"):
        backend.make(np.arange(1), env_id="MiniGrid-Empty-5x5-v0")


def test_without_envpool_the_error_says_what_to_install(monkeypatch):
    def refuse(name, *args, _import=builtins.__import__, **kwargs):
        if name == "envpool":
            raise ModuleNotFoundError("No module named 'envpool'", name="envpool")
        return _import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"pip install envpool .*fastcollect\[envpool\]"):
        backend.make(np.arange(2), env_id="CartPole-v1")
