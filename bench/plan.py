"""From what the user asked for to the cases that count environment steps, and from those to rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

import tyro

from bench.harness.command import Problems
from bench.harness.isolated import MeasurementError, measure
from bench.harness.results import Row, console, measured
from bench.harness.turns import take_turns
from bench.methods import METHODS, names
from bench.methods.base import Choice, Parallelism, Request, is_cheap
from fastcollect.envs.registry import EnvConfig, nearest, resolve
from fastcollect.policies.base import PolicyConfig
from fastcollect.policies.choice import parse_policy
from fastcollect.support.cpu import cpu_count
from fastcollect.support.errors import WorkerError
from fastcollect.tuning import profile

WARM_UP = 0.5
_GUESSED_START = 4.0  # seconds, until the first round tells


@dataclass(frozen=True, kw_only=True)
class Options:
    """What environment steps are counted of."""

    env: str = "reach-v3"
    """A Meta-World task, CartPole-v1, HalfCheetah-v5, or any other that the collector resolves."""

    methods: tuple[str, ...] = ("ours", "gymnasium-sync", "gymnasium-async", "envpool", "physics-limit")
    """What to measure; a name that does not exist is answered with the list of those that do. What cannot run
    here is a row that says why; `make peers` installs most peers."""

    num_envs: Annotated[int | None, tyro.conf.arg(name="n")] = None
    """Environments of each env worker, for our own methods. Default: the tuned profile's, else 64 (4096 for
    CartPole-v1)."""

    num_env_workers: Annotated[int | None, tyro.conf.arg(name="N")] = None
    """Env workers, and processes of physics-limit. Default: the tuned profile's, else one for each CPU."""

    num_model_workers: Annotated[int | None, tyro.conf.arg(name="M")] = None
    """Model workers; 0 infers inside the env workers. Default: the tuned profile's, else 0."""

    configs: tuple[str, ...] = ()
    """Several settings of our methods, such as 64,2,0 128,2,1, a row for each, instead of --n, --N, --M."""

    policy: str | None = None
    """Hidden widths like 256,256, "cnn" for images, or "random". Default: 256,256 for Meta-World, 16,16 for
    CartPole, "cnn" for Crafter and the Game Boy, 64,64 otherwise."""

    @property
    def given(self) -> tuple[int | None, int | None, int | None]:
        """n, N and M as far as they were given."""
        return self.num_envs, self.num_env_workers, self.num_model_workers


@dataclass(frozen=True, kw_only=True)
class Case:
    """What becomes a row. label: unique, the method's name or, with several settings, both.

    policy_name: None for a method without a policy. origin: where n, N and M come from: "chosen", "profile",
    "default", or "fixed" for a peer.
    """

    label: str
    request: Request
    policy_name: str | None
    origin: str

    def measure(self, warm_up: float, seconds: float) -> dict[str, Any]:
        """One slice of fresh processes. Raises MeasurementError."""
        processes = self.request.parallelism.N if METHODS[self.request.method].everywhere else 1
        return measure([replace(self.request, index=k) for k in range(processes)], warm_up, seconds)

    def row(self) -> Row:
        """The row before anything is measured."""
        request = self.request
        return {
            "env": request.env,
            "method": request.method,
            **asdict(request.parallelism),
            "label": self.label,
            "policy": self.policy_name,
            "settings": self.origin,
            "note": METHODS[request.method].note,
        }


def make_plan(options: Options, problems: Problems | None = None) -> list[Case]:
    """The cases in the order asked for. Raises ConfigError with everything that is wrong."""
    problems = problems or Problems(options)
    check_methods(options.methods, names(Request), problems)
    try:
        resolve(EnvConfig(id=options.env))
    except (ValueError, ImportError) as error:
        problems.found.append(f"--env: {error}")
    policy = problems.attempt(lambda: parse_policy(options.policy, options.env), "--policy: ")
    explicit = _explicit(options, problems)
    problems.raise_any()
    return [case for method in options.methods for case in _cases(method, options, policy, explicit)]


def check_methods(methods: Sequence[str], allowed: Sequence[str], problems: Problems) -> None:
    """Every name that does not exist or comes twice is a problem."""
    if not methods:
        problems.found.append(f"--methods names none; allowed: {', '.join(allowed)}")
    for name, count in Counter(methods).items():
        if name not in allowed:
            near = nearest(name, allowed, 1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            problems.found.append(
                f"--methods: there is no method {name!r}{hint} Allowed: {', '.join(allowed)}"
            )
        elif count > 1:
            problems.found.append(f"--methods names {name!r} {count} times")


def _explicit(options: Options, problems: Problems) -> list[Parallelism]:
    """Settings given by --configs; what is wrong with them or with --n, --N and --M is kept."""
    tried = [low if value is None else value for value, low in zip(options.given, (1, 1, 0), strict=True)]
    problems.attempt(lambda: Parallelism(*tried).collector(EnvConfig(id="")))
    if options.configs and any(value is not None for value in options.given):
        problems.found.append("--configs and --n, --N, --M exclude each other")
    settings: list[Parallelism] = []
    for text in options.configs:
        numbers = [part.strip() for part in text.split(",")]
        if len(numbers) != 3 or not all(part.lstrip("-").isdecimal() for part in numbers):
            problems.found.append(f"--configs: {text!r} is not n,N,M such as 64,2,0")
            continue
        setting = Parallelism(*map(int, numbers))
        problems.attempt(lambda setting=setting: setting.collector(EnvConfig(id="")), f"--configs {text}: ")
        if setting in settings:
            problems.found.append(f"--configs names {text!r} twice")
        settings.append(setting)
    return settings


def default_setting(env: str) -> Parallelism:
    """That of the collector where nothing was chosen or tuned."""
    return Parallelism(4096 if is_cheap(env) else 64, cpu_count(), 0)


def _tuned(options: Options, method: str, policy: PolicyConfig) -> tuple[Parallelism, str]:
    """n, N and M of one of our methods, and their origin: what was given, the tuned profile, the default."""
    kwargs = [{"physics": "fast"}, {}] if method.endswith("-fast") else [{}]
    saved = [profile.load(EnvConfig(id=options.env, kwargs=each), policy) for each in kwargs]
    found = next((Parallelism.of(each) for each in saved if each is not None), None)
    setting = found or default_setting(options.env)
    given = dict(zip("nNM", options.given, strict=True))
    chosen = {name: value for name, value in given.items() if value is not None}
    return replace(setting, **chosen), "chosen" if chosen else "profile" if found else "default"


def _cases(name: str, options: Options, policy: PolicyConfig, explicit: list[Parallelism]) -> list[Case]:
    tuned, origin = (explicit[0], "chosen") if explicit else _tuned(options, name, policy)
    method, n, workers = METHODS[name], options.num_envs, options.num_env_workers
    if method.role != "ours":
        origin = "chosen" if method.obeys and (n or workers) else "fixed"
    sizes = method.sizes(Choice(options.env, explicit or [tuned], n, workers))
    return [
        Case(
            label=name if len(sizes) == 1 else f"{name} {size}",
            request=Request(method=name, env=options.env, parallelism=size, policy=options.policy),
            policy_name=policy.name if method.policy else None,
            origin=origin,
        )
        for size in sizes
    ]


def _fitted(case: Case, seconds: float) -> Case:
    """At the best of its method's candidates, where one size does not suit all environments."""
    sizes = METHODS[case.request.method].candidates if is_cheap(case.request.env) else ()
    trials: dict[float, Case] = {}
    for n in sizes:
        console(stderr=True).print(f"{case.label}, trying {n} environments")
        size = replace(case.request.parallelism, n=n)
        trial = replace(case, request=replace(case.request, parallelism=size))
        try:
            trials[trial.measure(WARM_UP, min(0.5, seconds))["rate"]] = trial
        except MeasurementError:
            return case  # its own round says why
    return trials[max(trials)] if trials else case


def measure_cases(cases: Sequence[Case], seconds: float, rounds: int) -> list[Row]:
    """The rows of a result, measured in turns."""
    cases = [_fitted(case, seconds) for case in cases]
    turns = {case.label: lambda case=case: case.measure(WARM_UP, seconds) for case in cases}
    outcomes = take_turns(turns, rounds, WARM_UP + seconds + _GUESSED_START, "steps/s")
    return measured([case.row() for case in cases], outcomes, "fps")


def require_any(rows: Sequence[Row]) -> None:
    """Raises WorkerError if no row has a number."""
    if not any(row["fps"] for row in rows):
        raise WorkerError("none of the methods could be measured here")
