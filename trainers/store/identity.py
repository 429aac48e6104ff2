"""What a run is, and the hash that names it.

A hash covers the version of the defaults, the settings that differ from them, the run's place in its study
and the hashes of the runs that it begins from. It does not cover where anything lies.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fastcollect.support.errors import ConfigError
from fastcollect.support.plain import plain
from trainers.config.defaults import VERSION, defaults, differences
from trainers.config.training import TrainConfig

KINDS = ("study", "dense", "sparse", "ticket", "round", "control", "transfer", "variant")
"""A study holds dense runs, tickets, transfers; a ticket its rounds and controls; a transfer its variants."""
CONTAINERS = ("study", "ticket", "transfer")
"""Kinds that are no training run themselves."""
_NOT_SETTINGS = ("stage", "seed", "from", "controls", "control_rounds")
"""What may differ between runs that are repetitions of each other."""


@dataclass(frozen=True, kw_only=True)
class SourceRef:
    """A run that another one begins from.

    role: "dense" or "ticket". path: that of its folder, relative to the root of the study that refers to it.
    config_hash, settings, env: those of the run.
    """

    role: str
    path: str
    config_hash: str
    settings: str
    env: str


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a run is.

    kind: one of KINDS. config: the whole configuration, plain data that ``--config`` takes. name: that of a
    control or variant. round: the number of a round or control, counted from 1. defaults: the version of the
    defaults that its hash is made with.
    """

    kind: str
    config: Mapping[str, Any]
    name: str = ""
    round: int = 0
    sources: tuple[SourceRef, ...] = ()
    defaults: int = VERSION

    @property
    def env(self) -> str:
        """The environment's name; a study has that of its first runs."""
        return str(self.config.get("env", ""))

    @property
    def seed(self) -> int:
        """The run's own seed."""
        return int(self.config.get("seed", 0))

    def source(self, role: str) -> SourceRef | None:
        """The run of this role that it begins from, if there is one."""
        return next((each for each in self.sources if each.role == role), None)

    def hash(self) -> str:
        """16 digits that name the run. Raises ConfigError for a configuration that is not plain data."""
        sources = [[each.role, each.config_hash, each.settings, each.env] for each in self.sources]
        place = [self.kind, self.name, self.round]
        return _digest([self.defaults, self._differences(("from",)), place, sources])

    def settings(self) -> str:
        """6 digits that repetitions with other seeds share: of their settings, and of their sources'."""
        sources = [each.settings for each in self.sources]
        return _digest([self.defaults, self._differences(_NOT_SETTINGS), sources])[:6]

    def _differences(self, but: tuple[str, ...]) -> dict[str, Any]:
        kept = {key: value for key, value in self.config.items() if key not in but}
        return differences(kept, defaults(str(kept.get("algo", TrainConfig.algo)), self.defaults))

    def facts(self) -> dict[str, Any]:
        """What a manifest says of it beside the configuration."""
        own = {"kind": self.kind, "name": self.name, "round": self.round, "env": self.env, "seed": self.seed}
        return {"defaults": self.defaults, "run": own, "sources": [asdict(each) for each in self.sources]}

    @classmethod
    def of(cls, config: Mapping[str, Any], manifest: Mapping[str, Any]) -> "Identity":
        """The inverse of ``facts``. Raises KeyError, TypeError or ValueError for what is no manifest's."""
        run = manifest["run"]
        if run["kind"] not in KINDS or type(run["round"]) is not int or not isinstance(run["name"], str):
            raise ValueError(f"its run is {run!r}")
        sources = tuple(SourceRef(**{k: str(v) for k, v in each.items()}) for each in manifest["sources"])
        place = {name: run[name] for name in ("kind", "name", "round")}
        return cls(config=config, sources=sources, defaults=manifest["defaults"], **place)


def dense_identity(config: TrainConfig) -> Identity:
    """The identity of a dense run with this configuration."""
    return Identity(kind="dense", config={"stage": "dense", **plain(config)})


def as_json(content: Any, what: str = "the configuration", **form: Any) -> str:
    """The content as JSON of this form. Raises ConfigError saying what is not plain data."""
    try:
        return json.dumps(content, **form)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError([f"{what} is not plain data: {error}"]) from None


def _digest(content: Any) -> str:
    text = as_json(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
