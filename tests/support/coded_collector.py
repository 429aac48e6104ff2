"""Collectors of the coded environment, small and with every check on."""

from support.coded_env import echo_policy

from fastcollect.control.config import CollectorConfig
from fastcollect.envs.registry import EnvConfig


def coded(**kwargs):
    return EnvConfig(id="coded", entry_point="support.coded_env:CodedEnv", kwargs=kwargs)


def config(**changes):
    defaults = {"env": coded(), "policy": echo_policy(), "num_envs": 4, "block_length": 5, "check": True}
    return CollectorConfig(**{**defaults, "stall_seconds": 30.0, **changes})
