"""Learners that a test finds again, and training without learning."""

import jax
import pytest
from support.training import keep_learners, one_launcher

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
