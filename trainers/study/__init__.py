"""A study of many runs: stages, rewinds, controls. Imports ``config``, ``store`` and ``run``."""
