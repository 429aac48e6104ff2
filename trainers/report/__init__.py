"""One page about any number of runs. Imports ``store`` and ``export``; never a runner."""
