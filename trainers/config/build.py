"""Configurations from plain data, merged: defaults < task file < topology < source < config file < flags.

Every layer is a nested mapping of plain data. ``combine`` is the one place that knows their order and what
one environment or algorithm does not take over from another; ``build`` checks every value against the type of
its field.
"""

import dataclasses
import os
import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from engine.algorithms import CONFIGS
from fastcollect.support.errors import ConfigError
from trainers.config import yaml_file
from trainers.config.defaults import defaults, differences
from trainers.config.sparse import topology_settings
from trainers.config.training import TrainConfig

TASKS = Path(__file__).parent / "tasks"
_BUDGET = ("env_steps", "evaluation")
"""What one environment's run does not take over from another's."""
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", Path: "a path"}


@dataclass(frozen=True)
class Layer:
    """The settings that one place gives. origin: the place, in words for errors."""

    origin: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Merged:
    """Settings of several layers. origins: where each comes from, by dotted name; defaults are absent."""

    settings: dict[str, Any]
    origins: dict[str, str]

    def explained(self, problems: Sequence[str]) -> list[str]:
        """Problems that begin with the dotted name of a setting, with the place that it comes from."""
        origins = [self.origins.get(re.split(r"[\s\[;]", each, maxsplit=1)[0]) for each in problems]
        return [f"{p} (given by {o})" if o else p for p, o in zip(problems, origins, strict=True)]


def combine(*, flags: Layer, file: Layer | None = None, source: Layer | None = None) -> Merged:
    """The settings of one run, without those that are nothing but defaults.

    source: the whole configuration of the run that this one begins from; what is about training in it is
    taken over, and to what its weights were rewound. Another environment takes over only what the source
    has neither by default nor from its own task file, and no budget; another algorithm none of its settings.
    Raises ConfigError for a task file that cannot be read.
    """
    inherited = {} if source is None else _inherited(source.settings)
    upper = [each for each in (file, flags) if each is not None]
    named = {"env": TrainConfig.env, "algo": TrainConfig.algo, **inherited}
    for each in upper:
        named |= each.settings
    env, algo = str(named["env"]), str(named["algo"])
    layers = [task_layer(env, algo)]
    if named.get("stage") == "sparse":
        chosen = topology_settings(algo, merge(*layers, *upper).settings)
        layers.append(Layer("what the topology brings", chosen))
    if source is not None:
        if env != inherited.get("env", env):
            inherited = _chosen(inherited)
        if algo != inherited.get("algo", algo):
            inherited.pop("algorithm", None)
        layers.append(Layer(source.origin, inherited))
    return merge(*layers, *upper)


def _inherited(config: Mapping[str, Any]) -> dict[str, Any]:
    names = {each.name for each in dataclasses.fields(TrainConfig)}
    rewind = config.get("rewind") or {}
    kept = {name: rewind[name] for name in ("parameters", "rescale_fresh") if name in rewind}
    return {k: v for k, v in config.items() if k in names} | ({"rewind": kept} if kept else {})


def _chosen(inherited: Mapping[str, Any]) -> dict[str, Any]:
    """What another environment's run takes over: what somebody chose who did not mean this task's own."""
    algo = inherited.get("algo", TrainConfig.algo)
    task = task_layer(inherited["env"], algo)
    kept = differences(inherited, merge(Layer("", defaults(algo)), task).settings)
    own = _texts(task.settings.get("env_kwargs"))
    kept["env_kwargs"] = [each for each in _texts(inherited.get("env_kwargs")) if each not in own]
    return {key: value for key, value in kept.items() if key not in _BUDGET} | {"algo": algo}


def merge(*layers: Layer) -> Merged:
    """Nested mappings are merged name by name, and so are the texts name=value of ``env_kwargs``.

    Everything else of a later layer takes the place of the earlier one's.
    """
    settings: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for layer in layers:
        _add(settings, origins, layer.settings, layer.origin, "")
    return Merged(settings, origins)


def _add(into: dict[str, Any], origins: dict[str, str], new: Mapping[str, Any], origin: str, at: str) -> None:
    for key, value in new.items():
        name = f"{at}{key}"
        if isinstance(value, Mapping):
            if not isinstance(into.get(key), dict):
                into[key] = {}
            _add(into[key], origins, value, origin, f"{name}.")
            continue
        if name == "env_kwargs":
            # One more does not take away the others.
            named = {text.partition("=")[0]: text for text in (*_texts(into.get(key)), *_texts(value))}
            value = list(named.values())
        into[key], origins[name] = value, origin


def task_layer(env: str, algo: str) -> Layer:
    """What differs for one environment: ``tasks/ENV.yaml``, if there is one, with this algorithm's part."""
    # By the list, as an environment's name may be an import path or anything else that is no file's name.
    if f"{env}.yaml" not in os.listdir(TASKS):
        return Layer("no task file")
    settings = yaml_file.read(TASKS / f"{env}.yaml")
    own = settings.pop("algorithm", {}).get(algo)
    return Layer(
        f"the task file {str(TASKS / f'{env}.yaml')!r}", settings | ({"algorithm": own} if own else {})
    )


def _texts(value: Any) -> list[str]:
    values = value if isinstance(value, (list, tuple)) else [value]
    return [str(each) for each in values if each is not None]


def build(cls: type, merged: Merged, **missing: Any) -> Any:
    """An instance of the dataclass with these settings; what they do not name keeps its default.

    missing: values of fields without a default that may be unnamed. Raises ConfigError naming every name
    that no field has and every value of another type, with what is allowed and where it was given.
    """
    problems: list[str] = []
    settings, kinds = merged.settings, get_type_hints(cls)
    algo = settings.get("algo", getattr(cls, "algo", None))
    if algo in CONFIGS:
        # Which class the settings of an algorithm have depends on a value, not on a type.
        settings, kinds = {"algorithm": {}, **settings}, {**kinds, "algorithm": CONFIGS[algo]}
    values = {**missing, **_values(kinds, settings, "", problems)}
    if problems:
        raise ConfigError(merged.explained(problems))
    return cls(**values)


def _values(
    kinds: Mapping[str, Any], settings: Mapping[str, Any], at: str, problems: list[str]
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in settings.items():
        name, kind = f"{at}{key}", kinds.get(key)
        if kind is None:
            problems.append(f"{name} is no setting; allowed: {', '.join(kinds)}")
        elif dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
            inner = _values(get_type_hints(kind), value, f"{name}.", problems)
            values[key] = None if problems else kinds[key](**inner)
        else:
            try:
                values[key] = _value(kind, value)
            except TypeError as error:
                problems.append(f"{name} is {value!r}; allowed: {error}")
    return values


def _value(kind: Any, value: Any) -> Any:
    """The value as a field of this type holds it. Raises TypeError saying what is allowed."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        (other,) = (each for each in inner if each is not type(None))
        return None if value is None else _value(other, value)
    if origin is Literal:
        if value not in inner:
            raise TypeError(", ".join(map(str, inner)))
        return value
    if origin is tuple:
        values = value if isinstance(value, (list, tuple)) else [value]
        return tuple(_value(inner[0], each) for each in values)
    if kind is float and type(value) is int:
        return float(value)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if type(value) is not kind:
        raise TypeError(_WORDS.get(kind, "settings with names of their own"))
    return value


def with_algorithm(cls: type, algo: str) -> type:
    """The class, with the settings of one algorithm in the field ``algorithm``.

    Raises ConfigError if there is none of that name.
    """
    if algo not in CONFIGS:
        raise ConfigError([f"algo is {algo!r}; allowed: {', '.join(CONFIGS)}"])
    own = [
        ("algo", Literal[tuple(CONFIGS)], field(default=algo)),
        ("algorithm", CONFIGS[algo], field(default_factory=CONFIGS[algo])),
    ]
    doc = {"__doc__": cls.__doc__}
    return dataclasses.make_dataclass(
        cls.__name__, own, bases=(cls,), namespace=doc, frozen=True, kw_only=True
    )
