"""Training runs as others read them: found by the index of a study, with every hash checked."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from engine.normalizer import Moments
from engine.sparse import masks as mask_functions
from fastcollect.support.errors import ConfigError
from trainers.store import artifacts, index
from trainers.store.identity import CONTAINERS, Identity, SourceRef
from trainers.store.layout import NETWORKS, network
from trainers.store.manifest import MANIFEST, SUMMARY, read_identity, read_manifest, read_summary, root_of
from trainers.store.rows import EVALUATIONS, read_rows

_RESULTS = (
    *("success_any", "success_last", "return_mean", "best.success_any", "best.success_last"),
    *("best.return_mean", "reached", "env_steps", "updates", "updates_per_step", "wall_seconds"),
    *("training_seconds", "stopped_early", "density.actor", "density.critic", "flops"),
)
"""What the summary of a training run must say."""


@dataclass(frozen=True)
class SavedRun:
    """One training run: a dense run, or a round, control or variant inside a ticket or transfer.

    dense: summary of the dense run that a round or control comes from, None if that cannot be found. summary:
    None while it is unfinished, and then masks and parameters are empty. masks, parameters: {"actor",
    "critic"}. moments: the normaliser's.
    """

    path: Path
    identity: Identity
    manifest: Mapping[str, Any]
    summary: Mapping[str, Any] | None
    evaluations: Sequence[Mapping[str, Any]]
    dense: Mapping[str, Any] | None = None
    masks: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    parameters: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    moments: Moments = field(default_factory=lambda: Moments.empty(0))

    kind = property(lambda self: self.identity.kind)
    name = property(lambda self: self.identity.name)
    round = property(lambda self: self.identity.round)
    env = property(lambda self: self.identity.env)
    seed = property(lambda self: self.identity.seed)
    config = property(lambda self: self.identity.config)

    @cached_property
    def settings(self) -> str:
        """What all settings but the seed, those of the runs it begins from included, hash to."""
        return self.identity.settings(self.manifest["defaults"])

    @cached_property
    def label(self) -> str:
        """What the run is, whatever its seed."""
        ticket = self.identity.source("ticket")
        return {
            "dense": "dense",
            "round": f"ticket round {self.round}",
            "control": f"round {self.round} {self.name}",
            "variant": f"from {ticket.env if ticket else 'nowhere'}: {self.name}",
        }[self.kind]

    def sparsity(self, kind: str) -> float:
        """Of the "actor" or the "critic" of a finished run."""
        return mask_functions.sparsity(self.masks[kind])


@dataclass(frozen=True)
class Container:
    """A run folder with training runs inside. kind: "study", "ticket" or "transfer"."""

    path: Path
    kind: str
    finished: bool


def load(paths: Sequence[Path]) -> tuple[list[SavedRun], list[Container]]:
    """Every training run in these run folders, each once, and the folders that hold several.

    Raises ConfigError naming every folder that is none of ours, was changed or cannot be read.
    """
    runs: dict[Path, SavedRun] = {}
    containers: dict[Path, Container] = {}
    problems: list[str] = []
    for path in paths:
        try:
            inside = [path] if identify(path)[0].kind not in CONTAINERS else _inside(path)
        except ConfigError as error:
            problems += error.problems
            continue
        for each in inside:
            try:
                _load(each, runs, containers)
            except ConfigError as error:
                problems += error.problems
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return list(runs.values()), list(containers.values())


def _load(path: Path, runs: dict[Path, SavedRun], containers: dict[Path, Container]) -> None:
    resolved = path.resolve()
    identity, manifest = identify(path)
    if identity.kind in CONTAINERS:
        containers[resolved] = Container(path, identity.kind, (path / SUMMARY).exists())
    elif resolved not in runs:
        runs[resolved] = _run(path, identity, manifest)


def _inside(path: Path) -> list[Path]:
    """The folder and every run folder in it, in the order of their beginnings."""
    root = root_of(path)
    at = Path(os.path.relpath(path.resolve(), root.resolve())).as_posix()
    found = index.below(index.entries(root), at)
    if at not in (each.path for each in found):  # another study's root, which knows nothing of it
        at, found = ".", index.entries(path)
    inside = [path / os.path.relpath(each.path, at) for each in found]
    return [each for each in inside if (each / MANIFEST).is_file()]


def identify(path: Path) -> tuple[Identity, dict[str, Any]]:
    """As ``read_identity``, what it returned before if the file is the same. Not to be changed."""
    if not (path / MANIFEST).is_file():
        return read_identity(path)
    found = (path / MANIFEST).stat()
    return _remembered(path, found.st_mtime_ns, found.st_size, found.st_ino)


# To parse YAML takes long, and all runs of a study name the same few sources.
@lru_cache(maxsize=4096)
def _remembered(path: Path, *_: int) -> tuple[Identity, dict[str, Any]]:
    return read_identity(path)


def find_source(path: Path, source: SourceRef) -> Path | None:
    """The run folder that a run begins from, also where the two were moved together or only the run was.

    path: the folder of the run. Raises ConfigError if the source's configuration was changed since.
    """
    around = [path.resolve(), *path.resolve().parents]
    candidates = [folder / source.path for folder in around]
    root = root_of(path)
    if (root / index.INDEX).exists():
        listed = (each for each in index.entries(root) if each.config_hash == source.config_hash)
        candidates += [root / each.path for each in listed]
    candidates.append(Path(str(identify(path)[0].config.get("from", ""))))
    for candidate in candidates:
        if not (candidate / MANIFEST).is_file():
            continue
        try:
            there = identify(candidate)[1]["config_hash"]
        except ConfigError:
            if read_manifest(candidate).get("config_hash") == source.config_hash:
                raise
            continue  # another run than the one that is looked for
        if there == source.config_hash:
            return Path(os.path.normpath(candidate))
    return None


def _run(path: Path, identity: Identity, manifest: dict[str, Any]) -> SavedRun:
    evaluations = read_rows(path / EVALUATIONS) if (path / EVALUATIONS).exists() else []
    summary = read_summary(path, _RESULTS) if (path / SUMMARY).exists() else None
    networks = _networks(path, manifest) if summary is not None else {}
    return SavedRun(path, identity, manifest, summary, evaluations, _dense(path, identity), **networks)


def _dense(path: Path, identity: Identity) -> Mapping[str, Any] | None:
    """Summary of what a round or control was drawn from."""
    source = identity.source("dense") if identity.kind in ("round", "control") else None
    found = find_source(path, source) if source is not None else None
    return read_summary(found, _RESULTS) if found is not None and (found / SUMMARY).exists() else None


def _networks(path: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What a finished run has learned, and its masks."""
    final = artifacts.load(path, "final", manifest["config_hash"]).arrays
    masks = {kind: _pruning(network(final, kind, "masks")) for kind in NETWORKS}
    parameters = {kind: network(final, kind) for kind in NETWORKS}
    for kind in NETWORKS:
        try:
            mask_functions.check_matches(masks[kind], parameters[kind])
        except ValueError as error:
            raise ConfigError([f"artifact 'mask' of {str(path)!r}, {kind}: {error}"]) from error
    try:
        count, mean, squares = (final[f"normalizer/{name}"] for name in ("count", "mean", "squares"))
    except KeyError as error:
        raise ConfigError([f"artifact 'final' of {str(path)!r} has no {error}"]) from None
    return {"masks": masks, "parameters": parameters, "moments": Moments(int(count), mean, squares)}


def _pruning(mask: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A mask that prunes anything, and the empty one of a dense network in place of a full one."""
    return {} if all(kept.all() for kept in mask.values()) else mask
