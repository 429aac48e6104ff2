"""Collectors of the coded environment, in lockstep and free running, and whole rounds of blocks."""

from support.coded_env import echo_policy

from fastcollect.control.config import CollectorConfig
from fastcollect.envs.registry import EnvConfig

CODED = EnvConfig(id="coded", entry_point="support.coded_env:CodedEnv")


def lockstep(env=CODED, policy=None, num_envs=4, workers=2, models=0, **changes):
    defaults = {"group_size": 2, "block_length": 4, "seed": 5, "stall_seconds": 60.0, "check": True}
    return CollectorConfig(
        env=env,
        policy=policy or echo_policy(),
        num_envs=num_envs,
        num_env_workers=workers,
        num_model_workers=models,
        lockstep=True,
        **{**defaults, **changes},
    )


def one_round(collector):
    config = collector.config
    return [collector.take(timeout=60) for _ in range(len(config.groups) * config.num_env_workers)]


def free_running(**changes):
    defaults = {"env": CODED, "policy": echo_policy(), "num_envs": 4, "block_length": 5, "check": True}
    return CollectorConfig(**{**defaults, "stall_seconds": 60.0, **changes})
