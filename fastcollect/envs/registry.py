"""From an environment's name to a ``BatchedEnv``.

A config is resolved once, in the parent process, to one whose ``entry_point`` is a factory of batched
environments; that one travels to the workers, by value or by import path, and builds the same
environments there whatever was registered in the parent. Nothing here imports a simulator.
"""

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fastcollect.envs.base import BatchedEnv
from fastcollect.support.errors import ConfigError

GYM = "fastcollect.envs.gym:make"
GYM_VECTOR = "fastcollect.envs.gym_vector:make"
METAWORLD = "fastcollect.envs.metaworld:make"
_PREFIXES = {
    "envpool": ("fastcollect.envs.envpool:make", "env_id"),
    "gameboy": ("fastcollect.envs.gameboy:make", "cartridge"),
}
"""By prefix, the factory, and its argument that the rest of the name is."""
CRAFTER = {
    "CrafterNoReward-v1": "fastcollect.envs.crafter:make_no_reward",
    "CrafterReward-v1": "fastcollect.envs.crafter:make",
}
NATIVE = {
    "Ant-v5": "fastcollect.envs.ant:make",
    "CartPole-v1": "fastcollect.envs.cartpole:make",
    **CRAFTER,
    "HalfCheetah-v5": "fastcollect.envs.halfcheetah:make",
    "Hopper-v5": "fastcollect.envs.hopper:make",
    "Walker2d-v5": "fastcollect.envs.walker2d:make",
}
# Meta-World's fifty tasks by name, because asking Meta-World for them loads the simulator.
_METAWORLD = """
assembly basketball bin-picking box-close button-press button-press-topdown
button-press-topdown-wall button-press-wall coffee-button coffee-pull coffee-push dial-turn
disassemble door-close door-lock door-open door-unlock drawer-close drawer-open faucet-close
faucet-open hammer hand-insert handle-press handle-press-side handle-pull handle-pull-side
lever-pull peg-insert-side peg-unplug-side pick-out-of-hole pick-place pick-place-wall plate-slide
plate-slide-back plate-slide-back-side plate-slide-side push push-back push-wall reach reach-wall
shelf-place soccer stick-pull stick-push sweep sweep-into window-close window-open
"""
METAWORLD_TASKS = tuple(f"{name}-v3" for name in _METAWORLD.split())
_ADAPTER_OPTIONS = {
    GYM: ("env_kwargs", "per_env_kwargs", "has_success", "time_limit", "record_actions"),
    GYM_VECTOR: ("env_kwargs", "has_success", "honours_reset_mask"),
}
_registered: dict[str, "EnvConfig"] = {}


@dataclass(frozen=True, kw_only=True)
class EnvConfig:
    """Which environment to run.

    id: a name of ``available()``: a native one ("reach-v3", "CartPole-v1"), or any registered
        gymnasium id ("Pendulum-v1", "module:EnvId"). "gym:ID" forces the stock gymnasium environments,
        "vector:ID" gymnasium's own vectorised ones, "envpool:NAME" EnvPool's, "gameboy:PATH" a Game Boy
        cartridge. "package.module:Name" names an environment class or factory. With an entry_point,
        only a label.
    kwargs: keyword arguments of the environment. Those of the gymnasium adapters are taken out:
        env_kwargs, per_env_kwargs (one mapping for each environment), has_success, time_limit,
        record_actions; see ``fastcollect.envs.gym.make``.
    entry_point: a class or factory, or its import path "package.module:Name": of gymnasium
        environments, of a gymnasium VectorEnv class, or of batched environments (recognised by a
        parameter named ``seeds``).
    """

    id: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    entry_point: str | Callable[..., Any] | None = None


class UnknownEnvError(ConfigError):
    """No environment has this name; ``nearest`` holds similar ones that exist."""

    def __init__(self, name: str, nearest: Iterable[str] = (), reason: str = "") -> None:
        self.name, self.nearest, self.reason = name, list(nearest), reason
        text = f"unknown environment {name!r}"
        if reason:
            text += f" ({reason})"
        if self.nearest:
            text += f"; did you mean {' or '.join(map(repr, self.nearest))}?"
        super().__init__([text])

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name, self.nearest, self.reason)


def register(name: str, entry_point: str | Callable[..., Any], **kwargs: Any) -> None:
    """Give an entry point (and default keyword arguments) a name, in this process.

    Raises ValueError where the name is taken.
    """
    if name in _registered or name in NATIVE or name in METAWORLD_TASKS:
        raise ValueError(f"the environment name {name!r} is taken")
    _registered[name] = EnvConfig(id=name, kwargs=kwargs, entry_point=entry_point)


def available() -> list[str]:
    """Every name that resolves without a prefix or a path: registered, native, gymnasium's; sorted."""
    import gymnasium

    return sorted({*_registered, *NATIVE, *METAWORLD_TASKS, *gymnasium.registry})


def nearest(name: str, names: Iterable[str], count: int = 3) -> list[str]:
    """The names most like ``name``, best first, whatever their case; empty where none is like it."""
    by_key: dict[str, str] = {}
    for known in names:
        by_key.setdefault(known.lower(), known)
    return [by_key[key] for key in difflib.get_close_matches(name.lower(), by_key, n=count, cutoff=0.55)]


def suggest(name: str) -> list[str]:
    """Up to three available names like ``name``, best first."""
    return nearest(name, available())


def resolve(config: EnvConfig) -> EnvConfig:
    """The same environment with ``entry_point`` a factory of batched environments (a path, if it was one).

    Resolving twice changes nothing. Raises UnknownEnvError, and passes on what importing a named
    module raises.
    """
    name, kwargs = config.id, dict(config.kwargs)
    if config.entry_point is not None:
        return _resolve_entry_point(config)
    if name in _registered:
        known = _registered[name]
        return _resolve_entry_point(replace(known, kwargs={**known.kwargs, **kwargs}))
    if name in NATIVE:
        return replace(config, entry_point=NATIVE[name])
    if name in METAWORLD_TASKS:
        return replace(config, entry_point=METAWORLD, kwargs={**kwargs, "task": name})
    prefix, _, rest = name.partition(":")
    if rest and prefix in _PREFIXES:
        factory, argument = _PREFIXES[prefix]
        return replace(config, entry_point=factory, kwargs={**kwargs, argument: rest})
    if rest and prefix in ("gym", "vector"):
        return _resolve_gym_id(config, rest, GYM if prefix == "gym" else GYM_VECTOR)
    if name.startswith("."):
        raise UnknownEnvError(name, reason="a module's path is absolute")
    if rest and _names_attribute(name):
        return _resolve_entry_point(replace(config, entry_point=name))
    return _resolve_gym_id(config, name, GYM)


def _resolve_gym_id(config: EnvConfig, env_id: str, adapter: str) -> EnvConfig:
    import gymnasium

    try:
        spec = gymnasium.spec(env_id)
    except (gymnasium.error.Error, ValueError) as exc:
        raise UnknownEnvError(config.id, suggest(env_id)) from exc
    except ModuleNotFoundError as exc:
        if exc.name != env_id.partition(":")[0]:
            raise
        raise UnknownEnvError(config.id, suggest(env_id), reason=str(exc)) from exc
    if adapter == GYM_VECTOR and spec.vector_entry_point is None:
        raise UnknownEnvError(config.id, [f"gym:{env_id}"], reason="it has no vectorised version")
    # A registration made by hand exists in this process only, so the registration itself travels.
    source = spec.entry_point if adapter == GYM else spec.vector_entry_point
    shipped = isinstance(source, str) and source.startswith("gymnasium.")
    travels = env_id if shipped or ":" in env_id else spec
    return _adapted(config, adapter, env_id=travels)


def _adapted(config: EnvConfig, adapter: str, **target: Any) -> EnvConfig:
    """A config's flat kwargs split into the adapter's own options and the environment's arguments."""
    rest, own = dict(config.kwargs), _ADAPTER_OPTIONS[adapter]
    options = {key: rest.pop(key) for key in config.kwargs if key in own}
    options["env_kwargs"] = {**rest, **options.get("env_kwargs", {})}
    return replace(config, entry_point=adapter, kwargs={**target, **options})


def _names_attribute(path: str) -> bool:
    """Whether "package.module:Name" can be imported; False leaves it to gymnasium's "module:EnvId"."""
    module, _, attribute = path.partition(":")
    try:
        imported = importlib.import_module(module)
    except ModuleNotFoundError as exc:
        if exc.name is None or not f"{module}.".startswith(f"{exc.name}."):
            raise  # The module is there, but something that it imports is not.
        return False
    except ValueError:  # An empty module name.
        return False
    return hasattr(imported, attribute.partition(".")[0])


def _resolve_entry_point(config: EnvConfig) -> EnvConfig:
    """Wrap what makes gymnasium environments in the adapter for it."""
    target = config.entry_point
    if isinstance(target, str):
        if target.startswith("fastcollect.envs."):
            return config  # A native factory, or a config that was resolved before: loads a simulator.
        try:
            target = pkgutil.resolve_name(target)
        except (AttributeError, ValueError) as exc:
            raise UnknownEnvError(config.id, reason=f"entry point {config.entry_point!r}: {exc}") from exc
    if not callable(target):
        raise UnknownEnvError(config.id, reason=f"entry point {config.entry_point!r} is not callable")
    if "seeds" in _parameters(target):
        return config
    from gymnasium.vector import VectorEnv

    vector = isinstance(target, type) and issubclass(target, VectorEnv)
    return _adapted(config, GYM_VECTOR if vector else GYM, entry_point=config.entry_point)


def _parameters(target: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(target).parameters
    except (TypeError, ValueError):  # Some builtins and extension types have no signature.
        return {}


def make_env(config: EnvConfig, seeds: np.ndarray) -> BatchedEnv:
    """Build one environment for each seed, (n,) int64; ``config`` may be resolved or not.

    Raises UnknownEnvError for a name, TypeError for a keyword argument that its factory does not take,
    and whatever the factory raises.
    """
    resolved = resolve(config)
    target = resolved.entry_point
    factory = pkgutil.resolve_name(target) if isinstance(target, str) else target
    assert factory is not None, "a resolved config has an entry point"
    parameters = _parameters(factory)
    known = [name for name in parameters if name != "seeds"]
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    if parameters and not open_ended and (wrong := [key for key in resolved.kwargs if key not in known]):
        hint = f"; 'gym:{config.id}' is the stock one with its own arguments" if config.id in NATIVE else ""
        raise TypeError(f"{config.id} takes no argument {wrong[0]!r}, only {known}{hint}")
    return factory(seeds, **resolved.kwargs)


def _row_by_row(config: EnvConfig) -> dict[str, Any]:
    """The options that are given environment by environment, by name."""
    found = {name: config.kwargs.get(name) for name in ("per_env_kwargs", "goal_indices")}
    return {name: rows for name, rows in found.items() if rows is not None and not isinstance(rows, str)}


def check_rows(config: EnvConfig, indices: range) -> None:
    """Raises ConfigError where an option that is given environment by environment has too few entries."""
    problems = [
        f"{name} has {len(rows)} entries, environment {indices.stop - 1} needs one: it is indexed by the "
        f"global index, which is {indices.start} to {indices.stop - 1} here"
        for name, rows in _row_by_row(config).items()
        if len(rows) < indices.stop
    ]
    if problems:
        raise ConfigError(problems)


def select_rows(config: EnvConfig, first: int, count: int) -> EnvConfig:
    """The config of the environments with the global indices first .. first + count - 1.

    They get their part of what is given environment by environment: of ``per_env_kwargs``, and of
    ``goal_indices`` where it is a sequence. A config with neither is returned as it is. Raises ConfigError
    where one has too few entries.
    """
    check_rows(config, range(first, first + count))
    chosen = {name: list(rows[first : first + count]) for name, rows in _row_by_row(config).items()}
    return replace(config, kwargs={**config.kwargs, **chosen}) if chosen else config


def preload_modules(config: EnvConfig) -> list[str]:
    """Modules worth importing once before workers are forked; none of them is imported here.

    EnvPool itself is not among them, because it imports JAX where that is installed.
    """
    resolved = resolve(config)
    env_id = resolved.kwargs.get("env_id") if resolved.entry_point in (GYM, GYM_VECTOR) else None
    if isinstance(env_id, str):
        import gymnasium

        env_id = gymnasium.spec(env_id)
    sources = [resolved.entry_point, resolved.kwargs.get("entry_point"), getattr(env_id, "entry_point", None)]
    return [source.partition(":")[0] for source in sources if isinstance(source, str)]
