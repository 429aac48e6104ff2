"""What a replay holds of TinyEnv, row by row against what the environment does."""

import numpy as np
from support import tiny_env


def histories(learner):
    """For each environment a dict of arrays, everything that the replay holds of it, oldest first.

    next_observation is what each step led to, first the number of the first step.
    """
    state, out, at, ends = learner.replay.get_state(), [], 0, 0
    for env, (written, held) in enumerate(zip(state["written"], state["held"], strict=True)):
        names = ("observation", "action", "reward", "terminated", "ended")
        part = {name: state[name][at : at + held] for name in names}
        following = np.concatenate([part["observation"], state["newest"][env : env + 1]])[1:]
        count = int(part["ended"].sum())
        following[part["ended"]] = state["final_observation"][ends : ends + count]
        out.append({**part, "next_observation": following, "first": written - held})
        at, ends = at + held, ends + count
    return out


def check_content(learner, horizon=8, breaks=()):
    """Every stored row is one step of one environment and follows the row before it, but at the breaks.

    Returns the set of (environment, episode, step).
    """
    keys = []
    for history in histories(learner):
        now, following = history["observation"], history["next_observation"]
        code, episode, step = (now[:, i].astype(np.int64) for i in range(3))
        length = tiny_env.episode_length(code, episode, horizon)
        done = step + 1 == length
        np.testing.assert_array_equal(following[:, :3], np.stack([code, episode, step + 1], 1))
        assert (np.abs(history["action"]) <= 1).all()
        action = history["action"] * [2.0, 2.0] + [0.0, 1.0]
        np.testing.assert_allclose(following[:, 3:5], action, atol=1e-6)
        expected = tiny_env.reward(code, episode, step, action)
        np.testing.assert_allclose(history["reward"], expected, atol=1e-5, rtol=1e-6)
        np.testing.assert_array_equal(history["terminated"], done & (length < horizon))
        gaps = np.isin(np.arange(len(done)) + 1, np.array(breaks) - history["first"])
        np.testing.assert_array_equal(history["ended"], done | gaps)
        # A row's observation is the next observation of the row before it, or the first of an episode.
        inside = ~(done | gaps)[:-1]
        np.testing.assert_array_equal(now[1:][inside], following[:-1][inside])
        np.testing.assert_array_equal(step[1:][~inside], 0)
        np.testing.assert_array_equal(np.diff(episode)[~gaps[:-1]], done[:-1][~gaps[:-1]])
        np.testing.assert_array_equal(np.diff(code) != 0, gaps[:-1])
        keys += zip(code.tolist(), episode.tolist(), step.tolist(), strict=True)
    assert len(set(keys)) == len(keys)
    return set(keys)
