"""Training from Python: a notebook, another program, a thread. No command line is read."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console

from fastcollect.support.errors import ConfigError
from trainers.config.build import Layer, build, combine
from trainers.config.training import TrainConfig, problems_of
from trainers.run.policy import TrainedPolicy, load_policy
from trainers.run.progress import Progress
from trainers.store.identity import dense_identity
from trainers.store.manifest import read_identity, read_summary
from trainers.store.rows import EVALUATIONS, METRICS, read_rows
from trainers.study import stages
from trainers.study.identities import default_path


class TrainedRun:
    """A finished run. path: its folder. config: all its settings, as plain data. summary: its results."""

    def __init__(self, path: Path | str) -> None:
        """Raises ConfigError if it is no run's folder, not finished, or was changed."""
        self.path = Path(path)
        identity, self._manifest = read_identity(self.path)
        self.config: Mapping[str, Any] = identity.config
        self.summary: dict[str, Any] = read_summary(self.path)

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """A row for each evaluation, the last one of the final weights."""
        return read_rows(self.path / EVALUATIONS)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """Rows of what training measured."""
        return read_rows(self.path / METRICS)

    @cached_property
    def policy(self) -> TrainedPolicy:
        """The trained policy: its most likely action for an observation, or for each of a batch of them.

        Raises ConfigError if the folder keeps no policy.
        """
        return load_policy(self.path, self._manifest["config_hash"])

    def __repr__(self) -> str:
        return f"TrainedRun({str(self.path)!r})"


def configure(env: str, algo: str = TrainConfig.algo, **settings: Any) -> TrainConfig:
    """The configuration of a run on an environment: its own settings, with these in their place.

    settings: fields of TrainConfig, nested ones as mappings, for instance ``algorithm={"discount": 0.98}``.
    Raises ConfigError naming every one that does not exist, is of another type or out of range.
    """
    merged = combine(flags=Layer("the call", {"env": env, "algo": algo, **settings}))
    config = build(TrainConfig, merged)
    if problems := problems_of(config):
        raise ConfigError(merged.explained(problems))
    return config


def train(
    config: TrainConfig,
    *,
    folder: Path | str | None = None,
    runs: Path | str = "runs",
    resume: bool = False,
    quiet: bool = False,
) -> TrainedRun:
    """A dense run from beginning to end; one that is finished already is not trained again.

    folder: the run's; default: in ``runs``, named by environment, seed and configuration. resume: go on with
    an unfinished run of the same configuration. quiet: show nothing on the way. May be called in a thread;
    in a process's main thread SIGINT and SIGTERM let the run save itself first.
    Raises ConfigError for what cannot work, WorkerError for what an environment raised, and
    ``trainers.run.observers.InterruptedRunError`` after a signal.
    """
    if problems := problems_of(config):
        raise ConfigError(problems)
    identity = dense_identity(stages.collectable(config))
    path = Path(folder) if folder is not None else default_path(Path(runs), identity)
    title = f"{config.env} seed {config.seed} dense"
    command = ["python", "-c", "trainers.train(config)"]
    with Progress(Console(quiet=True) if quiet else None) as progress:
        stages.dense(stages.Context(identity, command, progress, resume, title), path, config)
    return TrainedRun(path)


def load(folder: Path | str) -> TrainedRun:
    """A finished run from its folder. Raises ConfigError if it is none, or was changed."""
    return TrainedRun(folder)
