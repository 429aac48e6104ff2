"""The errors that a user of the engine may meet. All of them carry a complete sentence."""

from collections.abc import Sequence

CONFIG_EXIT_CODE = 2
"""How a command, or a worker, ends that was given values that cannot work."""


class ConfigError(ValueError):
    """One or more values that cannot work, every one of them named with what is allowed."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class WorkerError(RuntimeError):
    """A worker raised. The text is the worker's own first traceback, with worker, environment and step."""


class StallError(RuntimeError):
    """A worker stood still for too long; the text holds the stack of every worker."""


class LauncherLostError(RuntimeError):
    """The zygote is gone, and every worker with it."""
