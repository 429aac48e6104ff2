"""Which policy a command line means."""

import pytest

from fastcollect.policies.choice import parse_policy
from fastcollect.support.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "env_id", "name"),
    [
        (None, "reach-v3", "mlp-256x256"),
        (None, "CartPole-v1", "mlp-16x16"),
        (None, "Pendulum-v1", "mlp-64x64"),
        (None, "CrafterReward-v1", "cnn-16x32-256"),
        (None, "CrafterNoReward-v1", "cnn-16x32-256"),
        (None, "gameboy:any.gb", "cnn-16x32-256"),
        ("cnn", "mine:Pixels", "cnn-16x32-256"),
        ("32,8", "CrafterReward-v1", "mlp-32x8"),
        ("random", "CrafterReward-v1", "random"),
    ],
)
def test_a_text_or_an_environment_names_a_policy(text, env_id, name):
    assert parse_policy(text, env_id).name == name


@pytest.mark.parametrize("text", ["", "cnn,32", "0", "8,-1", "resnet"])
def test_another_text_is_refused_with_what_is_allowed(text):
    with pytest.raises(ConfigError, match=r'allowed: "cnn", "random", or hidden widths'):
        parse_policy(text, "CrafterReward-v1")
