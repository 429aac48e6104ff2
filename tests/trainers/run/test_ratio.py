"""Updates for each environment step: the ratio asked for, at any n, N, M and schedule."""

import pytest
from support.training import artifact, check_ratio, tiny_config, train

pytestmark = pytest.mark.usefixtures("one_launcher", "without_learning")

_NAMES = (
    *("ratio", "dispatch", "n", "N", "M", "block_length", "group_size"),
    *("schedule", "env_steps", "start_steps"),
)


@pytest.mark.parametrize(
    _NAMES,
    [
        (0.0625, 16, 4, 1, 0, 16, None, "asynchronous", 1000, 100),
        (0.29, 7, 3, 2, 0, 5, None, "asynchronous", 400, 50),
        (0.7, 5, 4, 1, 1, 4, None, "asynchronous", 300, 20),
        (2.5, 16, 2, 2, 0, 4, 1, "rounds", 150, 10),
        (1.0, 3, 2, 1, 1, 3, 2, "rounds", 100, 0),
        (1.1, 4, 3, 1, 0, 64, None, "asynchronous", 500, 490),
    ],
)
def test_the_ratio_asked_for_is_the_ratio_run(
    ratio,
    dispatch,
    n,
    N,
    M,
    block_length,
    group_size,
    schedule,
    env_steps,
    start_steps,
    tmp_path,
    learners,
):
    config = tiny_config(
        updates_per_step=ratio,
        updates_per_dispatch=dispatch,
        env_steps=env_steps,
        start_steps=start_steps,
        collect__n=n,
        collect__N=N,
        collect__M=M,
        collect__block_length=block_length,
        collect__group_size=group_size,
        collect__schedule=schedule,
        collect__reproducible=False,
        evaluation__every=env_steps,
    )
    summary = train(tmp_path / "run", config)
    (learner,) = learners
    check_ratio(config, learner.log, block_length * (group_size or n))
    assert (summary["env_steps"], summary["updates"]) == (learner.env_steps, learner.updates)
    expected = summary["updates"] / (summary["env_steps"] - start_steps)
    assert summary["updates_per_step"] == expected
    assert artifact(tmp_path / "run")["updates"] == summary["updates"]
