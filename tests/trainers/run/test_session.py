"""A session without a run folder: by turns, over any source, over several, over one that grows."""

import contextlib
import time
from dataclasses import replace

import numpy as np
import pytest
from support import tiny_env
from support.content import check_content
from support.training import ASYNCHRONOUS, assert_same, tiny_config

from engine.algorithms import base
from engine.data.replay import Replay
from fastcollect.control.serial import SerialCollector
from trainers.run.learner import Learner, as_numpy
from trainers.run.session import Observer, Session
from trainers.run.training import collector_config, open_session

pytestmark = pytest.mark.usefixtures("one_launcher")


@contextlib.contextmanager
def serial(config, observers=(), **changes):
    """As ``open_session``, in this process; changes of the collection."""
    collection = replace(collector_config(config), **changes)
    learner = Learner(config, tiny_env.spec(8), collection.env_indices)
    exploring = learner.algorithm.exploring(learner.state)
    with SerialCollector(collection, parameters=exploring) as source:
        learner.random_version = source.version
        yield Session(source, learner, observers)


def rows_of(blocks):
    """{(environment, episode, step)} of every row of some blocks."""
    seen = [block.observation[:-1, :, :3].reshape(-1, 3).astype(np.int64) for block in blocks]
    return {tuple(row) for row in np.concatenate(seen).tolist()}


def test_a_session_by_turns_equals_one_over_the_serial_twin_bit_for_bit():
    config = tiny_config()
    with open_session(config) as session:
        for k in range(1, 41):
            block = session.turn()
            assert len(block) == 8
            assert (session.blocks, session.learner.env_steps) == (k, 8 * k)
            assert session.learner.updates == 4 * (max(0, 8 * k - 64) // 32)
            assert session.complete == (k % 2 == 0)
        parallel = session.learner.get_state()
    with serial(config) as session:
        session.run()
        assert_same(session.learner.get_state(), parallel)
    assert parallel["updates"] == 32


@pytest.mark.parametrize("schedule", [{}, ASYNCHRONOUS])
def test_the_first_weights_that_are_published_are_learned_and_normalised_by_what_was_seen(
    schedule, monkeypatch
):
    published, dispatched, seen, begun, learn = [], [], [], [], base.learn

    def learned(algorithm, state, *rest):
        seen.append((state.normalizer.count, state.normalizer.mean.copy()))
        out = learn(algorithm, state, *rest)
        weights = {name: np.array(value) for name, value in out[0].parameters["actor"].items()}
        dispatched.append((weights, as_numpy(out[1])))
        return out

    monkeypatch.setattr(base, "learn", learned)
    with serial(tiny_config(env_steps=160, **schedule)) as session:
        publish = session.source.publish

        def witnessed(parameters):
            published.append({name: np.array(value) for name, value in parameters.items()})
            return publish(parameters)

        monkeypatch.setattr(session.source, "publish", witnessed)
        begun.append(as_numpy(session.learner.acting))
        session.run()
    behind = 1 if schedule else 0
    assert len(dispatched) == 3
    assert len(published) == 3 - behind
    assert_same(published[0], dispatched[0][1])
    # Folded by hand with the moments that the first dispatch saw: kernel of (x - mean) * scale.
    (weights, acting), (count, mean) = dispatched[0], seen[0]
    assert count == 96
    scale = acting["kernel_0"][:, 0] / weights["kernel_0"][:, 0]
    bias = weights["bias_0"] - (mean * scale) @ weights["kernel_0"].astype(np.float64)
    assert not np.allclose(scale, 1)
    np.testing.assert_allclose(acting["bias_0"], bias, rtol=1e-3, atol=1e-3)
    assert not np.array_equal(published[0]["kernel_0"], begun[0]["kernel_0"])


class Witness(Observer):
    """Writes down when it was called. ends_at: the step at which it ends the session."""

    def __init__(self, ends_at=None):
        self.calls, self._ends_at = [], ends_at

    def took(self, session, block):
        self.calls.append(("took", session.learner.env_steps))

    def between(self, session):
        self.calls.append(("between", session.learner.env_steps, session.learner.updates))
        session.ended = session.learner.env_steps == self._ends_at

    def end(self, session):
        self.calls.append(("end", session.learner.updates))


def test_observers_see_every_block_before_it_is_learned_from_and_every_end_of_a_round(without_learning):
    witness = Witness()
    # 26 updates by the end, of which a dispatch of 4 leaves 2 over.
    with serial(tiny_config(env_steps=128, updates_per_step=0.40625), [witness]) as session:
        session.run()
    expected = [("between", 0, 0)]
    for step in range(0, 128, 16):
        updates = int(0.40625 * max(0, step + 16 - 64)) // 4 * 4
        expected += [("took", step), ("took", step + 8), ("between", step + 16, updates)]
    assert witness.calls == [*expected, ("end", 26)]


def test_an_observer_ends_a_session_whose_updates_are_then_made_up_for(without_learning):
    witness = Witness(ends_at=96)
    with serial(tiny_config(updates_per_step=0.40625), [witness]) as session:
        session.run()
        assert session.learner.env_steps == 96
    assert witness.calls[-2:] == [("between", 96, 12), ("end", 13)]


def test_a_learner_grows_with_a_source_that_gets_more_workers(without_learning, monkeypatch):
    sizes, resized = [], Replay.resized
    monkeypatch.setattr(Replay, "resized", lambda self, envs: sizes.append(envs) or resized(self, envs))
    config = tiny_config(**ASYNCHRONOUS, env_steps=10**6, collect__group_size=1)
    with open_session(config) as session:
        learner, source = session.learner, session.source
        blocks = [session.turn() for _ in range(6)]
        source.resize(num_env_workers=3)
        while not any(4 in block.env_index for block in blocks):
            time.sleep(0.1)  # the others wait meanwhile, so that the replay does not lose a row
            blocks.append(session.turn())
            assert len(blocks) < 500
        blocks += [session.turn() for _ in range(10)]
        assert sizes == [learner.replay.num_envs] == [len(source.env_indices)] == [6]  # copied once
        assert sum(map(len, blocks)) == learner.replay.added == learner.env_steps
        assert learner.state.normalizer.count == learner.env_steps
        assert check_content(learner) == rows_of(blocks)
        assert any(5 in block.env_index for block in blocks)
        written = [sum(4 for block in blocks if env in block.env_index) for env in range(6)]
        assert learner.replay.written.tolist() == written
        assert learner.updates > 0


def test_a_source_may_begin_with_any_environment(without_learning):
    config, blocks = tiny_config(env_steps=64, start_steps=0), []
    with serial(config, first_env=6) as session:
        while session.learner.env_steps < 64:
            blocks.append(session.turn())
        learner = session.learner
        assert sorted({int(env) for block in blocks for env in block.env_index}) == [6, 7, 8, 9]
        assert learner.replay.written.tolist() == [16] * 4
        keys = check_content(learner)
        assert keys == rows_of(blocks)
    with serial(config, num_envs=10, num_env_workers=1) as session:
        seen = [session.turn() for _ in range(5)]
    # The seeds follow the environments, whoever collects.
    codes = [int(code) for block in seen for code in block.observation[0, :, 0]]
    assert {code for code, _, _ in keys} == set(codes[6:])


def learn_from_all(config, sources, learner):
    """Rounds of all sources in turn until the budget's end, everyone with the same weights; their blocks."""
    blocks = []
    while learner.env_steps < config.env_steps:
        for source in sources:
            for _ in range(source.config.blocks_per_round):
                blocks.append(source.take())
                learner.learn_from(blocks[-1])
        if count := learner.due():
            learner.update(count)
            for source in sources:
                source.publish(as_numpy(learner.acting))
    return blocks


def test_two_sources_feed_one_learner_as_one_source_of_all_their_environments_does():
    config = tiny_config(env_steps=256, updates_per_step=0.125)
    collection = collector_config(config)
    wide = replace(collection, num_env_workers=4)
    parts = (replace(collection, first_env=0), replace(collection, first_env=4))
    states = []
    for collections in ((wide,), parts):
        learner = Learner(config, tiny_env.spec(8), wide.env_indices)
        weights = as_numpy(learner.acting)
        with contextlib.ExitStack() as stack:
            sources = [stack.enter_context(SerialCollector(each, parameters=weights)) for each in collections]
            blocks = learn_from_all(config, sources, learner)
        assert learner.replay.written.tolist() == [32] * 8
        assert learner.replay.added == learner.env_steps == sum(map(len, blocks)) == 256
        keys = check_content(learner)
        assert keys == rows_of(blocks)
        assert len({code for code, _, _ in keys}) == 8
        states.append(learner.get_state())
    assert states[0]["updates"] == 24
    assert_same(states[1], states[0])
