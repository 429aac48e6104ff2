"""Environment steps per second of the collector, its peers and the physics below them, in interleaved rounds.

Each method runs in fresh processes in every round, start-up and 0.5 s of warm-up outside the clock, the order
changing from round to round. Ratios are taken within a round, so that a machine that drifts cancels out.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from typing import Annotated, Any, Self

import tyro

from bench.harness.command import Output, Problems, Turns, main, save
from bench.harness.measure import MeasurementError, measure, take_turns
from bench.harness.results import Columns, Row, console, measured, rate_table, show
from bench.methods import METHODS, names
from bench.methods.base import Request, is_cheap
from fastcollect import CollectorConfig, EnvConfig, Parallelism, PolicyConfig, WorkerError
from fastcollect.envs.registry import nearest, resolve
from fastcollect.policies.choice import parse_policy
from fastcollect.support.cpu import cpu_count
from fastcollect.tuning import profile

WARM_UP = 0.5
_GUESSED_START = 4.0  # seconds, until the first round tells


@dataclass(frozen=True, kw_only=True)
class Options:
    """What environment steps are counted of."""

    env: str = "reach-v3"
    """A Meta-World task, CartPole-v1, HalfCheetah-v5, Ant-v5, or any other that the collector resolves."""
    methods: tuple[str, ...] = ("ours", "gymnasium-sync", "gymnasium-async", "envpool", "physics-limit")
    """What to measure; a name that does not exist is answered with the list of those that do. What cannot run
    here is a row that says why; `make peers` installs most peers."""
    num_envs: Annotated[tuple[int, ...], tyro.conf.arg(name="n")] = ()
    """Environments of each env worker, for our own methods. Default: the tuned profile's, else 64 (4096 for
    CartPole-v1). Several values of n, N or M become rows, each with each."""
    num_env_workers: Annotated[tuple[int, ...], tyro.conf.arg(name="N")] = ()
    """Env workers, and processes of physics-limit. Default: the tuned profile's, else one for each CPU."""
    num_model_workers: Annotated[tuple[int, ...], tyro.conf.arg(name="M")] = ()
    """Model workers; 0 infers inside the env workers. Default: the tuned profile's, else 0."""
    policy: str | None = None
    """Hidden widths like 256,256, "cnn" for images, or "random". Default: 256,256 for Meta-World, 16,16 for
    CartPole, "cnn" for Crafter and the Game Boy, 64,64 otherwise."""

    def sizes(self, default: Parallelism) -> list[Parallelism]:
        """Those chosen, each n with each N and M."""
        n, workers = self.num_envs or (default.n,), self.num_env_workers or (default.N,)
        return [Parallelism(*each) for each in product(n, workers, self.num_model_workers or (default.M,))]


@dataclass(frozen=True, kw_only=True)
class FpsArguments(Output, Turns, Options):
    """Compare environment steps per second."""

    seconds: float = 5.0
    """Seconds on the clock for each method in each round, after start-up and 0.5 s of warm-up."""


@dataclass(frozen=True)
class Case:
    """What becomes a row, and the row before anything is measured; its "label" is unique."""

    request: Request
    row: Row

    def measure(self, seconds: float) -> dict[str, Any]:
        """One slice of fresh processes. Raises MeasurementError."""
        processes = self.request.parallelism.N if METHODS[self.request.method].everywhere else 1
        return measure([replace(self.request, index=k) for k in range(processes)], WARM_UP, seconds)

    def resized(self, size: Parallelism, label: str) -> Self:
        """With other n, N and M, and another label."""
        row = {**self.row, **asdict(size), "label": label}
        return replace(self, request=replace(self.request, parallelism=size), row=row)


def make_plan(options: Options) -> list[Case]:
    """The cases in the order asked for. Raises ConfigError with everything that is wrong."""
    problems = Problems(options)
    check_methods(options.methods, names(Request), problems)
    try:
        resolve(EnvConfig(id=options.env))
    except (ValueError, ImportError) as error:
        problems.found.append(f"--env: {error}")
    with problems.kept("--policy: "):
        policy = parse_policy(options.policy, options.env)
    sizes = options.sizes(Parallelism(1, 1, 0))
    for size in sizes:
        with problems.kept():
            CollectorConfig(env=EnvConfig(id="")).with_parallelism(size)
    problems.require(len(set(sizes)) == len(sizes), "n, --N or --M", "given", "each value once")
    problems.raise_any()
    return [case for method in options.methods for case in _cases(method, options, policy)]


def check_methods(methods: Sequence[str], allowed: Sequence[str], problems: Problems) -> None:
    """Every name that does not exist or comes twice is a problem, and so is none."""
    listed = f"llowed: {', '.join(allowed)}"
    if not methods:
        problems.found.append(f"--methods names none; a{listed}")
    for name, count in Counter(methods).items():
        if name not in allowed:
            hint = "".join(f"; did you mean {near!r}?" for near in nearest(name, allowed, 1)) or "."
            problems.found.append(f"--methods: there is no method {name!r}{hint} A{listed}")
        elif count > 1:
            problems.found.append(f"--methods names {name!r} {count} times")


def default_setting(env: str) -> Parallelism:
    """That of the collector where nothing was chosen or tuned."""
    return Parallelism(4096 if is_cheap(env) else 64, cpu_count(), 0)


def _cases(name: str, options: Options, policy: PolicyConfig) -> list[Case]:
    """Of one method; "settings" tells where n, N and M come from, "fixed" for a peer's own."""
    method, given = METHODS[name], (options.num_envs, options.num_env_workers, options.num_model_workers)
    kwargs = [{"physics": "fast"}, {}] if name.endswith("-fast") else [{}]
    saved = [profile.load(EnvConfig(id=options.env, kwargs=each), policy) for each in kwargs]
    tuned = next(filter(None, saved), None)
    origin = "chosen" if any(given) else "profile" if tuned else "default"
    sizes = method.sizes(options.env, options.sizes(tuned or default_setting(options.env)))
    if method.role != "ours":
        origin = "chosen" if method.obeys and any(given[:2]) else "fixed"
    if method.obeys:  # what was given, else its own: a profile is tuned for the collector
        sizes = replace(options, num_model_workers=()).sizes(sizes[0])
    row = {"env": options.env, "method": name, "policy": policy.name if method.policy else None}
    row |= {"settings": origin, "note": method.note}
    case = Case(Request(method=name, env=options.env, parallelism=sizes[0], policy=options.policy), row)
    return [case.resized(size, name if len(sizes) == 1 else f"{name} {size}") for size in sizes]


def _fitted(case: Case, seconds: float) -> Case:
    """At the best of its method's candidates, where one size does not suit all environments."""
    trials: dict[float, Case] = {}
    for n in METHODS[case.request.method].candidates if is_cheap(case.request.env) else ():
        console(stderr=True).print(f"{case.row['label']}, trying {n} environments", markup=False)
        trial = case.resized(replace(case.request.parallelism, n=n), case.row["label"])
        try:
            trials[trial.measure(min(0.5, seconds))["rate"]] = trial
        except MeasurementError:
            return case  # its own round says why
    return trials[max(trials)] if trials else case


def measure_cases(cases: Sequence[Case], seconds: float, rounds: int) -> list[Row]:
    """The rows of a result, measured in turns."""
    cases = [_fitted(case, seconds) for case in cases]
    turns = {case.row["label"]: partial(case.measure, seconds) for case in cases}
    outcomes = take_turns(turns, rounds, WARM_UP + seconds + _GUESSED_START, "steps/s")
    return measured([case.row for case in cases], outcomes, "fps")


def require_any(rows: Sequence[Row], rate: str = "fps") -> None:
    """Raises WorkerError if no row has a number."""
    if not any(row[rate] for row in rows):
        raise WorkerError("none of the methods could be measured here")


_TAIL: Columns = {
    "start s": lambda row: f"{row['start_seconds']:.1f}",
    "CPUs": lambda row: f"{row['cpus_busy']:.1f}",
    "MiB/env": lambda row: f"{row['memory_mib'] / row['num_envs']:.1f}",
}


def compare(arguments: FpsArguments) -> None:
    """Measure, write, show. Raises ConfigError before anything is started, WorkerError if nothing ran."""
    rows = measure_cases(make_plan(arguments), arguments.seconds, arguments.rounds)
    result = save(arguments, arguments.json, rows=rows)
    policy = next((f", policy {row['policy']}" for row in rows if row["policy"]), "")
    rounds = f"{arguments.rounds} round{'s' * (arguments.rounds > 1)} of {arguments.seconds:g} s"
    title = f"{arguments.env}: environment steps per second, {rounds}{policy}"
    notes = {row["method"]: f"{row['method']}: {row['note']}" for row in rows if row["fps"]}
    show(result, rate_table(title, rows, "fps", ("method", "n", "N", "M"), _TAIL), *notes.values())
    require_any(rows)


if __name__ == "__main__":
    main(FpsArguments, compare, __doc__)
