"""Training runs as others read them: found by the index of a study, with every hash checked."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from engine.normalizer import Moments
from engine.sparse import masks as mask_functions
from fastcollect.support.errors import ConfigError
from trainers.config.training import ALGORITHM
from trainers.store import artifacts, index
from trainers.store.identity import CONTAINERS, Identity, SourceRef
from trainers.store.layout import NETWORKS, network
from trainers.store.manifest import MANIFEST, SUMMARY, read_identity, read_manifest, read_summary
from trainers.store.rows import EVALUATIONS, TOPOLOGY, read_rows

_RESULTS = (
    *("success_any", "success_last", "return_mean", "best.success_any", "best.success_last"),
    *("best.return_mean", "reached", "env_steps", "updates", "updates_per_step", "wall_seconds"),
    *("training_seconds", "stopped_early", "density.actor", "density.critic", "flops"),
)
"""What the summary of a training run must say."""


@dataclass(frozen=True, kw_only=True)
class SavedRun(Identity):
    """One training run: a dense or sparse one, or a round, control or variant inside a ticket or transfer.

    dense: summary of the dense run that a round or control comes from, None if that cannot be found. summary:
    None while it is unfinished, and then masks and parameters are empty. masks, parameters: {"actor",
    "critic"}, as trained. averages: of networks that were evaluated by one. moments: the normaliser's.
    topology: how its masks changed, a row for each time.
    """

    path: Path
    manifest: Mapping[str, Any]
    summary: Mapping[str, Any] | None
    evaluations: Sequence[Mapping[str, Any]]
    dense: Mapping[str, Any] | None
    masks: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    parameters: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    averages: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    moments: Moments = field(default_factory=lambda: Moments.empty(0))
    topology: Sequence[Mapping[str, Any]] = ()

    @property
    def actor(self) -> Mapping[str, np.ndarray]:
        """The weights of the actor that was evaluated; a ticket is drawn from those in ``parameters``."""
        return self.averages.get("actor") or self.parameters["actor"]

    @property
    def label(self) -> str:
        """What the run is, whatever its seed."""
        ticket, algo = self.source("ticket"), str(self.config.get("algo", ALGORITHM))
        sparse = {"topology": "sparse", **self.config.get("sparse", {})}
        label = {
            "dense": "dense",
            "sparse": f"{sparse['topology']} {sparse.get('actor_sparsity')}/{sparse.get('critic_sparsity')}",
            "round": f"ticket round {self.round}",
            "control": f"round {self.round} {self.name}",
            "variant": f"from {ticket.env if ticket else 'nowhere'}: {self.name}",
        }[self.kind]
        return label if algo == ALGORITHM else f"{algo} {label}"

    def sparsity(self, kind: str) -> float:
        """Sparsity of the "actor" or the "critic" of a finished run."""
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
    folders: dict[Path, Path] = {}
    runs: list[SavedRun] = []
    containers: list[Container] = []
    problems: list[str] = []
    for path in paths:
        try:
            for each in _inside(path):
                folders.setdefault(each.resolve(), each)
        except ConfigError as error:
            problems += error.problems
    for path in folders.values():
        try:
            identity, manifest = identify(path)
            if identity.kind in CONTAINERS:
                containers.append(Container(path, identity.kind, (path / SUMMARY).exists()))
            else:
                runs.append(_run(path, identity, manifest))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return runs, containers


def _inside(path: Path) -> list[Path]:
    """The folder, and if it holds several runs every run folder in it, in the order of their beginnings."""
    if identify(path)[0].kind not in CONTAINERS:
        return [path]
    root = index.root_of(path)
    at, listed = index.relative(path, root), [Path(each.path) for each in index.entries(root)]
    if Path(at) not in listed:  # another study's root, which knows nothing of it
        at, listed = ".", [Path(each.path) for each in index.entries(path)]
    inside = [path / each.relative_to(at) for each in listed if each.is_relative_to(at)]
    return [each for each in inside if (each / MANIFEST).is_file()]


def identify(path: Path) -> tuple[Identity, dict[str, Any]]:
    """What ``read_identity`` returns, remembered while the file is the same. Nobody may change it."""
    file = path / MANIFEST
    now = file.stat() if file.is_file() else None
    return _remembered(path, now and (now.st_mtime_ns, now.st_size, now.st_ino))


# To parse YAML takes long, and all runs of a study name the same few sources.
@lru_cache(maxsize=4096)
def _remembered(path: Path, _: object) -> tuple[Identity, dict[str, Any]]:
    return read_identity(path)


def find_source(path: Path, source: SourceRef) -> Path | None:
    """The run folder that a run begins from, also where the two were moved together or only the run was.

    path: the folder of the run. Raises ConfigError if the source's configuration was changed since.
    """
    here, root, wanted = path.resolve(), index.root_of(path), source.config_hash
    candidates = [folder / source.path for folder in (here, *here.parents)]
    if (root / index.INDEX).exists():
        candidates += [root / each.path for each in index.entries(root) if each.config_hash == wanted]
    candidates.append(Path(str(identify(path)[0].config.get("from", ""))))
    for candidate in candidates:
        if not (candidate / MANIFEST).is_file():
            continue
        try:
            if identify(candidate)[1]["config_hash"] == wanted:
                return Path(os.path.normpath(candidate))
        except ConfigError:
            if read_manifest(candidate).get("config_hash") == wanted:
                raise  # and else it is another run than the one that is looked for
    return None


def _run(path: Path, identity: Identity, manifest: dict[str, Any]) -> SavedRun:
    summary = _summary(path)
    source = identity.source("dense") if identity.kind in ("round", "control") else None
    return SavedRun(
        **vars(identity),
        path=path,
        manifest=manifest,
        summary=summary,
        evaluations=read_rows(path / EVALUATIONS) if (path / EVALUATIONS).exists() else [],
        topology=read_rows(path / TOPOLOGY) if (path / TOPOLOGY).exists() else [],
        dense=_summary(find_source(path, source)) if source else None,
        **(_networks(path, manifest["config_hash"]) if summary else {}),
    )


def _summary(path: Path | None) -> Mapping[str, Any] | None:
    return read_summary(path, _RESULTS) if path is not None and (path / SUMMARY).exists() else None


def _networks(path: Path, config_hash: str) -> dict[str, Any]:
    """What a finished run has learned, and its masks; a full one, which prunes nothing, is empty."""
    final = artifacts.load(path, "final", config_hash).arrays
    masks = {kind: network(final, kind, "masks") for kind in NETWORKS}
    masks = {kind: {} if all(leaf.all() for leaf in mask.values()) else mask for kind, mask in masks.items()}
    parameters = {kind: network(final, kind) for kind in NETWORKS}
    averages = {kind: network(final, kind, "averages") for kind in NETWORKS}
    for kind in NETWORKS:
        try:
            mask_functions.check_matches(masks[kind], parameters[kind])
        except ValueError as error:
            raise ConfigError([f"the mask of {str(path)!r}, {kind}: {error}"]) from error
    try:
        count, mean, squares = (final[f"normalizer/{name}"] for name in ("count", "mean", "squares"))
    except KeyError as error:
        raise ConfigError([f"artifact 'final' of {str(path)!r} has no {error}"]) from None
    moments = Moments(int(count), mean, squares)
    return {"masks": masks, "parameters": parameters, "averages": averages, "moments": moments}
