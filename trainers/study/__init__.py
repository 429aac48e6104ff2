"""A study of many runs: stages, rewinds, controls, transfers.

Imports ``config``, ``store`` and ``run``.
"""
