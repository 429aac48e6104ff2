"""What a user chooses about training, and the checks that need nothing but the choice itself."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from engine.algorithms import CONFIGS, AlgorithmConfig
from engine.sparse.pruning import CRITERIA, SCOPES
from fastcollect.memory.tokens import TokenChannel
from fastcollect.support.errors import ConfigError

Stage = Literal["dense", "ticket", "transfer", "all"]
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


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How the deterministic policy is tested, in environments of its own."""

    every: int = 25_000
    """Environment steps between evaluations."""
    episodes: int = 50
    """Episodes of each; on Meta-World the 50 goals, one each, are the only choice."""


@dataclass(frozen=True, kw_only=True)
class PruneConfig:
    """How a ticket is drawn."""

    actor: float = 0.8
    """Sparsity of the actor's kernels at the end."""
    critic: float = 0.0
    """Sparsity of the critics' kernels at the end."""
    rate: float = 0.33
    """Share of what is left that a round prunes; 1 prunes in one round."""
    criterion: CriterionName = "magnitude"
    """What makes a weight worth keeping: |w|, |w dL/dw|, |dL/dw|, or chance."""
    scope: Literal["global", "layer", "erk"] = "global"
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
    """The entropy's weight."""
    targets: Literal["anchor", "online"] = "anchor"
    """The target critics; "online" copies the critics."""
    normalizer: Literal["anchor", "fresh", "final"] = "anchor"
    """Mean and variance of observations."""
    replay: Literal["anchor", "fresh"] = "anchor"
    """The transitions that were collected before the anchor."""
    step: Literal["anchor", "zero"] = "anchor"
    """Where the count of steps and updates goes on, and with it the budget."""


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


def train_config(config: Any, cls: type = TrainConfig) -> Any:
    """The part of a configuration that one training run has, or that another class says."""
    return cls(**{each.name: getattr(config, each.name) for each in dataclasses.fields(cls)})


def problems_of(config: TrainConfig) -> list[str]:
    """Every value that is out of range, by its dotted name, and what is allowed."""
    collect = config.collect
    counts = {
        "env_steps": config.env_steps,
        "updates_per_dispatch": config.updates_per_dispatch,
        "anchor_steps": config.anchor_steps,
        "stop_patience": config.stop_patience,
        "replay.capacity": config.replay.capacity,
        "evaluation.every": config.evaluation.every,
        "evaluation.episodes": config.evaluation.episodes,
    }
    problems = [f"{name} is {value}; allowed: 1 and more" for name, value in counts.items() if value < 1]
    problems += [
        f"{name} is {value}; allowed: a finite number above 0"
        for name, value in {
            "updates_per_step": config.updates_per_step,
            "variance_floor": config.variance_floor,
        }.items()
        if not (value > 0 and math.isfinite(value))
    ]
    shares = {"final_learning_rate": config.final_learning_rate}
    shares |= {} if config.stop_success is None else {"stop_success": config.stop_success}
    problems += [f"{n} is {v}; allowed: above 0, up to 1" for n, v in shares.items() if not 0 < v <= 1]
    if not 0 <= config.start_steps < config.env_steps:
        problems.append(f"start_steps is {config.start_steps}; allowed: 0 to env_steps - 1")
    if not 0 <= config.seed < 2**31:
        problems.append(f"seed is {config.seed}; allowed: 0 to {2**31 - 1}")
    if collect.reproducible and collect.schedule != "rounds":
        problems.append(
            f"collect.reproducible is True and collect.schedule is {collect.schedule!r}; allowed: "
            "reproducible with the schedule 'rounds' only"
        )
    if config.replay.capacity < collect.n * collect.N * collect.block_length:
        problems.append(
            f"replay.capacity is {config.replay.capacity}; allowed: n x N x block_length = "
            f"{collect.n * collect.N * collect.block_length} and more"
        )
    if type(config.algorithm) is not CONFIGS.get(config.algo):
        problems.append(
            f"algo is {config.algo!r} with settings of {type(config.algorithm).__name__}; "
            f"allowed: {', '.join(CONFIGS)} with settings of its own"
        )
    return problems + [f"algorithm.{problem}" for problem in config.algorithm.problems()]


def check(config: TrainConfig) -> None:
    """Raises ConfigError naming every value that is out of range, and what is allowed."""
    if problems := problems_of(config):
        raise ConfigError(problems)


def prune_problems(config: PruneConfig) -> list[str]:
    """As ``problems_of``, for how a ticket is drawn."""
    targets = {"prune.actor": config.actor, "prune.critic": config.critic}
    problems = [f"{n} is {v}; allowed: sparsity in [0, 1)" for n, v in targets.items() if not 0 <= v < 1]
    if not problems and not any(targets.values()):
        problems.append("prune.actor and prune.critic are 0; a ticket needs one of them above")
    if not 0 < config.rate <= 1:
        problems.append(f"prune.rate is {config.rate}; allowed: above 0, up to 1")
    if config.criterion not in CRITERIA:
        problems.append(f"prune.criterion is {config.criterion!r}; allowed: {', '.join(CRITERIA)}")
    if config.scope not in SCOPES:
        problems.append(f"prune.scope is {config.scope!r}; allowed: {', '.join(SCOPES)}")
    if config.min_kept < 0:
        problems.append(f"prune.min_kept is {config.min_kept}; allowed: 0 and more")
    return problems
