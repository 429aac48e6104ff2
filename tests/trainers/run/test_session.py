"""The training loop with real workers: the ratio, what is stored, what interruption leaves unchanged."""

import os
import signal
from fractions import Fraction

import jax
import numpy as np
import pytest
from support import tiny_env
from support.training import (
    ASYNCHRONOUS,
    Silent,
    artifact,
    assert_same,
    assert_same_run,
    checkpoint,
    evaluations,
    keep_learners,
    launcher,
    one_launcher,
    tiny_config,
    train,
)

from engine.algorithms import sac
from fastcollect.control.collector import Collector
from trainers.run import session as loop
from trainers.run.session import InterruptedRunError
from trainers.store.folder import RunFolder, read_summary

pytestmark = pytest.mark.usefixtures("one_launcher")
__all__ = ["one_launcher"]


@pytest.fixture
def learners(monkeypatch):
    """Learners of the runs of this test, in order."""
    return keep_learners(monkeypatch)


@pytest.fixture
def without_learning(monkeypatch):
    """Updates that change nothing but their count, for tests of the loop alone."""

    def update_many(config, state, masks, batches, mean, scale, pace):
        state = state.replace(updates=state.updates + batches.reward.shape[0])
        return state, jax.tree.map(jax.numpy.copy, state.actor), {}

    monkeypatch.setattr(sac, "update_many", update_many)


def order(path, num_envs, step, signum, target="trainer"):
    """A file that makes an environment send a signal, and the argument that names it."""
    path.write_text(f"{num_envs} {step} {int(signum)} {target}")
    return (f"signal_file={path}",)


def interrupted(path, config, start=None, signum=signal.SIGTERM, **kwargs):
    with pytest.raises(InterruptedRunError) as caught:
        train(path, config, start, **kwargs)
    assert caught.value.signum == signum


# The ratio.


def wanted(config, env_steps):
    return max(0, int(Fraction(str(config.updates_per_step)) * (env_steps - config.start_steps)))


def check_ratio(config, log, block):
    """Updates never run ahead of the ratio, and never more than a dispatch and a block behind it."""
    assert log
    for what, env_steps, updates in log:
        now, before = (wanted(config, steps) for steps in (env_steps, env_steps - block))
        assert updates <= now
        assert updates > before - config.updates_per_dispatch
        if what == "updated" and now - updates < config.updates_per_dispatch:
            assert updates > now - config.updates_per_dispatch
    final = log[-1][1]
    assert config.env_steps <= final < config.env_steps + block
    assert log[-1][2] == wanted(config, final)


@pytest.mark.parametrize(
    (
        "ratio",
        "dispatch",
        "n",
        "N",
        "M",
        "block_length",
        "group_size",
        "schedule",
        "env_steps",
        "start_steps",
    ),
    [
        (0.0625, 16, 4, 1, 0, 16, None, "asynchronous", 1000, 100),
        (0.29, 7, 3, 2, 0, 5, None, "asynchronous", 400, 50),
        (0.7, 5, 4, 1, 1, 4, None, "asynchronous", 300, 20),
        (2.5, 16, 2, 2, 0, 4, 1, "rounds", 150, 10),
        (1.0, 3, 2, 1, 1, 3, 2, "rounds", 100, 0),
        (1.1, 4, 3, 1, 0, 64, None, "asynchronous", 500, 490),
    ],
)
def test_the_ratio_asked_for_is_the_ratio_run(
    ratio,
    dispatch,
    n,
    N,
    M,
    block_length,
    group_size,
    schedule,
    env_steps,
    start_steps,
    tmp_path,
    learners,
    without_learning,
):
    config = tiny_config(
        updates_per_step=ratio,
        updates_per_dispatch=dispatch,
        env_steps=env_steps,
        start_steps=start_steps,
        collect__n=n,
        collect__N=N,
        collect__M=M,
        collect__block_length=block_length,
        collect__group_size=group_size,
        collect__schedule=schedule,
        collect__reproducible=False,
        evaluation__every=env_steps,
    )
    summary = train(tmp_path / "run", config)
    (learner,) = learners
    check_ratio(config, learner.log, block_length * (group_size or n))
    assert (summary["env_steps"], summary["updates"]) == (learner.env_steps, learner.updates)
    expected = summary["updates"] / (summary["env_steps"] - start_steps)
    assert summary["updates_per_step"] == expected
    assert artifact(tmp_path / "run")["updates"] == artifact(tmp_path / "run")["sac/updates"]


# What is stored.


def histories(learner):
    """For each environment a dict of arrays, everything that the replay holds of it, oldest first."""
    state = learner.replay.get_state()
    steps, out, first = learner.replay.steps, [], 0
    for count in state.pop("written"):
        held = min(count, steps)
        shift = -(count % steps) if count > steps else 0
        part = {name: np.roll(value[first : first + held], shift, 0) for name, value in state.items()}
        out.append({**part, "first": count - held})
        first += held
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


@pytest.mark.parametrize("capacity", [4096, 64])
def test_every_step_is_stored_once(capacity, tmp_path, learners, without_learning, monkeypatch):
    taken = []
    stats = Collector.stats
    monkeypatch.setattr(Collector, "stats", lambda self: taken.append(stats(self).taken) or stats(self))
    config = tiny_config(**ASYNCHRONOUS, replay__capacity=capacity)
    summary = train(tmp_path / "run", config)
    (learner,) = learners
    assert summary["transitions_stored"] == summary["env_steps"] == learner.env_steps == taken[-1]
    assert learner.moments.count == learner.env_steps
    assert len(check_content(learner)) == len(learner.replay) <= capacity


def test_steps_and_updates_stay_exact_across_an_interruption_in_rounds(tmp_path, learners, without_learning):
    args = order(tmp_path / "order", 2, 33, signal.SIGINT)
    config = tiny_config(updates_per_step=0.37, updates_per_dispatch=9, env_kwargs=args)
    interrupted(tmp_path / "run", config, signum=signal.SIGINT)
    first = check_content(learners[0])
    assert learners[0].due() > 0  # a part of a dispatch is owed
    summary = train(tmp_path / "run", config, resume=True)
    keys = check_content(learners[1])
    assert summary["transitions_stored"] == summary["env_steps"] == len(keys) == 320
    assert first < keys
    assert len({env for env, _, _ in keys}) == 4
    check_ratio(config, [*learners[0].log, *learners[1].log], 8)


def test_an_asynchronous_run_is_resumed_with_new_episodes(tmp_path, learners, without_learning):
    args = order(tmp_path / "order", 4, 33, signal.SIGTERM)
    changes = {**ASYNCHRONOUS, "collect__n": 4, "collect__N": 1, "collect__group_size": None}
    config = tiny_config(updates_per_step=0.37, updates_per_dispatch=9, env_kwargs=args, **changes)
    interrupted(tmp_path / "run", config)
    stopped = learners[0].env_steps
    first = check_content(learners[0])
    arrays, _ = checkpoint(tmp_path / "run")
    assert arrays["env_steps"] == stopped
    assert arrays["normalizer/count"] == stopped
    summary = train(tmp_path / "run", config, resume=True)
    keys = check_content(learners[1], breaks=(stopped // 4,))
    assert summary["transitions_stored"] == summary["env_steps"] == len(keys)
    assert first < keys
    assert not {env for env, _, _ in first} & {env for env, _, _ in keys - first}
    assert learners[1].log[0] == ("stored", stopped + 16, learners[0].updates)
    check_ratio(config, [*learners[0].log, *learners[1].log], 16)


def test_rewards_are_not_summed_across_the_death_of_a_worker(tmp_path, learners, without_learning):
    args = order(tmp_path / "order", 4, 30, signal.SIGKILL, "self")
    changes = {**ASYNCHRONOUS, "collect__n": 4, "collect__N": 1, "collect__group_size": None}
    summary = train(tmp_path / "run", tiny_config(env_kwargs=args, **changes))
    assert summary["collector"]["env_worker_deaths"] == 1
    assert summary["transitions_stored"] == summary["env_steps"] == 320
    codes = histories(learners[0])[0]["observation"][:, 0]
    (gap,) = np.flatnonzero(np.diff(codes)) + 1
    assert gap % 4 == 0  # at a block's end
    check_content(learners[0], breaks=(gap,))


# Interrupted and resumed equals uninterrupted.


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A reproducible run, and the learner that it ended with."""
    path = tmp_path_factory.mktemp("uninterrupted") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "new_launcher", lambda config: launcher())
        made = keep_learners(patch)
        train(path, tiny_config())
    return path, made[0]


@pytest.mark.parametrize(
    ("batch", "step", "signum", "resumed_with"),
    [
        (2, 5, signal.SIGTERM, (2, 2, 0)),  # before the first update
        (2, 41, signal.SIGINT, (4, 1, 0)),
        (3, 40, signal.SIGTERM, (2, 2, 1)),  # during an evaluation
        (2, 78, signal.SIGINT, (2, 2, 0)),  # in the last round
    ],
)
def test_an_interrupted_run_equals_an_uninterrupted_one(
    batch, step, signum, resumed_with, tmp_path, uninterrupted, learners
):
    expected, learner = uninterrupted
    config = tiny_config(env_kwargs=order(tmp_path / "order", batch, step, signum))
    identity = {"stage": "dense"}
    interrupted(tmp_path / "run", config, signum=signum, identity=identity)
    assert not (tmp_path / "run" / "summary.json").exists()
    n, N, M = resumed_with
    config = tiny_config(env_kwargs=config.env_kwargs, collect__n=n, collect__N=N, collect__M=M)
    summary = train(tmp_path / "run", config, resume=True, identity=identity)
    assert summary["updates"] == 32
    assert_same_run(tmp_path / "run", expected)
    assert_same(learners[-1].replay.get_state(), learner.replay.get_state())


def test_a_run_interrupted_again_and_again_equals_an_uninterrupted_one(tmp_path, uninterrupted):
    expected, _ = uninterrupted
    file, identity = tmp_path / "order", {"stage": "dense"}
    for resume, step in ((False, 5), (True, 9)):
        config = tiny_config(env_kwargs=order(file, 2, step, signal.SIGTERM))
        interrupted(tmp_path / "run", config, resume=resume, identity=identity)
    train(tmp_path / "run", config, resume=True, identity=identity)
    assert_same_run(tmp_path / "run", expected)


def test_checkpoints_on_the_way_change_nothing_and_can_be_resumed_from(tmp_path, uninterrupted, monkeypatch):
    expected, _ = uninterrupted
    monkeypatch.setattr(loop, "_CHECKPOINT_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "_remove_checkpoints", lambda folder: None)
        train(tmp_path / "run", tiny_config())
    assert_same_run(tmp_path / "run", expected)
    # As after a kill before the last round.
    (tmp_path / "run" / "summary.json").unlink()
    (tmp_path / "run" / "checkpoints" / "320.npz").unlink()
    arrays, meta = checkpoint(tmp_path / "run")
    assert arrays["env_steps"] == 304
    assert meta["next_evaluation"] == 336
    train(tmp_path / "run", tiny_config(), resume=True)
    assert_same_run(tmp_path / "run", expected)


def test_resuming_what_has_no_checkpoint_begins_anew(tmp_path, uninterrupted, monkeypatch):
    def fail(row):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train(tmp_path / "run", tiny_config(), progress=Silent(fail))
    assert len(evaluations(tmp_path / "run")) == 1
    train(tmp_path / "run", tiny_config(), resume=True)
    assert_same_run(tmp_path / "run", uninterrupted[0])


def test_another_seed_gives_another_run(tmp_path, uninterrupted):
    train(tmp_path / "run", tiny_config(seed=4))
    mine, theirs = artifact(tmp_path / "run"), artifact(uninterrupted[0])
    for name in ("sac/actor/kernel_0", "normalizer/mean", "sac/critic/q1/kernel_1"):
        assert (mine[name] != theirs[name]).all(), name


def test_a_run_leaves_its_states_and_its_normaliser(uninterrupted):
    path, learner = uninterrupted
    counts = {name: artifact(path, name)["env_steps"] for name in ("initial", "anchor", "final")}
    assert counts == {"initial": 0, "anchor": 128, "final": 320}
    for name, steps in counts.items():
        saved = artifact(path, name)
        assert saved["normalizer/count"] == steps
        assert saved["updates"] == saved["sac/updates"] == max(0, steps - 64) // 8
    content = histories(learner)
    seen = np.concatenate([each["observation"] for each in content]).astype(np.float64)
    np.testing.assert_allclose(artifact(path)["normalizer/mean"], seen.mean(0), rtol=1e-6)
    squares = np.square(seen - seen.mean(0)).sum(0)
    np.testing.assert_allclose(artifact(path)["normalizer/squares"], squares, rtol=1e-6, atol=1e-9)
    replay = artifact(path, "anchor-replay")
    assert replay["replay/written"].tolist() == [32] * 4
    first = np.concatenate([each["observation"][:32] for each in content])
    np.testing.assert_array_equal(replay["replay/observation"], first)
    best = max(
        evaluations(path), key=lambda row: (row["success_any"], row["success_last"], row["return_mean"])
    )
    assert artifact(path, "best")["env_steps"] == best["env_steps"]
    assert read_summary(path)["best"]["return_mean"] == best["return_mean"]


def test_actions_are_random_until_the_first_update_and_the_actors_own_after(uninterrupted):
    action = np.stack([each["action"] for each in histories(uninterrupted[1])])
    # Nearly uniform on [-1, 1]: 64 steps before the ratio asks for anything, 32 for the first dispatch.
    random = action[:, :24].reshape(-1, tiny_env.ACTIONS)
    assert np.abs(random.mean(0)).max() < 0.2
    assert np.abs(random.std(0) - 3**-0.5).max() < 0.1
    assert np.abs(action[:, 28:].reshape(-1, tiny_env.ACTIONS).mean(0)).max() > 0.2


# Evaluations.


def test_evaluations_do_not_touch_training(tmp_path, uninterrupted):
    train(tmp_path / "run", tiny_config(evaluation__every=1000, evaluation__episodes=2))
    assert [row["env_steps"] for row in evaluations(tmp_path / "run")] == [0, 320]
    for name in ("anchor", "final", "saliency", "anchor-replay"):
        assert_same(artifact(tmp_path / "run", name), artifact(uninterrupted[0], name))


def test_evaluations_are_made_on_time_and_hold_their_rows(uninterrupted):
    rows = evaluations(uninterrupted[0])
    assert [row["env_steps"] for row in rows] == [0, 48, 96, 144, 192, 240, 288, 320]
    assert [row["updates"] for row in rows] == [0, 0, 4, 8, 16, 20, 28, 32]
    for row in rows:
        assert len(row["return_by_goal"]) == 3
        assert row["density"] == {"actor": 1.0, "critic": 1.0}


def test_early_stopping_counts_evaluations_in_a_row(tmp_path, monkeypatch, without_learning):
    success = iter([1.0, 0.9, 0.0, 0.9, 1.0, 0.9, 1.0, 1.0])
    judge = loop.Evaluation.row
    monkeypatch.setattr(loop.Evaluation, "row", lambda self: {**judge(self), "success_any": next(success)})
    config = tiny_config(stop_success=0.9, stop_patience=3)
    summary = train(tmp_path / "run", config)
    assert summary["stopped_early"]
    assert summary["env_steps"] == 240
    rows = evaluations(tmp_path / "run")
    assert [row["success_any"] for row in rows[:6]] == [1.0, 0.9, 0.0, 0.9, 1.0, 0.9]
    assert rows[-1]["updates"] == summary["updates"] == wanted(config, 240)
    assert summary["reached"]["success_any"]["env_steps"] == 0


def test_a_pruned_weight_that_is_not_zero_stops_the_run(tmp_path, monkeypatch):
    mask = np.ones((tiny_env.OBSERVATIONS, 8), bool)
    mask[2, 3] = False
    masks = {"actor": {"kernel_0": mask, "kernel_1": np.ones((8, 4), bool)}, "critic": {}}
    update = sac.update_many

    def corrupting(*args):
        state, acting, metrics = update(*args)
        return state.replace(**{part: spoiled(state)}), acting, metrics

    def spoiled(state):
        spoil = jax.numpy.zeros(mask.shape).at[2, 3].set(1e-30)
        if part == "actor":
            return {**state.actor, "kernel_0": state.actor["kernel_0"] + spoil}
        adam = state.optimizer["actor"][0]
        moments = {**adam.nu, "kernel_0": adam.nu["kernel_0"] + spoil}
        return {**state.optimizer, "actor": (adam._replace(nu=moments), *state.optimizer["actor"][1:])}

    monkeypatch.setattr(sac, "update_many", corrupting)
    for part in ("actor", "optimizer"):
        with pytest.raises(AssertionError, match=r"kernel_0.* are not zero"):
            train(tmp_path / part, tiny_config(), loop.Start(masks))
        assert evaluations(tmp_path / part)[-1]["env_steps"] == 48  # the evaluation after the first update


# Signals.


def test_a_second_signal_ends_the_run_at_once_and_an_earlier_checkpoint_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "_CHECKPOINT_SECONDS", 0.0)

    def stop(row):
        if row["env_steps"] == 96:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", tiny_config(), progress=Silent(stop))
    arrays, _ = checkpoint(tmp_path / "run")
    assert arrays["env_steps"] == 80


def test_a_signal_that_comes_too_late_for_a_run_is_not_lost(tmp_path, without_learning):
    def stop(row):
        if row["env_steps"] == 320:
            os.kill(os.getpid(), signal.SIGTERM)

    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    interrupted(tmp_path / "run", tiny_config(), progress=Silent(stop))
    assert read_summary(tmp_path / "run")["env_steps"] == 320
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


def test_environments_that_cannot_save_their_state_are_resumed_where_nothing_is_reproducible(
    tmp_path, without_learning
):
    env, args = "support.tiny_env:ForgetfulEnv", order(tmp_path / "order", 2, 41, signal.SIGTERM)
    config = tiny_config(env=env, env_kwargs=args, **ASYNCHRONOUS)
    interrupted(tmp_path / "run", config)
    summary = train(tmp_path / "run", config, resume=True)
    assert summary["transitions_stored"] == summary["env_steps"] >= 320
    assert [row["env_steps"] for row in evaluations(tmp_path / "run")][-1] == summary["env_steps"]
