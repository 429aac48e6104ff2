"""One page about any number of runs.

Imports ``store``; never a runner.
"""
