"""One training run: a session, its learner, and what observes it. Imports ``config`` and ``store``."""
