"""Collectors of the coded environment: reproducible, in rounds, asynchronous; and whole rounds of blocks."""

import numpy as np
from support.coded_env import echo_policy

from fastcollect.control.config import CollectorConfig
from fastcollect.envs.registry import EnvConfig

CODED = EnvConfig(id="coded", entry_point="support.coded_env:CodedEnv")


def in_rounds(env=CODED, policy=None, num_envs=4, workers=2, models=0, **changes):
    defaults = {"group_size": 2, "block_length": 4, "seed": 5, "stall_seconds": 60.0, "check": True}
    return CollectorConfig(
        env=env,
        policy=policy or echo_policy(),
        num_envs=num_envs,
        num_env_workers=workers,
        num_model_workers=models,
        schedule="rounds",
        **{**defaults, **changes},
    )


def reproducible(*args, **changes):
    return in_rounds(*args, reproducible=True, **changes)


def one_round(collector):
    return [collector.take(timeout=60) for _ in range(collector.config.blocks_per_round)]


def content(block):
    """Everything of a block but the worker's number, as bytes."""
    episodes = [getattr(block.episodes, name) for name in block.episodes.__dataclass_fields__]
    arrays = [block.env_index, block.observation, block.action, block.reward, block.terminated]
    arrays += [block.truncated, block.success, block.next_observation, *block.extras.values(), *episodes]
    return block.number, block.first_step, *(np.ascontiguousarray(a).tobytes() for a in arrays)


def asynchronous(**changes):
    defaults = {"env": CODED, "policy": echo_policy(), "num_envs": 4, "block_length": 5, "check": True}
    return CollectorConfig(**{**defaults, "stall_seconds": 60.0, **changes})
