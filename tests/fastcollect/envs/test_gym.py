"""The gymnasium adapter against stock environments that are stepped on their own."""

import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from support.gym_envs import (
    STOCK,
    Counter,
    Declared,
    Pixels,
    Spaces,
    arguments,
    draw_actions,
    make_scaled,
    make_stock,
    run,
    start,
)

from fastcollect.envs import gym
from fastcollect.envs.base import EnvStepError, StateUnsupportedError, StepBuffers, UnsupportedSpaceError


@pytest.mark.parametrize("name", STOCK)
def test_equals_stock(name):
    n, steps = 3, 450 if name == "Pendulum-v1" else 120
    env, out = start(n, **arguments(name, STOCK[name]))
    stock = [make_stock(name, STOCK[name]) for _ in range(n)]
    for i in range(n):
        observation, _ = stock[i].reset(seed=i)
        assert out.observation[i].tobytes() == np.asarray(observation, env.spec.observation_dtype).tobytes()
    ends = 0
    for action in draw_actions(env, steps):
        env.step(action, out)
        for i in range(n):
            observation, reward, terminated, truncated, _ = stock[i].step(action[i])
            assert (out.reward[i], out.terminated[i], out.truncated[i]) == (reward, terminated, truncated)
            if terminated or truncated:
                ends += 1
                assert out.final_observation[i].tobytes() == np.asarray(observation).tobytes()
                observation, _ = stock[i].reset()
            assert out.observation[i].tobytes() == np.asarray(observation).tobytes()
    assert ends >= 3
    env.close()
    env.close()


def test_specs():
    pendulum = gym.make(np.arange(2), env_id="Pendulum-v1").spec
    assert (pendulum.observation_shape, pendulum.observation_dtype) == ((3,), np.float32)
    assert (pendulum.action.shape, pendulum.action.dtype, pendulum.action.high[0]) == ((1,), np.float32, 2.0)
    assert pendulum.max_episode_steps == 200
    assert not pendulum.has_success
    lake = gym.make(np.arange(2), env_id="FrozenLake-v1").spec
    assert (lake.observation_shape, lake.observation_dtype) == ((), np.int64)
    assert (int(lake.observation_low), int(lake.observation_high)) == (0, 15)
    assert (lake.action.num_actions, lake.max_episode_steps) == (4, 100)
    pixels = gym.make(np.arange(2), entry_point=Pixels).spec
    assert (pixels.observation_shape, pixels.observation_dtype) == ((8, 6, 3), np.uint8)
    assert pixels.max_episode_steps is None
    unbounded = Spaces(spaces.MultiBinary(5), spaces.Box(-np.inf, np.inf, (2,), np.float64))
    spec = gym.make(np.arange(1), entry_point=lambda: unbounded, has_success=False).spec
    assert (spec.observation_shape, spec.observation_dtype) == ((5,), np.int8)
    assert spec.action.high.tolist() == [np.inf, np.inf]


def test_no_row_crosses_a_reset():
    n = 7
    env, out = start(n, entry_point=Counter, per_env_kwargs=[{"mark": 10 * i} for i in range(n)])
    model = [[10 * i, 0, 0] for i in range(n)]
    assert out.observation.tolist() == model
    for action in draw_actions(env, 60):
        env.step(action, out)
        for mark, row in zip(range(n), model, strict=True):
            row[2] += 1
            ended = row[2] == Counter(mark=10 * mark).length(row[1])
            assert out.reward[mark] == row[2]
            assert out.truncated[mark] == (ended and row[1] % 2 == 0)
            assert out.terminated[mark] == (ended and row[1] % 2 == 1)
            if ended:
                assert out.final_observation[mark].tolist() == row
                row[1:] = [row[1] + 1, 0]
        assert out.observation.tolist() == model


def test_seeds_reach_the_first_reset_only():
    env = gym.make(np.array([5, 2**62]), entry_point=Counter)
    out = StepBuffers.allocate(env.spec, 2)
    env.reset(out.observation)
    env.reset(out.observation)
    assert [e.seeds for e in env._envs] == [[5, None], [2**62, None]]


def test_per_env_kwargs_reach_each_environment():
    gravity = [{"g": 1.0}, {"g": 20.0}, {}]
    env, out = start(3, env_id="Pendulum-v1", env_kwargs={"g": 5.0}, per_env_kwargs=gravity)
    stock = [gymnasium.make("Pendulum-v1", g=g) for g in (1.0, 20.0, 5.0)]
    for i in range(3):
        stock[i].reset(seed=i)
    for action in draw_actions(env, 20):
        env.step(action, out)
        for i in range(3):
            assert out.observation[i].tobytes() == stock[i].step(action[i])[0].tobytes()
    with pytest.raises(ValueError, match="2 entries for 3"):
        gym.make(np.arange(3), env_id="Pendulum-v1", per_env_kwargs=[{}, {}])


def test_every_way_to_name_an_environment(tmp_path, monkeypatch):
    source = (
        "import gymnasium\n"
        "from gymnasium.envs.classic_control import PendulumEnv\n"
        "gymnasium.register('Swing-v3', entry_point=PendulumEnv, max_episode_steps=7)\n"
    )
    Path(tmp_path, "swinging.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    _, expected = start(2, env_id="Pendulum-v1")
    ways = [
        {"env_id": "swinging:Swing-v3"},
        {"env_id": "Swing-v3"},
        {"env_id": gymnasium.spec("Pendulum-v1")},
        {"entry_point": "swinging:PendulumEnv"},
        {"entry_point": make_scaled, "env_kwargs": {"scale": 2.0}},
    ]
    try:
        for way in ways:
            out = start(2, **way)[1]
            assert out.observation.tobytes() == expected.observation.tobytes()
        assert start(1, env_id="Swing-v3")[0].spec.max_episode_steps == 7
    finally:
        gymnasium.registry.pop("Swing-v3", None)
        sys.modules.pop("swinging", None)
    for wrong in ({}, {"env_id": "Pendulum-v1", "entry_point": Counter}):
        with pytest.raises(ValueError, match="exactly one"):
            gym.make(np.arange(2), **wrong)


def test_time_limit():
    env, out = start(2, entry_point=Pixels, time_limit=3)
    assert env.spec.max_episode_steps == 3
    lengths, length = [], 0
    for action in draw_actions(env, 30):
        env.step(action, out)
        length += 1
        if out.terminated[0] or out.truncated[0]:
            assert out.truncated[0] == (length == 3)
            lengths.append(length)
            length = 0
    assert max(lengths) == 3


BOX = spaces.Box(-1, 1, (2,), np.float32)


@pytest.mark.parametrize(
    ("observation", "action", "named"),
    [
        (spaces.Dict(a=BOX), BOX, "observation space Dict"),
        (spaces.Tuple([BOX]), BOX, "observation space Tuple"),
        (spaces.Text(5), BOX, "observation space Text"),
        (spaces.MultiDiscrete([2, 3]), BOX, "observation space MultiDiscrete"),
        (spaces.Sequence(BOX), BOX, "observation space Sequence"),
        (BOX, spaces.Dict(a=BOX), "action space Dict"),
        (BOX, spaces.Tuple([BOX]), "action space Tuple"),
        (BOX, spaces.MultiDiscrete([2, 3]), "action space MultiDiscrete"),
        (BOX, spaces.MultiBinary(3), "action space MultiBinary"),
        (BOX, spaces.Discrete(3, start=1), "action space Discrete"),
        (BOX, spaces.Box(0, 5, (2,), np.int32), "action space Box"),
    ],
)
def test_unsupported_spaces_are_named(observation, action, named):
    with pytest.raises(UnsupportedSpaceError, match=f"{named}.*supported are Box"):
        gym.make(np.arange(2), entry_point=Spaces, env_kwargs={"observation": observation, "action": action})


def test_rows_of_different_spaces_are_refused():
    wide = spaces.Box(-1, 1, (3,), np.float32)
    rows = [{"observation": BOX, "action": BOX}, {"observation": wide, "action": BOX}]
    with pytest.raises(UnsupportedSpaceError, match=r"environment 1 has .*environment 0 has"):
        gym.make(np.arange(2), entry_point=Spaces, per_env_kwargs=rows)


@pytest.mark.parametrize(
    ("fault", "where", "cause"),
    [({"fail_step": 2}, "step", ZeroDivisionError), ({"fail_reset": 1}, "reset", OSError)],
)
def test_an_exception_carries_its_row(fault, where, cause):
    rows = [{"mark": 4}, {"mark": 4}, {"mark": 4, **fault}]
    env, out = start(3, entry_point=Counter, per_env_kwargs=rows)
    with pytest.raises(EnvStepError, match=rf"row 2 \(Counter\) failed in {where}") as error:
        run(env, out, draw_actions(env, 10))
    assert error.value.env_index == 2
    assert type(error.value.__cause__) is cause


def test_a_wrong_observation_shape_is_not_broadcast():
    class Scalar(Counter):
        def observe(self):
            return np.zeros(1, np.int32)

    env = gym.make(np.arange(2), entry_point=Scalar)
    with pytest.raises(EnvStepError, match=r"shape \(1,\), its space says \(3,\)"):
        env.reset(StepBuffers.allocate(env.spec, 2).observation)


def test_a_failing_constructor_names_its_row():
    with pytest.raises(TypeError) as error:
        gym.make(np.arange(2), entry_point=Counter, per_env_kwargs=[{}, {"nonsense": 1}])
    assert error.value.__notes__ == ["while constructing row 1"]
    with pytest.raises(TypeError, match="no gymnasium environment"):
        gym.make(np.arange(2), entry_point=dict)


def test_success():
    info = {"is_success": True}
    env, out = start(2, entry_point=Counter, per_env_kwargs=[{"info": info}, {"info": {"success": 0.0}}])
    assert env.spec.has_success
    env.step(draw_actions(env, 1)[0], out)
    assert out.success.tolist() == [True, False]
    assert start(1, entry_point=Declared)[0].spec.has_success
    assert not start(1, entry_point=Counter)[0].spec.has_success
    assert not start(1, entry_point=Counter, env_kwargs={"info": info}, has_success=False)[0].spec.has_success


def test_an_environment_gets_an_action_of_its_own():
    env, out = start(2, entry_point=Counter)
    slot = np.ones((2, 2), np.float32)
    env.step(slot, out)
    slot.fill(-1)
    assert env._envs[1].actions[0].tolist() == [1, 1]
    env._envs[1].actions[0].fill(5)
    assert slot.tolist() == [[-1, -1], [-1, -1]]


def test_misuse():
    env = gym.make(np.arange(2), entry_point=Counter)
    out = StepBuffers.allocate(env.spec, 2)
    with pytest.raises(RuntimeError, match="reset"):
        env.step(np.zeros((2, 2), np.float32), out)
    with pytest.raises(StateUnsupportedError, match="before reset"):
        env.get_state()
    env.reset(out.observation)
    with pytest.raises(ValueError, match="shape"):
        env.step(np.zeros((2, 3), np.float32), out)
    with pytest.raises(ValueError, match="seeds"):
        gym.make(np.array([-1]), entry_point=Counter)
