"""What a user chooses about a collector, and what follows from it for memory."""

import os
import resource
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import Literal, get_args

from fastcollect.control.parallelism import Parallelism
from fastcollect.envs.base import EnvSpec
from fastcollect.envs.registry import EnvConfig, check_rows, resolve
from fastcollect.memory.ring import RingConfig, group_sizes
from fastcollect.memory.segment import FieldSpec
from fastcollect.memory.tokens import CAPACITY, TokenChannel, exchange
from fastcollect.policies.base import Policy, PolicyConfig, random_policy
from fastcollect.support.cpu import memory_available
from fastcollect.support.errors import ConfigError
from fastcollect.workers.group import EnvWorkerConfig

MAX_ENV_WORKERS, MAX_MODEL_WORKERS = 512, 64

Schedule = Literal["asynchronous", "rounds"]
"""What a collection and its consumer promise each other; see CollectorConfig."""


@dataclass(frozen=True, kw_only=True)
class CollectorConfig:
    """Everything a collector needs to know.

    policy: what acts in the environment.
    num_envs: n, environments of each env worker. num_env_workers: N. num_model_workers: M; with 0 the env
        workers infer for themselves, in NumPy.
    block_length: steps in a block. ring_blocks: blocks in a group's ring; a full ring makes its group wait.
    min_groups: a model worker waits for that many requests, or ``deadline`` seconds after the first.
    first_env: the global index of the first environment; the others follow it. Seeds, noise and
        ``Block.env_index`` depend on the global index, and so do options that are given environment by
        environment (``per_env_kwargs``, ``goal_indices``), lists of at least first_env + n * N entries. Two
        sources whose indices do not overlap share nothing, and both can be given the whole list.
    schedule: "asynchronous": every env worker goes on as long as its rings have room, published weights act
        at once, and blocks come in the order in which they were finished. "rounds": a round is one block of
        every group. It is begun when every block of the round before was handed out, weights published
        during a round act from the next one on, and blocks come in the order of environments. A ring then
        holds one block, whatever ``ring_blocks`` says.
    reproducible: the same seed gives the same bits whatever N and M are, serial or parallel, as long as
        n * N and the groups' sizes stay. Needs schedule="rounds". The NumPy policy infers each group in a
        call of its own without padding, an env worker that dies ends the run, because its replacement would
        not repeat its steps, and ``get_state`` holds the environments in full.
    group_size: environments that step together; must divide n. None: half of n if there are model workers,
        so that one half steps while the other waits for its actions; else n.
    model_device: what a JAX policy runs on in model workers: "cpu" or "gpu".
    stall_seconds: how long a worker may stand still before it is an error that shows every worker's stack.
    tokens: what carries the tokens between processes, "pipes" of the kernel or "faster-fifo", queues in
        shared memory. With both the death of a worker hangs nothing and loses no published block; a queue
        takes more time per token and is emptied by a death inside it. ``fastcollect.memory.tokens`` states
        the limits of each.
    check: poison blocks before they are written and verify them when they are taken (slow; for tests).
    """

    env: EnvConfig
    policy: PolicyConfig = field(default_factory=random_policy)
    num_envs: int = 64
    num_env_workers: int = 2
    num_model_workers: int = 0
    block_length: int = 16
    ring_blocks: int = 3
    min_groups: int = 1
    deadline: float = 0.001
    seed: int = 0
    first_env: int = 0
    schedule: Schedule = "asynchronous"
    reproducible: bool = False
    group_size: int | None = None
    model_device: str = "cpu"
    stall_seconds: float = 120.0
    tokens: TokenChannel = "pipes"
    check: bool = False

    def __post_init__(self) -> None:
        sizes = (
            ("num_envs (n)", self.num_envs, 1, 65536),
            ("num_env_workers (N)", self.num_env_workers, 1, MAX_ENV_WORKERS),
            ("num_model_workers (M)", self.num_model_workers, 0, MAX_MODEL_WORKERS),
            ("block_length", self.block_length, 1, 1_000_000),
            ("ring_blocks", self.ring_blocks, 1, 1024),
            ("min_groups", self.min_groups, 1, 2 * MAX_ENV_WORKERS),
            ("seed", self.seed, 0, 2**32 - 1),
            ("first_env", self.first_env, 0, 2**31 - 1),
        )
        problems = [
            f"{name} is {value!r}; allowed: {low} to {high}"
            for name, value, low, high in sizes
            if not _is_integer(value) or not low <= value <= high
        ]
        size = self.group_size
        if not problems and size is not None and (not _is_integer(size) or size < 1 or self.num_envs % size):
            divisors = [d for d in range(1, self.num_envs + 1) if self.num_envs % d == 0]
            problems.append(f"group_size is {size!r}; allowed: a divisor of num_envs, any of {divisors}")
        if self.tokens in get_args(TokenChannel):
            problems += self._token_problems(sizes_are_right=not problems)
        deadline, stall = self.deadline, self.stall_seconds
        others = (
            ("tokens", self.tokens in (allowed := get_args(TokenChannel)), ", ".join(map(repr, allowed))),
            ("schedule", self.schedule in get_args(Schedule), "'asynchronous', 'rounds'"),
            ("model_device", self.model_device in ("cpu", "gpu"), "'cpu', 'gpu'"),
            ("deadline", isinstance(deadline, Real) and 0 < deadline <= 10, "above 0, at most 10 seconds"),
            ("stall_seconds", isinstance(stall, Real) and stall > 0, "above 0"),
            ("env", isinstance(self.env, EnvConfig), "an EnvConfig"),
            ("policy", isinstance(self.policy, PolicyConfig), "a PolicyConfig"),
        )
        problems += [
            f"{name} is {getattr(self, name)!r}; allowed: {allowed}"
            for name, right, allowed in others
            if not right
        ]
        if self.reproducible and self.schedule == "asynchronous":
            problems.append(
                "reproducible is True and schedule is 'asynchronous'; allowed: reproducible with "
                "schedule='rounds' only, because what is asynchronous depends on who is faster"
            )
        if problems:
            raise ConfigError(problems)

    def _token_problems(self, sizes_are_right: bool) -> list[str]:
        try:
            shared = exchange(self.tokens).shared
        except ConfigError as error:
            return list(error.problems)
        workers, factor = ("num_env_workers x ", self.num_env_workers) if shared else ("", 1)
        if not sizes_are_right or (most := factor * len(self.groups) * (self.ring_blocks + 2)) <= CAPACITY:
            return []
        text = f"{workers}groups x (ring_blocks + 2) is {most}; allowed with {self.tokens}: up to {CAPACITY}"
        return [f"{text}; use larger groups"]

    @property
    def parallelism(self) -> Parallelism:
        """n, N and M."""
        return Parallelism(self.num_envs, self.num_env_workers, self.num_model_workers)

    def with_parallelism(self, parallelism: Parallelism) -> "CollectorConfig":
        """The same configuration with other n, N and M. Raises ConfigError as the constructor does."""
        n, env_workers, model_workers = parallelism.n, parallelism.N, parallelism.M
        return replace(self, num_envs=n, num_env_workers=env_workers, num_model_workers=model_workers)

    @property
    def rounds(self) -> bool:
        """Whether the schedule is "rounds"."""
        return self.schedule == "rounds"

    @property
    def env_indices(self) -> range:
        """The global indices of the environments: first_env and the n * N - 1 after it."""
        return range(self.first_env, self.first_env + self.total_envs)

    @property
    def inline(self) -> bool:
        """M = 0: no model workers."""
        return self.num_model_workers == 0

    @property
    def total_envs(self) -> int:
        """n times N."""
        return self.num_envs * self.num_env_workers

    @property
    def groups(self) -> tuple[int, ...]:
        """Sizes of the groups of one env worker."""
        if self.group_size is not None:
            return (self.group_size,) * (self.num_envs // self.group_size)
        return tuple(group_sizes(self.num_envs, 1 if self.inline else 2))

    @property
    def blocks_per_round(self) -> int:
        """How many blocks one round has: one for every group of every env worker."""
        return len(self.groups) * self.num_env_workers

    def ring(self, spec: EnvSpec, policy: Policy) -> RingConfig:
        """The memory of one env worker. In rounds a ring holds one block, so that nobody runs ahead."""
        capacity, noise = 1 if self.rounds else self.ring_blocks, policy.noise[1] if policy.noise else 0
        return RingConfig(spec, self.groups, self.block_length, capacity, policy.extras, noise)


def _is_integer(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_memory(ring: RingConfig, workers: int, parameters: Mapping[str, FieldSpec]) -> None:
    """Raises ConfigError when the rings cannot fit, saying how much is needed and how much there is."""
    rings = workers * ring.nbytes()
    board = 3 * sum(field.nbytes for field in parameters.values())
    have = memory_available()
    if rings + board > have:
        text = (
            f"{(rings + board) / 2**30:.2f} GiB of shared memory are needed, {have / 2**30:.2f} GiB are "
            f"available: {rings / 2**30:.2f} for the rings of {workers} env workers ({sum(ring.envs)} "
            f"environments, {ring.capacity} blocks of {ring.length} steps; lower num_envs, "
            f"num_env_workers or block_length), {board / 2**30:.2f} for the policy's weights"
        )
        raise ConfigError([text])


def allow_descriptors(env_workers: int, model_workers: int) -> None:
    """Raise this process's limit of open files to what the workers need. Raises ConfigError if it cannot."""
    workers = env_workers + model_workers
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = len(os.listdir("/proc/self/fd")) + 8 * workers + 3 * MAX_MODEL_WORKERS + 64
    need += 3 * env_workers * model_workers  # on their way to model workers that are still starting
    if hard != resource.RLIM_INFINITY and need > hard:
        text = f"{workers} workers need {need} open files, the limit is {hard}: raise `ulimit -Hn`"
        raise ConfigError([text])
    if need > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (need, hard))


def resolve_env(config: CollectorConfig) -> CollectorConfig:
    """The same configuration with its environment resolved. Raises ConfigError for what was named wrongly."""
    try:
        resolved = resolve(config.env)
    except ConfigError:
        raise
    except Exception as error:  # whatever a user's module does when it is imported
        raise ConfigError([f"environment {config.env.id!r}: {type(error).__name__}: {error}"]) from error
    check_rows(resolved, config.env_indices)
    return replace(config, env=resolved)


def env_worker_config(
    config: CollectorConfig, policy: Policy, ring: RingConfig, position: int, life: int
) -> EnvWorkerConfig:
    """What the env worker at this position needs of a collector's configuration."""
    return EnvWorkerConfig(
        env=config.env,
        policy=config.policy,
        ring=ring,
        noise=policy.noise[0] if policy.noise else None,
        first_env=config.first_env + position * config.num_envs,
        seed=config.seed,
        life=life,
        check=config.check,
        inline=config.inline,
        tokens=config.tokens,
    )
