"""Learns an environment's spec in a process of its own, so that the collector's never loads a simulator."""

from __future__ import annotations

import os
import time
from typing import Any

import cloudpickle
import numpy as np

from fastcollect.control.launcher import Launcher
from fastcollect.envs.base import EnvSpec
from fastcollect.envs.registry import EnvConfig, make_env, select_rows
from fastcollect.support.errors import ConfigError, WorkerError

_SECONDS = 120.0


def env_spec(launcher: Launcher, config: EnvConfig) -> EnvSpec:
    """Build one environment and return its spec.

    Raises ConfigError for what the user chose wrongly (name, arguments, spaces), WorkerError otherwise.
    """
    result_fd = os.memfd_create("fastcollect-spec", os.MFD_CLOEXEC)
    try:
        process = launcher.spawn("fastcollect.control.probe:main", config, [result_fd])
        deadline = time.monotonic() + _SECONDS
        while not (ours := launcher.collect({process.ident})):
            if time.monotonic() > deadline:
                launcher.kill(process.ident)
                raise WorkerError(f"{config.id}: building one environment took over {_SECONDS:.0f} s")
            launcher.wait(1.0)
        words = process.last_words()
        os.close(process.words_fd)
        if ours[0].code != 0:
            raise WorkerError(words or f"{config.id}: the process that builds it ended with {ours[0].code}")
        size = os.fstat(result_fd).st_size
        if size == 0:
            raise WorkerError(f"{config.id}: the process that builds it ended before it was done")
        answer: Any = cloudpickle.loads(os.pread(result_fd, size, 0))
    finally:
        os.close(result_fd)
    if isinstance(answer, EnvSpec):
        return answer
    raise ConfigError([answer])


def main(config: EnvConfig, fds: list[int]) -> None:
    """In the child: write the pickled spec, or the text of the user's error."""
    import gymnasium

    try:
        env = make_env(select_rows(config, 0, 1), np.zeros(1, np.int64))
        answer: EnvSpec | str = env.spec
        env.close()
    except (ValueError, ImportError, TypeError, gymnasium.error.Error) as error:
        answer = str(error) if isinstance(error, ConfigError) else f"environment {config.id!r}: {error}"
    with os.fdopen(fds[0], "wb") as file:
        file.write(cloudpickle.dumps(answer))
