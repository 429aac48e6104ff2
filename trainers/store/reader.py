"""Training runs as others read them: found in run folders of any stage, with every hash checked."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from engine.normalizer import Moments
from engine.sparse import masks as mask_functions
from fastcollect.support.errors import ConfigError
from trainers.run.metrics import EVALUATIONS, read_rows
from trainers.store import artifacts
from trainers.store.folder import (
    MANIFEST,
    SUMMARY,
    config_hash,
    read_identity,
    read_manifest,
    read_summary,
)
from trainers.store.states import NETWORKS, weights
from trainers.study.transfer import VARIANTS

_ROUND = re.compile(r"round-(\d+)(?:-(.+))?")
_STAGES = ("dense", "ticket", "transfer", "all")
_ORDER = ("dense", "ticket", "control", "transfer")
_NOT_SETTINGS = ("stage", "seed", "from", "controls", "control_rounds")
"""What may differ between runs that are repetitions of each other."""

_RESULTS = (
    *("success_any", "success_last", "return_mean", "best.success_any", "best.success_last"),
    *("best.return_mean", "reached", "env_steps", "updates", "updates_per_step", "wall_seconds"),
    *("training_seconds", "stopped_early", "density.actor", "density.critic"),
)
"""What the summary of a training run must say."""


@dataclass(frozen=True)
class Run:
    """One training run.

    stage: "dense", "ticket", "control" or "transfer". name: of the control or variant. round: of a ticket or
    control. settings: hash of all settings but the seed, those of the runs it begins from included. dense:
    summary of the dense run that a ticket or control comes from, None if that cannot be found. summary: None
    while it is unfinished, and then masks and parameters are empty. masks, parameters: {"actor", "critic"}.
    moments: the normaliser's.
    """

    path: Path
    stage: str
    env: str
    seed: int
    settings: str
    config: Mapping[str, Any]
    manifest: Mapping[str, Any]
    summary: Mapping[str, Any] | None
    evaluations: Sequence[Mapping[str, Any]]
    name: str = ""
    round: int = 0
    origin: str = ""
    dense: Mapping[str, Any] | None = None
    masks: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    parameters: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    moments: Moments = field(default_factory=lambda: Moments.empty(0))

    @cached_property
    def label(self) -> str:
        """What the run is, whatever its seed."""
        return {
            "dense": "dense",
            "ticket": f"ticket round {self.round}",
            "control": f"round {self.round} {self.name}",
            "transfer": f"from {self.origin}: {self.name}",
        }[self.stage]

    def sparsity(self, kind: str) -> float:
        """Of the "actor" or the "critic" of a finished run."""
        return mask_functions.sparsity(self.masks[kind])


@dataclass(frozen=True)
class Folder:
    """A run folder of a stage, with training runs inside."""

    path: Path
    stage: str
    finished: bool


@dataclass(frozen=True)
class Group:
    """Repetitions of one run with several seeds, one run of each.

    repeated: further runs of those seeds, which count for nothing.
    """

    env: str
    stage: str
    label: str
    settings: str
    runs: tuple[Run, ...]
    repeated: tuple[Run, ...] = ()

    @property
    def finished(self) -> list[Run]:
        """Those that have their results."""
        return [run for run in self.runs if run.summary is not None]

    @property
    def first(self) -> Run:
        """Any of them, for what they have in common."""
        return self.runs[0]

    def seeds(self, runs: Sequence[Run] | None = None) -> str:
        """How many, in words."""
        count = len(self.runs if runs is None else runs)
        return f"{count} seed" + "s" * (count != 1)


def load(paths: Sequence[Path]) -> tuple[list[Run], list[Folder]]:
    """Every training run in these run folders, each once, and the folders of stages they are in.

    Raises ConfigError naming every folder that is none of ours, was changed or cannot be read.
    """
    runs: dict[Path, Run] = {}
    folders: dict[Path, Folder] = {}
    problems: list[str] = []
    for path in paths:
        try:
            _load(path, runs, folders)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return list(runs.values()), list(folders.values())


def group(runs: Sequence[Run]) -> list[Group]:
    """Runs that differ in nothing but their seed, together, in the order of a study.

    Of several runs of one seed the first finished one is taken: the others are no further seeds.
    """
    envs = list(dict.fromkeys(run.env for run in runs))
    found: dict[tuple, list[Run]] = {}
    for run in sorted(runs, key=lambda r: (envs.index(r.env), _ORDER.index(r.stage), r.round, r.seed)):
        found.setdefault((run.env, run.stage, run.label, run.settings), []).append(run)
    several = {(env, label): 0 for env, _, label, _ in found}
    for env, _, label, _ in found:
        several[env, label] += 1
    return [
        Group(env, stage, label + f" [{settings}]" * (several[env, label] > 1), settings, *_seeds(members))
        for (env, stage, label, settings), members in found.items()
    ]


def _seeds(runs: Sequence[Run]) -> tuple[tuple[Run, ...], tuple[Run, ...]]:
    """One run of each seed, and the others."""
    chosen: dict[int, Run] = {}
    for run in runs:
        if run.seed not in chosen or (chosen[run.seed].summary is None and run.summary is not None):
            chosen[run.seed] = run
    taken = {id(run) for run in chosen.values()}
    return tuple(chosen.values()), tuple(run for run in runs if id(run) not in taken)


def identity(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Configuration and manifest of a run folder. Raises ConfigError if it is none, or was changed."""
    config, manifest = _read(path)
    if config.get("stage") not in _STAGES:
        raise ConfigError([f"{str(path)!r} is no folder of a training run: its stage is not one of ours"])
    return config, manifest


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """As ``read_identity``, what it returned before if the file is the same. Not to be changed."""
    if not (path / MANIFEST).is_file():
        return read_identity(path)
    found = (path / MANIFEST).stat()
    return _remembered(path, found.st_mtime_ns, found.st_size, found.st_ino)


# To parse YAML takes long, and all runs of a study name the same few sources.
@lru_cache(maxsize=4096)
def _remembered(path: Path, *_: int) -> tuple[dict[str, Any], dict[str, Any]]:
    return read_identity(path)


def find_source(path: Path, source: Mapping[str, Any]) -> Path | None:
    """The run folder that a manifest names: where it says, or beside a parent that was moved with it.

    Raises ConfigError if its configuration was changed since.
    """
    named = Path(source["path"])
    beside = [parent / named.name for parent in path.resolve().parents]
    for candidate in (named, *beside):
        if not (candidate / MANIFEST).is_file():
            continue
        try:
            there = _read(candidate)[1]["config_hash"]
        except ConfigError:
            if read_manifest(candidate).get("config_hash") == source["config_hash"]:
                raise
            continue  # another run than the one that is looked for
        if there == source["config_hash"]:
            return candidate
    return None


def _settings(path: Path, config: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    """Hash of what repetitions have in common: a run's own settings, and those of what it begins from."""
    own = {key: value for key, value in config.items() if key not in _NOT_SETTINGS}
    source = _named_source(path, manifest)
    if source is not None:
        found = find_source(path, source)
        # Nobody knows how a source that is gone was made, and so nothing else is its repetition.
        own["from"] = _settings(found, *_read(found)) if found else source["config_hash"]
    return config_hash(own)[:6]


def _named_source(path: Path, manifest: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What a run begins from: for a ticket the dense run, for a transfer the ticket, else nothing."""
    facts = manifest["facts"]
    if not facts and (path.resolve().parent / MANIFEST).is_file():
        # Killed before it wrote its facts; the stage around it has them.
        around = _read(path.resolve().parent)[1]
        facts = around["facts"] if around["config_hash"] == manifest["config_hash"] else {}
    return facts.get("source") or facts.get("sources", {}).get("ticket")


def stage_of(path: Path, config: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    """ "dense", "ticket", "transfer" or "all"; "round" or "variant" for a run inside one of them."""
    if "stage" in manifest["facts"]:
        return manifest["facts"]["stage"]
    # A run that was killed before it wrote its facts has its folder's name only.
    name = path.resolve().name
    if config["stage"] == "ticket" and _ROUND.fullmatch(name):
        return "round"
    if config["stage"] == "transfer" and name in VARIANTS:
        return "variant"
    return config["stage"]


def _load(path: Path, runs: dict[Path, Run], folders: dict[Path, Folder]) -> None:
    config, manifest = identity(path)
    stage = stage_of(path, config, manifest)
    if stage in ("dense", "round", "variant"):
        if path.resolve() not in runs:
            runs[path.resolve()] = _run(path, stage, config, manifest)
        return
    inside = list(_inside(path, stage, config))
    folders[path.resolve()] = Folder(path, stage, (path / SUMMARY).exists())
    problems: list[str] = []
    for child in inside:
        try:
            _load(child, runs, folders)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)


def _inside(path: Path, stage: str, config: Mapping[str, Any]) -> Iterator[Path]:
    if stage == "all":
        # A study's order: the tasks that tickets are drawn on before those they are transferred to.
        order = {name: i for i, name in reversed([*enumerate((*config["tasks"], *config["targets"]))])}
        found = sorted(file.parent for file in path.glob(f"*/seed-*/*/{MANIFEST}"))
        yield from sorted(found, key=lambda p: order.get(p.parents[1].name, len(order)))
    elif stage == "ticket":
        rounds = [p for p in path.glob("round-*") if _ROUND.fullmatch(p.name) and (p / MANIFEST).exists()]
        yield from sorted(rounds, key=lambda p: (int(_ROUND.fullmatch(p.name)[1]), p.name))
    else:
        yield from (path / name for name in VARIANTS if (path / name / MANIFEST).exists())


def _run(path: Path, stage: str, config: dict[str, Any], manifest: dict[str, Any]) -> Run:
    evaluations = read_rows(path / EVALUATIONS) if (path / EVALUATIONS).exists() else []
    summary = read_summary(path, _RESULTS) if (path / SUMMARY).exists() else None
    try:
        return Run(
            path=path,
            env=config["env"],
            seed=config["seed"],
            settings=_settings(path, config, manifest),
            config=config,
            manifest=manifest,
            summary=summary,
            evaluations=evaluations,
            **_place(path, stage, config, manifest),
            **(_networks(path, manifest) if summary is not None else {}),
        )
    except KeyError as error:
        raise ConfigError([f"{str(path)!r} cannot be read as a training run: it has no {error}"]) from None


def _place(path: Path, stage: str, config: Mapping[str, Any], manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Where in a study the run belongs."""
    facts = manifest["facts"]
    if stage == "dense":
        return {"stage": "dense"}
    if stage == "round":
        number, control = _ROUND.fullmatch(path.resolve().name).groups()
        source = find_source(path, facts["source"]) if "source" in facts else None
        finished = source is not None and (source / SUMMARY).exists()
        dense = read_summary(source, _RESULTS) if finished else None
        kind = "control" if control else "ticket"
        return {"stage": kind, "round": int(number), "name": control or "", "dense": dense}
    source = find_source(path, facts["sources"]["ticket"]) if "sources" in facts else None
    origin = _read(source)[0]["env"] if source is not None else config["from"]
    return {"stage": "transfer", "name": path.resolve().name, "origin": origin}


def _networks(path: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What a finished run has learned, and its masks."""
    final = artifacts.load(path, "final", manifest["config_hash"]).arrays
    masks = {kind: weights(final, kind, "masks") for kind in NETWORKS}
    parameters = {kind: weights(final, kind) for kind in NETWORKS}
    for kind in NETWORKS:
        try:
            mask_functions.check_matches(masks[kind], parameters[kind])
        except ValueError as error:
            raise ConfigError([f"artifact 'mask' of {str(path)!r}, {kind}: {error}"]) from error
    count, mean, squares = (final[f"normalizer/{name}"] for name in ("count", "mean", "squares"))
    return {"masks": masks, "parameters": parameters, "moments": Moments(int(count), mean, squares)}
