"""n, N and M as one value."""

import pytest

from fastcollect.control.config import CollectorConfig
from fastcollect.control.parallelism import Parallelism
from fastcollect.envs.registry import EnvConfig
from fastcollect.support.errors import ConfigError


def test_it_says_what_it_is_and_compares_by_n_then_N_then_M():
    assert str(Parallelism(8, 2, 1)) == "n=8 N=2 M=1"
    assert Parallelism(8, 2, 1).as_dict() == {"n": 8, "N": 2, "M": 1}
    assert Parallelism(8, 2, 1).workers == 3
    assert Parallelism(8, 3, 0) < Parallelism(16, 1, 1) < Parallelism(16, 2, 0)


def test_a_configuration_takes_and_gives_it():
    config = CollectorConfig(env=EnvConfig(id="CartPole-v1"), seed=3, block_length=7)
    other = config.with_parallelism(Parallelism(n=5, N=3, M=2))
    assert other.parallelism == Parallelism(5, 3, 2)
    assert (other.num_envs, other.num_env_workers, other.num_model_workers) == (5, 3, 2)
    assert other.with_parallelism(config.parallelism) == config
    with pytest.raises(ConfigError, match=r"\(n\) is 0.*(?s:.*)\(M\) is -1"):
        config.with_parallelism(Parallelism(0, 1, -1))
