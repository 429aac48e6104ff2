"""One training run: the session, the learner, what observes it.

Imports ``config`` and ``store``.
"""
