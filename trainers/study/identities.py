"""What the stages of a study are: their whole configuration, and the runs that they begin from."""

from dataclasses import replace
from pathlib import Path

from fastcollect import ConfigError
from fastcollect.support.plain import plain
from trainers.config.sparse import SparseConfig
from trainers.config.training import PruneConfig, RewindConfig, StudyConfig, TrainConfig
from trainers.store.identity import Identity
from trainers.store.index import reference, root_of
from trainers.store.manifest import MANIFEST, read_identity
from trainers.store.reader import find_source
from trainers.study.rewind import Source, open_source


def study_identity(study: StudyConfig) -> Identity:
    """The identity of a whole study."""
    return Identity(kind="study", config={"stage": "all", **plain(study)})


def sparse_identity(config: TrainConfig, sparse: SparseConfig) -> Identity:
    """The identity of a run that is sparse from the start."""
    return Identity(kind="sparse", config={"stage": "sparse", **plain(config), "sparse": plain(sparse)})


def ticket_identity(
    config: TrainConfig, prune: PruneConfig, matrix: RewindConfig, source: Source, root: Path
) -> Identity:
    """The identity of a ticket. source: its dense run. root: of its study, see ``study_root``."""
    parts = {"prune": plain(prune), "rewind": plain(matrix)}
    content = {"stage": "ticket", "from": source.path, **plain(config), **parts}
    return Identity(kind="ticket", config=content, sources=(reference("dense", source.path, root),))


def transfer_identity(
    config: TrainConfig, matrix: RewindConfig, ticket: Source, dense: Source, root: Path
) -> Identity:
    """The identity of a transfer. dense: the run that the ticket was drawn from. root: of its study."""
    parts = {"rewind": {"parameters": matrix.parameters}}
    content = {"stage": "transfer", "from": ticket.path, **plain(config), **parts}
    sources = (reference("ticket", ticket.path, root), reference("dense", dense.path, root))
    return Identity(kind="transfer", config=content, sources=sources)


def study_root(path: Path) -> Path:
    """The root of the study that a stage's folder is in, which is its own if it is yet to be made."""
    return root_of(path) if (path / MANIFEST).is_file() else path


def open_kind(path: Path, kind: str) -> Source:
    """A finished run of this kind. Raises ConfigError where it is none."""
    found = read_identity(path)[0].kind
    if found != kind:
        raise ConfigError([f"--from {str(path)!r} is a {found} run; allowed: a {kind} run"])
    return open_source(str(path))


def drawn_from(ticket: Source) -> Source:
    """The dense run of a ticket, also where both were moved together. Raises ConfigError if it is gone."""
    named = read_identity(ticket.path)[0].source("dense")
    if named is None:
        raise ConfigError([f"the manifest of {ticket.path!r} does not name its dense run"])
    found = find_source(Path(ticket.path), named)
    if found is None:
        raise ConfigError([f"the dense run {named.path!r} of the ticket {ticket.path!r} is gone or another"])
    return open_source(str(found))


def default_path(runs: Path, identity: Identity, name: str | None = None) -> Path:
    """The folder of a run for which none was named; the hash keeps other configurations apart.

    One that is there by the defaults of its time is found.
    """
    safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in name or identity.env)
    stage = identity.config["stage"]
    hashes = [replace(identity, defaults=version).hash()[:8] for version in range(identity.defaults, 0, -1)]
    paths = [runs / safe / f"{stage}-seed{identity.seed}-{each}" for each in hashes]
    return next((path for path in paths if (path / MANIFEST).is_file()), paths[0])
