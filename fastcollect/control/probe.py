"""Learns an environment's spec in a process of its own, so that the collector's never loads a simulator."""

import os
import time

import cloudpickle
import numpy as np

from fastcollect.control.launcher import Launcher
from fastcollect.envs.base import EnvSpec
from fastcollect.envs.registry import EnvConfig, make_env, select_rows
from fastcollect.support.errors import ConfigError, WorkerError

_SECONDS = 120.0


def env_spec(launcher: Launcher, config: EnvConfig) -> EnvSpec:
    """The spec of one environment. Raises ConfigError for what was chosen wrongly, WorkerError otherwise."""
    name = f"{config.id}: the process that builds it"
    with os.fdopen(os.memfd_create("fastcollect-spec", os.MFD_CLOEXEC), "rb") as file:
        process = launcher.spawn("fastcollect.control.probe:main", config, [file.fileno()])
        with os.fdopen(process.words_fd):
            deadline = time.monotonic() + _SECONDS
            while not (exits := launcher.collect({process.ident})):
                if time.monotonic() > deadline:
                    launcher.kill(process.ident)
                    raise WorkerError(f"{config.id}: building one environment took over {_SECONDS:.0f} s")
                launcher.wait(1.0)
            process.raise_last_words(exits[0].code, name)
        if os.fstat(file.fileno()).st_size == 0:
            raise WorkerError(f"{name} ended with {exits[0].code} before it was done")
        file.seek(0)
        return cloudpickle.load(file)


def build_spec(config: EnvConfig) -> EnvSpec:
    """Build one environment in this process and return its spec."""
    env = make_env(select_rows(config, 0, 1), np.zeros(1, np.int64))
    env.close()
    return env.spec


def main(config: EnvConfig, fds: list[int]) -> None:
    """In the child: write the pickled spec. Raises ConfigError for what the user chose wrongly."""
    try:
        spec = build_spec(config)
    except ConfigError:
        raise
    except Exception as error:
        import gymnasium  # here, because an environment of our own is built without it

        if not isinstance(error, (ValueError, ImportError, TypeError, gymnasium.error.Error)):
            raise
        raise ConfigError([f"environment {config.id!r}: {error}"]) from error
    with os.fdopen(fds[0], "wb") as file:
        file.write(cloudpickle.dumps(spec))
