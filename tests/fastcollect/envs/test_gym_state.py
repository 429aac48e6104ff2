"""What the gymnasium adapter saves, and how it goes on from it: by replaying the running episodes."""

import io

import numpy as np
import pytest
from support.gym_envs import (
    STOCK,
    Counter,
    NoGenerator,
    OwnGenerator,
    Pixels,
    arguments,
    draw_actions,
    run,
    start,
)

from fastcollect.envs import gym
from fastcollect.envs.base import StateUnsupportedError, StepBuffers


def saved(env):
    file = io.BytesIO()
    np.savez(file, **env.get_state())
    file.seek(0)
    return dict(np.load(file, allow_pickle=False))


@pytest.mark.parametrize("steps", [0, 9, 70])
@pytest.mark.parametrize("name", STOCK)
def test_state_continues_bitwise(name, steps):
    """0 and 9 steps are within first episodes, 70 beyond them for most."""
    env, out = start(3, **arguments(name, STOCK[name]))
    actions = draw_actions(env, steps + 60)
    run(env, out, actions[:steps])
    other = gym.make(np.arange(50, 53), **arguments(name, STOCK[name]))
    other_out = StepBuffers.allocate(env.spec, 3)
    other.set_state(saved(env))
    for action in actions[steps:]:
        env.step(action, out)
        other.step(action, other_out)
        assert out.observation.tobytes() == other_out.observation.tobytes()
        assert out.reward.tobytes() == other_out.reward.tobytes()
        np.testing.assert_array_equal(out.terminated, other_out.terminated)
    again = saved(other)
    assert {k: v.tobytes() for k, v in saved(env).items()} == {k: v.tobytes() for k, v in again.items()}


def test_state_is_refused_where_it_would_be_wrong():
    env, out = start(2, entry_point=OwnGenerator)
    with pytest.raises(StateUnsupportedError, match="environment 0: replaying"):
        env.set_state(env.get_state())
    env, out = start(2, entry_point=NoGenerator)
    env.reset(out.observation)
    with pytest.raises(StateUnsupportedError, match="environment 0 has no np_random"):
        env.get_state()
    env, _ = start(2, entry_point=Counter, record_actions=False)
    for call in (env.get_state, lambda: env.set_state({})):
        with pytest.raises(StateUnsupportedError, match="record_actions=False"):
            call()
    with pytest.raises(ValueError, match="expected"):
        start(3, entry_point=Pixels)[0].set_state(start(2, entry_point=Pixels)[0].get_state())


def test_actions_of_finished_episodes_are_forgotten():
    env, out = start(4, env_id="CartPole-v1")
    for action in draw_actions(env, 500):
        env.step(action, out)
        assert len(env._actions) < 150
