"""Fast experience collection for CPU-simulated environments.

Everything that a user needs is named here. It is loaded when it is first asked for, so that importing one
module of this package (in a worker process, or before NumPy is installed) loads nothing else.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastcollect.control.collector import Collector
    from fastcollect.control.config import CollectorConfig, Schedule
    from fastcollect.control.parallelism import Parallelism
    from fastcollect.control.serial import SerialCollector
    from fastcollect.control.source import BlockSource
    from fastcollect.control.stats import Stats
    from fastcollect.envs.base import ActionSpec, BatchedEnv, EnvSpec, StepBuffers
    from fastcollect.envs.registry import EnvConfig, available, register
    from fastcollect.memory.block import Block, Episodes
    from fastcollect.memory.segment import FieldSpec
    from fastcollect.policies.base import (
        POLICY_VERSION,
        Policy,
        PolicyConfig,
        cnn_policy,
        mlp_policy,
        noisy_mlp_policy,
        random_policy,
    )
    from fastcollect.support.errors import ConfigError, LauncherLostError, StallError, WorkerError

_MODULES = {
    "control.collector": "Collector",
    "control.config": "CollectorConfig Schedule",
    "control.parallelism": "Parallelism",
    "control.serial": "SerialCollector",
    "control.source": "BlockSource",
    "control.stats": "Stats",
    "envs.base": "ActionSpec BatchedEnv EnvSpec StepBuffers",
    "envs.registry": "EnvConfig available register",
    "memory.block": "Block Episodes",
    "memory.segment": "FieldSpec",
    "policies.base": "POLICY_VERSION Policy PolicyConfig cnn_policy mlp_policy noisy_mlp_policy "
    "random_policy",
    "support.errors": "ConfigError LauncherLostError StallError WorkerError",
}
_HOMES = {name: f"{__name__}.{module}" for module, names in _MODULES.items() for name in names.split()}

# In full, for type checkers.
__all__ = ["BlockSource", "Collector", "CollectorConfig", "Parallelism", "Schedule", "SerialCollector"]
__all__ += ["ActionSpec", "BatchedEnv", "EnvConfig", "EnvSpec", "StepBuffers", "available", "register"]
__all__ += ["POLICY_VERSION", "Policy", "PolicyConfig", "cnn_policy", "mlp_policy", "noisy_mlp_policy"]
__all__ += ["random_policy"]
__all__ += ["Block", "Episodes", "FieldSpec", "Stats"]
__all__ += ["ConfigError", "LauncherLostError", "StallError", "WorkerError"]


def __getattr__(name: str) -> Any:
    """The public object of this name, from the module where it lives (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Everything public, loaded or not."""
    return sorted({*globals(), *__all__})
