"""Learners that a test finds again, and training without learning."""

import jax
import pytest
from support.reference import reference_run
from support.training import keep_learners, one_launcher, tiny_config

from engine.algorithms import base

__all__ = ["one_launcher"]


@pytest.fixture
def learners(monkeypatch):
    """Learners of the runs of this test, in order."""
    return keep_learners(monkeypatch)


@pytest.fixture
def without_learning(monkeypatch):
    """Updates that change nothing but their count, for tests of the loop alone."""

    def learn(algorithm, state, batches, pace, pruned):
        state = state.replace(updates=state.updates + batches.rewards.shape[0])
        return state, jax.tree.map(jax.numpy.copy, state.parameters["actor"]), {}

    monkeypatch.setattr(base, "learn", learn)


@pytest.fixture(scope="session")
def plain_loop():
    """The arrays of the final state of ``tiny_config()``, by a loop that has nothing of the trainer's."""
    return reference_run(tiny_config())
