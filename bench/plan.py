"""From what the user asked for to the rows that ``bench.fps`` measures."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Annotated

import tyro

from bench.methods import METHODS, Request
from fastcollect.control.config import CollectorConfig
from fastcollect.envs.registry import CRAFTER, METAWORLD_TASKS, EnvConfig, nearest, resolve
from fastcollect.memory.tokens import TokenChannel
from fastcollect.policies.base import PolicyConfig
from fastcollect.policies.choice import parse_policy
from fastcollect.support.command import check_writable
from fastcollect.support.cpu import cpu_count
from fastcollect.support.errors import ConfigError
from fastcollect.tuning import profile

WARM_UP = 0.5
SYNC_ENVS, ENVPOOL_ENVS, LIMIT_ENVS, VECTOR_ENVS = 8, 64, 16, 2048
LEAST_ASYNC_ENVS = 8
"""AsyncVectorEnv's processes where there are fewer CPUs: with 8 it was faster than with 32 on two of them."""

SLOW_WORKER_ENVS, WORKER_ENVS, CHEAP_WORKER_ENVS = 16, 64, 1024
"""Of each process of a peer that has few. Stock Meta-World and Crafter take a second to build, and with 32 of
the former Sample Factory was no faster."""

ENVPOOL_CANDIDATES = (256, 1024, 4096)
"""Where a step costs next to nothing EnvPool is tried with these sizes, and its best one is taken."""

Setting = tuple[int, int, int]  # n, N, M


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compare environment steps per second in interleaved rounds."""

    env: str = "reach-v3"
    """Environment: a Meta-World task, CartPole-v1, HalfCheetah-v5, or any other name the engine resolves."""

    methods: str = "engine,gymnasium-sync,gymnasium-async,envpool,physics-limit"
    """Comma-separated: engine, engine-fast, engine-serial, env-only, env-only-fast, naive, gymnasium-single,
    gymnasium-sync, gymnasium-async, sb3-dummy, sb3-subproc, sample-factory, pufferlib, envpool,
    physics-limit, engine-learner, and with a GPU engine-gpu and engine-learner-gpu. What cannot run here is a
    row that says why; `make peers` installs most peers."""

    seconds: float = 5.0
    """Seconds on the clock for each method in each round, after start-up and 0.5 s of warm-up."""

    rounds: int = 3
    """Rounds; the table shows the median, the slowest and the fastest."""

    num_envs: Annotated[int | None, tyro.conf.arg(name="n")] = None
    """Environments of each env worker, for the engine's own methods. Default: the tuned profile's, else 64
    (4096 for CartPole-v1)."""

    num_env_workers: Annotated[int | None, tyro.conf.arg(name="N")] = None
    """Env workers, and processes of physics-limit. Default: the tuned profile's, else one for each CPU."""

    num_model_workers: Annotated[int | None, tyro.conf.arg(name="M")] = None
    """Model workers; 0 infers inside the env workers. Default: the tuned profile's, else 0."""

    configs: str = ""
    """Several settings of engine and engine-fast in one run, "n,N,M;n,N,M", for example "64,2,0;128,2,1";
    each becomes a row. Instead of --n, --N and --M."""

    policy: str | None = None
    """Hidden widths like 256,256, "cnn" for images, or "random". Default: 256,256 for Meta-World, 16,16 for
    CartPole, "cnn" for Crafter and the Game Boy, 64,64 otherwise."""

    tokens: TokenChannel = "pipes"
    """What carries the tokens of the engine's own methods."""

    json: Path | None = None
    """Where to write the result; whole or not at all."""


@dataclass(frozen=True, kw_only=True)
class Row(Request):
    """One line of the table. label: unique, the method's name or, with several settings, both.

    policy_name: None for a method without a policy. origin: where n, N, M come from: "chosen", "profile",
    "default", or "fixed" for a peer.
    """

    label: str
    policy_name: str | None
    origin: str

    def requests(self) -> list[Request]:
        """One for each process that is measured at the same time."""
        processes = self.N if self.method == "physics-limit" else 1
        own = {field.name: getattr(self, field.name) for field in fields(Request)}
        return [Request(**{**own, "index": index}) for index in range(processes)]


def is_cheap(env: str) -> bool:
    """Whether a step costs so little that only large batches amortise a call."""
    return env == "CartPole-v1" or env.startswith("vector:")


def make_plan(options: Options) -> list[Row]:
    """The rows, in the order asked for. Raises ConfigError with everything that is wrong."""
    problems = _number_problems(options)
    methods = [name.strip() for name in options.methods.split(",") if name.strip()]
    problems += _method_problems(methods)
    try:
        resolve(EnvConfig(id=options.env))
    except (ValueError, ImportError) as error:
        problems.append(f"--env: {error}")
    policy: PolicyConfig | None = None
    try:
        policy = parse_policy(options.policy, options.env)
    except ConfigError as error:
        problems += [f"--policy: {problem}" for problem in error.problems]
    explicit, setting_problems = _explicit_settings(options)
    problems += setting_problems
    if problems or policy is None:
        raise ConfigError(problems)
    return [row for method in methods for row in _rows(method, options, policy, explicit)]


def _number_problems(options: Options) -> list[str]:
    problems = []
    if not (math.isfinite(options.seconds) and 0 < options.seconds <= 3600):
        problems.append(f"--seconds is {options.seconds!r}; allowed: above 0, at most 3600")
    if not 1 <= options.rounds <= 1000:
        problems.append(f"--rounds is {options.rounds!r}; allowed: 1 to 1000")
    try:
        check_writable(options.json)
    except ConfigError as error:
        problems += [f"--json: {problem}" for problem in error.problems]
    return problems


def _method_problems(methods: Sequence[str]) -> list[str]:
    allowed = ", ".join(METHODS)
    if not methods:
        return [f"--methods names none; allowed: {allowed}"]
    problems = []
    for name, count in Counter(methods).items():
        if name not in METHODS:
            near = nearest(name, METHODS, 1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            problems.append(f"--methods: there is no method {name!r}{hint} Allowed: {allowed}")
        elif count > 1:
            problems.append(f"--methods names {name!r} {count} times")
    return problems


def _explicit_settings(options: Options) -> tuple[list[Setting], list[str]]:
    """Settings given by --configs, and what is wrong with them or with --n, --N, --M."""
    given = (options.num_envs, options.num_env_workers, options.num_model_workers)
    tried = tuple(low if value is None else value for value, low in zip(given, (1, 1, 0), strict=True))
    problems = _setting_problems(tried, "")
    if not options.configs:
        return [], problems
    if any(value is not None for value in given):
        problems.append("--configs and --n, --N, --M exclude each other")
    settings: list[Setting] = []
    for text in options.configs.split(";"):
        numbers = [part.strip() for part in text.split(",")]
        if len(numbers) != 3 or not all(part.lstrip("-").isdecimal() for part in numbers):
            problems.append(f"--configs: {text!r} is not n,N,M such as 64,2,0")
            continue
        setting = tuple(int(part) for part in numbers)
        problems += _setting_problems(setting, f"--configs {text}: ")
        if setting in settings:
            problems.append(f"--configs names {text!r} twice")
        settings.append(setting)
    return settings, problems


def _setting_problems(setting: Setting, prefix: str) -> list[str]:
    n, workers, models = setting
    try:
        CollectorConfig(env=EnvConfig(id=""), num_envs=n, num_env_workers=workers, num_model_workers=models)
    except ConfigError as error:
        return [prefix + problem for problem in error.problems]
    return []


def default_setting(env: str) -> Setting:
    """n, N, M of the engine where nothing was chosen or tuned."""
    return (4096 if is_cheap(env) else 64), cpu_count(), 0


def _tuned_setting(options: Options, method: str, policy: PolicyConfig) -> tuple[Setting, str]:
    """n, N, M of an engine method: what was given, then the tuned profile, then defaults."""
    setting, origin = default_setting(options.env), "default"
    kwargs = [{"physics": "fast"}, {}] if method.endswith("-fast") else [{}]
    for each in kwargs:
        tuned = profile.load(EnvConfig(id=options.env, kwargs=each), policy)
        if tuned is not None:
            setting, origin = astuple(tuned.parallelism), "profile"
            break
    given = (options.num_envs, options.num_env_workers, options.num_model_workers)
    if any(value is not None for value in given):
        origin = "chosen"
    return tuple(s if g is None else g for g, s in zip(given, setting, strict=True)), origin


def _rows(method: str, options: Options, policy: PolicyConfig, explicit: list[Setting]) -> list[Row]:
    if explicit:
        tuned, origin = explicit[0], "chosen"
    else:
        tuned, origin = _tuned_setting(options, method, policy)
    whole = method in ("engine", "engine-fast")
    settings = explicit if explicit and whole else [_fixed(method, options.env, tuned, explicit)]
    if method == "naive":
        settings = [_naive_setting(options)]
        origin = "fixed" if options.num_envs is options.num_env_workers is None else "chosen"
    elif METHODS[method].role != "ours":
        origin = "fixed"
    return [
        Row(
            label=method if len(settings) == 1 else f"{method} {n},{workers},{models}",
            method=method,
            env=options.env,
            n=n,
            N=workers,
            M=models,
            policy=options.policy,
            policy_name=policy.name if METHODS[method].policy else None,
            origin=origin,
            seconds=options.seconds,
            warm_up=WARM_UP,
            tokens=options.tokens,
        )
        for n, workers, models in settings
    ]


def _naive_setting(options: Options) -> Setting:
    """What was given, else its own: a profile is tuned for the engine."""
    return options.num_envs or _peer_envs(options.env), options.num_env_workers or cpu_count(), 1


def _peer_envs(env: str) -> int:
    """Environments of each process of a peer that has few."""
    if is_cheap(env):
        return CHEAP_WORKER_ENVS
    return SLOW_WORKER_ENVS if env in METAWORLD_TASKS or env in CRAFTER else WORKER_ENVS


def _fixed(method: str, env: str, tuned: Setting, explicit: list[Setting]) -> Setting:
    """n, N, M of the one row of a method; a peer's N is 1 where n is all of its environments."""
    if method == "physics-limit":
        workers = max((setting[1] for setting in explicit), default=tuned[1])
        return (VECTOR_ENVS if is_cheap(env) else LIMIT_ENVS), workers, 0
    if method in ("engine-serial", "env-only", "env-only-fast"):
        return tuned[0], 1, 0
    processes = max(LEAST_ASYNC_ENVS, cpu_count())
    envs = _peer_envs(env)
    peers = {
        "gymnasium-single": (1, 1, 0),
        "gymnasium-sync": (SYNC_ENVS, 1, 0),
        "gymnasium-async": (processes, 1, 0),
        "sb3-dummy": (SYNC_ENVS, 1, 0),
        "sb3-subproc": (processes, 1, 0),
        "sample-factory": (min(envs, 256), cpu_count(), 1),
        "pufferlib": (envs, cpu_count(), 0),
        "envpool": (ENVPOOL_ENVS, 1, 0),
    }
    return peers.get(method, tuned)
