"""A short run on Meta-World learns."""

import pytest
from support.training import evaluations, one_launcher

__all__ = ["one_launcher"]
REACH_SEED = 0


@pytest.mark.usefixtures("one_launcher")
def test_a_short_run_learns_to_reach(tmp_path, call):
    flags = ("--stage", "dense", "--env", "reach-v3", "--env-kwargs", "horizon=100", "--seed", REACH_SEED)
    flags += ("--env-steps", "12288", "--start-steps", "2048", "--anchor-steps", "12288")
    flags += ("--updates-per-step", "0.25", "--algorithm.hidden", "64", "64", "--evaluation.every", "1000000")
    flags += ("--collect.n", "16", "--collect.N", "2", "--run", tmp_path / "run")
    flags += ("--collect.schedule", "rounds", "--collect.reproducible")
    assert call(*flags) == (0, [])
    untrained, trained = evaluations(tmp_path / "run")
    assert (untrained["env_steps"], trained["env_steps"]) == (0, 12288)
    assert trained["updates"] == 2560
    assert trained["return_mean"] > 2 * untrained["return_mean"]
