"""From names to environments, in this process and in one that only gets the pickled config."""

import subprocess
import sys
from pathlib import Path

import cloudpickle
import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.classic_control import PendulumEnv

from fastcollect.envs import cartpole, registry
from fastcollect.envs.base import StepBuffers
from fastcollect.envs.registry import (
    EnvConfig,
    UnknownEnvError,
    make_env,
    preload_modules,
    resolve,
    select_rows,
    suggest,
)

ROOT = Path(registry.__file__).parents[2]


def make_pendulum(g=10.0):
    return gymnasium.wrappers.TimeLimit(PendulumEnv(g=g), 33)


def batched(seeds, *, horizon=500):
    return cartpole.make(seeds, max_episode_steps=horizon)


class Cartpoles(gymnasium.vector.SyncVectorEnv):
    def __init__(self, num_envs):
        mode = gymnasium.vector.AutoresetMode.SAME_STEP
        super().__init__([lambda: gymnasium.make("CartPole-v1")] * num_envs, autoreset_mode=mode)


def first(config, n=2):
    env = make_env(config, np.arange(n))
    out = StepBuffers.allocate(env.spec, n)
    env.reset(out.observation)
    return env, out.observation


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (EnvConfig(id="CartPole-v1"), "CartPole"),
        (EnvConfig(id="gym:CartPole-v1"), "GymEnv"),
        (EnvConfig(id="Pendulum-v1"), "GymEnv"),
        (EnvConfig(id="fastcollect.envs.cartpole:make"), "CartPole"),
        (EnvConfig(id="gymnasium.envs.classic_control:PendulumEnv"), "GymEnv"),
        (EnvConfig(id="x", entry_point="gymnasium.envs.classic_control:PendulumEnv"), "GymEnv"),
        (EnvConfig(id="x", entry_point=PendulumEnv), "GymEnv"),
        (EnvConfig(id="x", entry_point=make_pendulum), "GymEnv"),
        (EnvConfig(id="x", entry_point=batched), "CartPole"),
        (EnvConfig(id="x", entry_point=Cartpoles), "GymVectorEnv"),
        (EnvConfig(id="CartPole-v1", entry_point=make_pendulum), "GymEnv"),
    ],
)
def test_what_a_name_becomes(config, expected):
    env, observation = first(config)
    assert type(env).__name__ == expected
    resolved = resolve(config)
    assert resolved.entry_point is not None
    assert resolve(resolved) == resolved
    travelled = cloudpickle.loads(cloudpickle.dumps(resolved))
    assert first(travelled)[1].tobytes() == observation.tobytes()
    assert first(cloudpickle.loads(cloudpickle.dumps(config)))[1].tobytes() == observation.tobytes()


def test_envpool_prefix():
    pytest.importorskip("envpool")
    config = EnvConfig(id="envpool:Pendulum-v1", kwargs={"max_episode_steps": 5})
    env, _ = first(config)
    assert type(env).__name__ == "EnvPoolEnv"
    assert env.spec.max_episode_steps == 5
    assert preload_modules(config) == ["fastcollect.envs.envpool"]


def test_native_names():
    push = resolve(EnvConfig(id="push-v3", kwargs={"a": 1}))
    assert push == EnvConfig(
        id="push-v3", entry_point="fastcollect.envs.metaworld:make", kwargs={"a": 1, "task": "push-v3"}
    )
    assert resolve(EnvConfig(id="HalfCheetah-v5")).entry_point == "fastcollect.envs.halfcheetah:make"
    for name in ("Hopper", "Walker2d", "Ant"):
        entry_point = f"fastcollect.envs.{name.lower()}:make"
        assert resolve(EnvConfig(id=f"{name}-v5")).entry_point == entry_point
    assert resolve(EnvConfig(id="gym:HalfCheetah-v5")).entry_point == "fastcollect.envs.gym:make"
    assert {"reach-v3", "CartPole-v1", "HalfCheetah-v5", "Pendulum-v1"} <= set(registry.available())


def test_the_list_of_metaworld_tasks_is_complete():
    pytest.importorskip("metaworld")
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    assert set(registry.METAWORLD_TASKS) == set(ALL_V3_ENVIRONMENTS)


def test_kwargs_reach_environments_and_adapters():
    rows = [{"g": 1.0}, {"g": 2.0}]
    env, _ = first(EnvConfig(id="Pendulum-v1", kwargs={"per_env_kwargs": rows, "max_episode_steps": 9}))
    assert [e.unwrapped.g for e in env._envs] == [1.0, 2.0]
    assert env.spec.max_episode_steps == 9
    env, _ = first(EnvConfig(id="Pendulum-v1", kwargs={"g": 3.0, "env_kwargs": {"g": 4.0}, "time_limit": 5}))
    assert [e.unwrapped.g for e in env._envs] == [4.0, 4.0]
    assert env.spec.max_episode_steps == 5
    env, _ = first(EnvConfig(id="x", entry_point=make_pendulum, kwargs={"g": 6.0, "has_success": True}))
    assert [e.unwrapped.g for e in env._envs] == [6.0, 6.0]
    assert env.spec.has_success
    assert env.spec.max_episode_steps == 33
    assert first(EnvConfig(id="x", entry_point=batched, kwargs={"horizon": 7}))[0].spec.max_episode_steps == 7


def test_select_rows():
    config = EnvConfig(id="Pendulum-v1", kwargs={"per_env_kwargs": [{"g": float(g)} for g in range(5)]})
    for chosen in (select_rows(config, 1, 3), select_rows(resolve(config), 1, 3)):
        env, _ = first(chosen, 3)
        assert [e.unwrapped.g for e in env._envs] == [1.0, 2.0, 3.0]
    plain = EnvConfig(id="Pendulum-v1")
    assert select_rows(plain, 1, 3) is plain
    with pytest.raises(ValueError, match="5 entries, environment 6"):
        select_rows(config, 4, 3)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("CartPol-v1", "CartPole-v1"),
        ("cartpole-V1", "CartPole-v1"),
        ("reach-v2", "reach-v3"),
        ("pickplace-v3", "pick-place-v3"),
        ("HalfCheeta-v5", "HalfCheetah-v5"),
        ("Pendulum", "Pendulum-v1"),
        ("gym:Pendulun-v1", "Pendulum-v1"),
        ("no_such_module:CartPole-v1", None),
        ("gymnasium:NoSuchEnv-v0", None),
        ("json:NoSuchName", None),
        ("", None),
        (":", None),
        ("gym:", None),
        ("..relative:Name", None),
    ],
)
def test_an_unknown_name_is_named_with_the_nearest(name, near):
    with pytest.raises(UnknownEnvError) as error:
        resolve(EnvConfig(id=name))
    assert repr(name) in str(error.value)
    assert isinstance(error.value, ValueError)
    if near is not None:
        assert near in error.value.nearest
        assert repr(near) in str(error.value)
        assert near in suggest(name.removeprefix("gym:"))
    again = cloudpickle.loads(cloudpickle.dumps(error.value))
    assert (str(again), again.nearest) == (str(error.value), error.value.nearest)


def test_an_unknown_entry_point_is_named():
    for entry_point in ("json:nothing", "not a path", "json:__name__"):
        with pytest.raises(UnknownEnvError, match="entry point"):
            resolve(EnvConfig(id="x", entry_point=entry_point))
    with pytest.raises(UnknownEnvError, match=r"no vectorised version.*gym:Pendulum-v1"):
        resolve(EnvConfig(id="vector:Pendulum-v1"))


def test_vector_prefix():
    config = resolve(
        EnvConfig(id="vector:CartPole-v1", kwargs={"has_success": True, "sutton_barto_reward": True})
    )
    assert config.entry_point == "fastcollect.envs.gym_vector:make"
    assert config.kwargs == {
        "env_id": "CartPole-v1",
        "has_success": True,
        "env_kwargs": {"sutton_barto_reward": True},
    }
    with pytest.raises(ValueError, match=r"CartPoleVectorEnv .*NEXT_STEP"):
        make_env(config, np.arange(2))


def test_a_module_that_fails_inside_is_not_an_unknown_name(tmp_path, monkeypatch):
    Path(tmp_path, "needy_env.py").write_text("import a_library_that_is_missing\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_library_that_is_missing"):
        resolve(EnvConfig(id="needy_env:Env"))


def test_an_argument_nobody_takes_is_named():
    with pytest.raises(TypeError, match=r"CartPole-v1 takes no argument 'gravity'.*'gym:CartPole-v1'"):
        make_env(EnvConfig(id="CartPole-v1", kwargs={"gravity": 3}), np.arange(2))


def test_register():
    registry.register("short-pole", batched, horizon=9)
    try:
        env, _ = first(EnvConfig(id="short-pole"))
        assert env.spec.max_episode_steps == 9
        assert first(EnvConfig(id="short-pole", kwargs={"horizon": 8}))[0].spec.max_episode_steps == 8
        assert suggest("shortpole")[0] == "short-pole"
        for taken in ("short-pole", "reach-v3", "CartPole-v1"):
            with pytest.raises(ValueError, match="taken"):
                registry.register(taken, batched)
        resolved = resolve(EnvConfig(id="short-pole"))
    finally:
        registry._registered.pop("short-pole")
    assert first(resolved)[0].spec.max_episode_steps == 9


PARENT = """
import sys, cloudpickle, gymnasium, numpy as np
from gymnasium.envs.classic_control import PendulumEnv
from fastcollect.envs import cartpole
from fastcollect.envs.registry import EnvConfig, register, resolve

class Heavy(PendulumEnv):
    def __init__(self, mass=2.0):
        super().__init__()
        self.m = mass

def poles(seeds):
    return cartpole.make(seeds, max_episode_steps=77)

gymnasium.register("Heavy-v0", entry_point=Heavy, max_episode_steps=55)
register("poles", poles)
configs = [EnvConfig(id="x", entry_point=Heavy, kwargs={"time_limit": 44}), EnvConfig(id="Heavy-v0"),
           EnvConfig(id="poles"), EnvConfig(id="y", entry_point=poles)]
sys.stdout.buffer.write(cloudpickle.dumps([resolve(c) for c in configs]))
"""

WORKER = """
import sys, cloudpickle, numpy as np
from fastcollect.envs.registry import make_env
for config in cloudpickle.loads(sys.stdin.buffer.read()):
    env = make_env(config, np.arange(2))
    env.reset(np.zeros((2, *env.spec.observation_shape), np.float32))
    print(env.spec.max_episode_steps, getattr(env, "_envs", None) and env._envs[0].unwrapped.m)
"""


def run_python(source, given=None):
    command = [sys.executable, "-c", source]
    return subprocess.run(command, input=given, cwd=ROOT, check=True, capture_output=True).stdout


def test_what_main_defines_reaches_a_fresh_process():
    lines = run_python(WORKER, run_python(PARENT)).decode().splitlines()
    assert lines == ["44 2.0", "55 2.0", "77 None", "77 None"]


def test_importing_the_registry_loads_no_simulator():
    source = (
        "import sys, fastcollect.envs.registry as r\n"
        "c = [r.EnvConfig(id=i) for i in ('reach-v3', 'CartPole-v1', 'Pendulum-v1', 'HalfCheetah-v5')]\n"
        "for config in c: r.resolve(config); r.preload_modules(config)\n"
        "print([m for m in ('jax', 'mujoco', 'metaworld', 'envpool') if m in sys.modules])\n"
    )
    assert run_python(source).decode().strip() == "[]"


def test_preload_modules():
    assert preload_modules(EnvConfig(id="CartPole-v1")) == ["fastcollect.envs.cartpole"]
    assert preload_modules(EnvConfig(id="Pendulum-v1")) == [
        "fastcollect.envs.gym",
        "gymnasium.envs.classic_control.pendulum",
    ]
    path = EnvConfig(id="x", entry_point="gymnasium.envs.classic_control:PendulumEnv")
    assert preload_modules(path) == ["fastcollect.envs.gym", "gymnasium.envs.classic_control"]
    assert preload_modules(EnvConfig(id="x", entry_point=batched)) == []


def test_unsupported_environments_stay_errors_of_their_own():
    class Texts(gymnasium.Env):
        observation_space = action_space = spaces.Text(3)

    with pytest.raises(ValueError, match="observation space Text"):
        make_env(EnvConfig(id="x", entry_point=Texts), np.arange(2))


def test_select_rows_gives_each_environment_its_own_goal():
    config = EnvConfig(id="reach-v3", kwargs={"goal_indices": [5, 6, 7, 8]})
    assert select_rows(config, 1, 2).kwargs["goal_indices"] == [6, 7]
    pinned = EnvConfig(id="reach-v3", kwargs={"goal_indices": "seed"})
    assert select_rows(pinned, 1, 2) is pinned
    with pytest.raises(ValueError, match="goal_indices has 4 entries"):
        select_rows(config, 3, 2)
