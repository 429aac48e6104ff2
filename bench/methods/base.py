"""What every method is made of. Imports nothing that a peer's virtual environment lacks."""

import ctypes
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fastcollect import Parallelism
from fastcollect.envs.registry import CRAFTER, METAWORLD_TASKS
from fastcollect.support.cpu import cpu_count


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request to one process to count environment steps. method: a key of METHODS.

    policy: see ``fastcollect.policies.choice.parse_policy``. index: which of several processes of the same
    method this is.
    """

    method: str
    env: str
    parallelism: Parallelism
    policy: str | None = None
    index: int = 0


@dataclass(frozen=True)
class Subject:
    """What is measured.

    step: advances and says by how many environment steps or updates, possibly 0. close: frees it.
    num_envs: environments that exist at the same time. facts: what is worth telling once the clock has
    stopped. wait: returns when everything that was counted is computed.
    """

    step: Callable[[], int]
    close: Callable[[], None] = lambda: None
    num_envs: int = 0
    facts: Callable[[], dict[str, Any]] = dict
    wait: Callable[[], None] = lambda: None


Build = Callable[[Any], Subject]
Sizes = Callable[[str, Sequence[Parallelism]], Sequence[Parallelism]]
"""From an environment and what was chosen for our methods (else tuned, else default) to a method's own."""


def one_process(_: str, ours: Sequence[Parallelism]) -> list[Parallelism]:
    """Of a method whose environments live in one process."""
    return [Parallelism(ours[0].n, 1, 0)]


@dataclass(frozen=True)
class Method:
    """One method. build: makes its subject from its request, in the measurement's process.

    note: what a row of it measures. peer: the folder in .venv-peers whose interpreter runs it; None: ours.
    role: "ours", or what ours is compared with, a "peer" or a "limit". policy: whether it runs the row's.
    sizes: its n, N and M, a row for each. obeys: whether a peer keeps to the n and N that the user gives.
    everywhere: whether N processes run it at once. candidates: values of n of which the fastest is taken
    where a step costs next to nothing. request: the class of its requests, by which commands know their own.
    capped: whether thread pools are held to one thread, as in workers.
    """

    name: str
    build: Build
    note: str = ""
    peer: str | None = None
    role: str = "ours"
    policy: bool = False
    sizes: Sizes = lambda env, ours: ours
    obeys: bool = False
    everywhere: bool = False
    candidates: Sequence[int] = ()
    request: type[Any] = Request
    capped: bool = True


class UnsupportedError(ValueError):
    """This method does not exist for this environment or on this machine; the text says what does."""


def die_with(parent: int) -> None:
    """Have this process killed when its parent, whose number this is, ends in whatever way."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it died before the request took effect
        os._exit(1)


def is_cheap(env: str) -> bool:
    """Whether a step costs so little that only large batches amortise a call."""
    return env == "CartPole-v1" or env.startswith("vector:")


def each_processor(models: int, most: int = 1024) -> Sizes:
    """Of a peer with a process of at most so many environments for each processor, and model processes.

    Stock Meta-World and Crafter take a second to build; with 32 of the former Sample Factory was no faster.
    """

    def sizes(env: str, _: object) -> list[Parallelism]:
        n = 1024 if is_cheap(env) else 16 if env in METAWORLD_TASKS or env in CRAFTER else 64
        return [Parallelism(min(n, most), cpu_count(), models)]

    return sizes
