"""What a user chooses about networks that are sparse from the start, and what follows from a run's length."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from engine.algorithms import CONFIGS
from trainers.config.training import Allowed, TrainConfig, out_of_range, updates_due


@dataclass(frozen=True, kw_only=True)
class SparseConfig:
    """How sparse the networks are from the start, and how their topology evolves.

    Counts of updates are those of a network itself: an actor that is updated every second time has half.
    """

    topology: Literal["static", "set", "rigl", "rlx2", "gmp", "small"] = "rlx2"
    """static: the first mask stays. set: drop the least weights, grow at random (Mocanu et al. 2018). rigl:
    grow where the gradient is greatest (Evci et al. 2020). rlx2: rigl with delayed multi-step targets and a
    replay that forgets (Tan et al. 2023). gmp: begin dense and prune gradually (Zhu and Gupta 2017). small:
    no mask but small layers, with as many weights."""
    actor_sparsity: float = 0.9
    """Share of the actor's kernels that is pruned, at the end."""
    critic_sparsity: float = 0.8
    """Share of the critics' kernels that is pruned, at the end."""
    distribution: Literal["erk", "uniform", "global"] = "erk"
    """How the first mask's weights are shared out: by Erdos-Renyi densities, the same density in every layer,
    or the greatest weights of all layers together."""
    frozen: tuple[Literal["actor", "critic"], ...] = ()
    """Networks whose first mask stays whatever the topology."""
    topology_interval: int = 10_000
    """Updates between two changes of the topology; default: a 300th of the run's, as published."""
    topology_begin: float = 0.0
    """Share of the run's updates before the first change; gmp: 0.2."""
    topology_end: float = 1.0
    """Share of the run's updates after the last change; gmp: 0.8."""
    drop_share: float = 0.5
    """Share of the kept weights that the first change replaces; it falls to 0 along a cosine."""


_ALLOWED: Allowed = (
    ("sparsity in [0, 1)", lambda v: 0 <= v < 1, "actor_sparsity critic_sparsity"),
    ("1 and more", lambda v: v >= 1, "topology_interval"),
    ("in [0, 1)", lambda v: 0 <= v < 1, "topology_begin"),
    ("above 0, up to 1", lambda v: 0 < v <= 1, "topology_end drop_share"),
)


def sparse_problems(config: SparseConfig, run: TrainConfig) -> list[str]:
    """Every value that is out of range or does not fit the run, by its dotted name, and what is allowed."""
    problems = out_of_range(config, _ALLOWED, "sparse.")
    if config.actor_sparsity == config.critic_sparsity == 0:
        problems.append("sparse.actor_sparsity and sparse.critic_sparsity are 0; one of them must be above")
    if config.topology_begin >= config.topology_end:
        problems.append(
            f"sparse.topology_begin is {config.topology_begin}; allowed: below topology_end, "
            f"{config.topology_end}"
        )
    updates = updates_due(run, run.env_steps) if math.isfinite(run.updates_per_step) else 0
    if config.topology in EVOLVING and 0 < updates < config.topology_interval:
        problems.append(
            f"sparse.topology_interval is {config.topology_interval}; allowed: 1 to {updates}, which are all "
            "updates of the run"
        )
    return problems


EVOLVING = {"set": "set", "rigl": "rigl", "rlx2": "rigl", "gmp": "gmp"}
"""The topologies that change, and by which method of ``engine.sparse.topology``."""


_LENGTH = ("env_steps", "start_steps", "updates_per_step")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def topology_settings(algo: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the topology that these settings choose means beside its method, as plain data.

    Lengths are the published ones as shares of the run's: 10,000 and 300,000 of 3,000,000 updates; 10,000 and
    200,000 of 3,000,000 steps. Raises ConfigError for a file that cannot be read.
    """
    lengths = [settings.get(name, getattr(TrainConfig, name)) for name in _LENGTH]
    sparse = settings.get("sparse", {})
    if not (isinstance(sparse, Mapping) and all(map(_is_number, lengths))):
        return {}  # every setting's type is checked where all are there
    topology, (steps, start, ratio) = sparse.get("topology", SparseConfig.topology), lengths
    updates = max(1, int((steps - start) * ratio))
    found: dict[str, Any] = {"sparse": {"topology_interval": max(1, updates // 300)}}
    if topology == "gmp":
        # The schedule that Graesser et al. 2022 found best in reinforcement learning.
        found["sparse"] |= {"topology_begin": 0.2, "topology_end": 0.8}
    if topology == "rlx2":
        known = getattr(CONFIGS.get(algo), "__dataclass_fields__", {})
        own = {"n_step": 3, "n_step_delay": updates // 10, "entropy_of_steps": True}
        found["algorithm"] = {name: value for name, value in own.items() if name in known}
        found["replay"] = {"minimum": max(1, steps // 15), "check_every": max(1, steps // 300)}
    return found
