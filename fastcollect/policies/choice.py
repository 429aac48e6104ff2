"""Which policy a command line means."""

from fastcollect.envs.registry import CRAFTER, METAWORLD_TASKS
from fastcollect.policies.base import PolicyConfig, cnn_policy, mlp_policy, random_policy
from fastcollect.support.errors import ConfigError

_SMALL = {"CartPole-v1": (16, 16), "HalfCheetah-v5": (64, 64)}


def parse_policy(text: str | None, env_id: str) -> PolicyConfig:
    """A policy from "cnn", "random" or hidden widths such as "256,256"; None: what suits the environment.

    Raises ConfigError.
    """
    # By name, because building the environment would load its simulator into the calling process.
    images = env_id in CRAFTER or env_id.startswith("gameboy:")
    if text == "cnn" or (text is None and images):
        return cnn_policy()
    if text is None:
        wide = (256, 256) if env_id in METAWORLD_TASKS else (64, 64)
        return mlp_policy(_SMALL.get(env_id, wide))
    if text == "random":
        return random_policy()
    try:
        widths = tuple(int(part) for part in text.split(","))
    except ValueError:
        widths = ()
    if not widths or min(widths) < 1:
        allowed = '"cnn", "random", or hidden widths such as "256,256"'
        raise ConfigError([f"policy is {text!r}; allowed: {allowed}"])
    return mlp_policy(widths)
