"""What a user chooses about training, and the checks that need nothing but the choice itself."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal

from engine.algorithms import CONFIGS, AlgorithmConfig
from engine.sparse.pruning import CRITERIA
from fastcollect.memory.tokens import TokenChannel

Stage = Literal["dense", "ticket", "transfer", "sparse", "all"]
if TYPE_CHECKING:
    CriterionName = str
else:
    CriterionName = Literal[tuple(CRITERIA)]
ALGORITHM = next(iter(CONFIGS))
"""The algorithm that a run has unless another one is chosen."""


@dataclass(frozen=True, kw_only=True)
class CollectConfig:
    """Who collects."""

    n: int = 32
    """Environments of each env worker."""
    N: int = 2
    """Env workers."""
    M: int = 0
    """Model workers; with 0 the env workers infer for themselves."""
    block_length: int = 16
    """Steps in a block."""
    schedule: Literal["asynchronous", "rounds"] = "asynchronous"
    """In rounds of one block of every group, collection waits for learning and learning for collection."""
    reproducible: bool = False
    """Same seed, same bits, and an interrupted run equals an uninterrupted one; needs the schedule rounds."""
    group_size: int | None = None
    """Environments that step together; reproducible bits depend on it and on n x N, not on N or M."""
    tokens: TokenChannel = "pipes"
    """What carries the tokens between processes: the kernel's pipes, or queues in shared memory, which take
    more time per token and are emptied by a worker that is killed inside one."""


@dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """What is kept of what was collected."""

    capacity: int = 1_000_000
    """Transitions; the oldest give way."""
    storage: Literal["host", "device"] | None = None
    """Where they lie; default: the host on CPUs, where bench.learner sees no difference beyond its spread,
    the device on GPUs."""
    minimum: int | None = None
    """Drop the oldest tenth whenever a check finds the policy too far from what they were collected with
    and more transitions than this; default: never."""
    max_distance: float = 0.2
    """Half the mean squared difference of mean actions in [-1, 1], now and then, that is not too far."""
    check_every: int = 10_000
    """Environment steps between checks."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How the deterministic policy is tested, in environments of its own."""

    every: int = 50_000
    """Environment steps between evaluations: they are due at its multiples, whatever step a run begins at."""
    episodes: int = 50
    """Episodes of each; on Meta-World the 50 goals, one each, are the only choice."""


@dataclass(frozen=True, kw_only=True)
class PruneConfig:
    """How a ticket is drawn."""

    actor: float = 0.8
    """Sparsity of the actor's kernels at the end, of their live weights: those on inputs that never changed
    in the dense run do nothing, are pruned first, and count neither as pruned nor as kept."""
    critic: float = 0.0
    """The same of the critics' kernels."""
    rate: float = 0.33
    """Share of what is left that a round prunes; 1 prunes in one round."""
    criterion: CriterionName = "magnitude"
    """What makes a weight worth keeping: |w|, |w dL/dw|, |dL/dw|, or chance."""
    scope: Literal["global", "layer", "erk"] = "erk"
    """Which weights compete: all of a network, those of a layer, or layers by Erdos-Renyi densities."""
    min_kept: int = 1
    """No layer is pruned below this count."""


@dataclass(frozen=True, kw_only=True)
class RewindConfig:
    """What a ticket starts from, part by part. "anchor" is the dense run at ``anchor_steps``."""

    parameters: Literal["anchor", "initial", "final"] = "anchor"
    """Weights and biases; "final" is the round before, trained."""
    optimizer: Literal["anchor", "fresh"] = "anchor"
    """Adam's moments, masked."""
    temperature: Literal["anchor", "fresh"] = "anchor"
    """The entropy's weight, if the algorithm has one."""
    targets: Literal["anchor", "online"] = "anchor"
    """The target networks; "online" copies those that they follow."""
    normalizer: Literal["anchor", "fresh", "final"] = "anchor"
    """Mean and variance of observations."""
    replay: Literal["anchor", "fresh"] = "anchor"
    """The transitions that were collected before the anchor."""
    step: Literal["anchor", "zero"] = "anchor"
    """Where the count of steps and updates goes on, and with it the budget."""
    rescale_fresh: bool = False
    """Multiply fresh weights under a mask, of controls and transfers, by 1 / sqrt(density of their layer), so
    that what a unit sums varies as much as in the dense network."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run: what identifies it, and nothing of how it is carried out."""

    env: str = "reach-v3"
    """Environment: a Meta-World task, any gymnasium id with a bounded box of actions, or module:Name."""
    env_kwargs: tuple[str, ...] = ()
    """Arguments of the environment as name=value, for instance physics=fast. Those of other names that a
    file, a source or the task's own settings give stay as they are."""
    seed: int = 0
    """Of weights, noise, batches, environments."""
    env_steps: int = 200_000
    """Budget: environment steps in total, those before a ticket's anchor included."""
    start_steps: int = 5_000
    """Steps of random actions before the first update."""
    updates_per_step: float = 0.0625
    """Updates for each environment step after start_steps; the ratio is enforced."""
    final_learning_rate: float = 0.1
    """Share of the learning rates that is left at the last update, after a linear decay from the first one;
    1 for none. Large steps find the goal; small ones settle on it."""
    updates_per_dispatch: int = 16
    """K: updates that one call of the device makes."""
    variance_floor: float = 1e-4
    """Added to the variance that observations are divided by the root of."""
    anchor_steps: int = 20_000
    """When the rewind anchor is kept."""
    stop_success: float | None = None
    """End early once success at any step reached this in ``stop_patience`` evaluations in a row."""
    stop_patience: int = 3
    """See stop_success."""
    algo: str = ALGORITHM
    """Who learns."""
    algorithm: AlgorithmConfig = field(default_factory=CONFIGS[ALGORITHM])
    """Settings of the algorithm that ``algo`` chooses."""
    collect: CollectConfig = field(default_factory=CollectConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


@dataclass(frozen=True, kw_only=True)
class StudyConfig(TrainConfig):
    """Everything that identifies a study: its runs' settings, and which runs there are."""

    prune: PruneConfig = field(default_factory=PruneConfig)
    rewind: RewindConfig = field(default_factory=RewindConfig)
    controls: bool = False
    """Also train the matched controls of a ticket, at the same budget."""
    control_rounds: tuple[int, ...] = ()
    """Rounds that get controls; default: the last, where the one without a mask is trained in any case. A
    finished ticket can be given controls later."""
    tasks: tuple[str, ...] = ("reach-v3",)
    """Stage all: tasks to draw tickets on."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Stage all: seeds of each task."""
    targets: tuple[str, ...] = ("push-v3",)
    """Stage all: tasks to transfer each ticket to."""


def updates_due(config: TrainConfig, env_steps: int) -> int:
    """Updates that are due after so many environment steps; exact, for the ratio's shortest decimals."""
    return int((env_steps - config.start_steps) * Fraction(str(config.updates_per_step)))


def train_config(config: TrainConfig, cls: type = TrainConfig) -> Any:
    """The part of a configuration that one training run has, or that another class says."""
    return cls(**{each.name: getattr(config, each.name) for each in dataclasses.fields(cls)})


Allowed = Sequence[tuple[str, Callable[[Any], bool], str]]
"""What is allowed in words, whether a value is, and the dotted names of the settings that this is about."""

_ALLOWED: Allowed = (
    ("1 and more", lambda v: v >= 1, "env_steps updates_per_dispatch anchor_steps stop_patience"),
    ("1 and more", lambda v: v >= 1, "replay.capacity replay.check_every"),
    ("1 and more", lambda v: v >= 1, "evaluation.every evaluation.episodes"),
    ("0 and more, finite", lambda v: 0 <= v < math.inf, "replay.max_distance"),
    ("a finite number above 0", lambda v: 0 < v < math.inf, "updates_per_step variance_floor"),
    ("above 0, up to 1", lambda v: v is None or 0 < v <= 1, "final_learning_rate stop_success"),
    (f"0 to {2**31 - 1}", lambda v: 0 <= v < 2**31, "seed"),
)
_ALLOWED_PRUNING: Allowed = (
    ("sparsity in [0, 1)", lambda v: 0 <= v < 1, "actor critic"),
    ("above 0, up to 1", lambda v: 0 < v <= 1, "rate"),
    ("0 and more", lambda v: v >= 0, "min_kept"),
)


def out_of_range(config: object, allowed: Allowed, at: str = "") -> list[str]:
    """Every value that is not allowed. at: what its dotted name begins with."""
    return [
        f"{at}{name} is {value}; allowed: {words}"
        for words, fits, names in allowed
        for name in names.split()
        if not fits(value := attrgetter(name)(config))
    ]


def problems_of(config: TrainConfig) -> list[str]:
    """Every value that is out of range, by its dotted name, and what is allowed."""
    collect, problems = config.collect, out_of_range(config, _ALLOWED)
    if not 0 <= config.start_steps < config.env_steps:
        problems.append(f"start_steps is {config.start_steps}; allowed: 0 to env_steps - 1")
    if collect.reproducible and collect.schedule != "rounds":
        problems.append(
            f"collect.reproducible is True and collect.schedule is {collect.schedule!r}; allowed: "
            "reproducible with the schedule 'rounds' only"
        )
    if config.replay.capacity < (least := collect.n * collect.N * collect.block_length):
        says = f"allowed: n x N x block_length = {least} and more"
        problems.append(f"replay.capacity is {config.replay.capacity}; {says}")
    minimum = config.replay.minimum
    if minimum is not None and not 1 <= minimum <= config.replay.capacity:
        problems.append(f"replay.minimum is {minimum}; allowed: 1 to replay.capacity")
    if type(config.algorithm) is not CONFIGS.get(config.algo):
        problems.append(
            f"algo is {config.algo!r} with settings of {type(config.algorithm).__name__}; "
            f"allowed: {', '.join(CONFIGS)} with settings of its own"
        )
    return problems + [f"algorithm.{problem}" for problem in config.algorithm.problems()]


def prune_problems(config: PruneConfig) -> list[str]:
    """The same for how a ticket is drawn."""
    problems = out_of_range(config, _ALLOWED_PRUNING, "prune.")
    if config.actor == config.critic == 0:
        problems.append("prune.actor and prune.critic are 0; a ticket needs one of them above")
    return problems
