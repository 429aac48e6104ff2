"""What flags and files say of networks that are sparse from the start, and what follows from them."""

import pytest

from fastcollect.support.errors import ConfigError
from trainers import command
from trainers.config.sparse import SparseConfig
from trainers.study.identities import sparse_identity

SPARSE = ("--stage", "sparse", "--env", "HalfCheetah-v5")


def parse(*flags):
    return command.read([*SPARSE, *flags]).arguments()


def problems(*flags):
    with pytest.raises(ConfigError) as caught:
        parse(*flags)
    return caught.value.problems


def test_the_flags_of_a_topology_have_no_prefix():
    given = parse(
        "--topology", "set", "--actor-sparsity", "0.95", "--critic-sparsity", "0.5", "--frozen", "actor"
    )
    chosen = given.sparse
    assert (chosen.topology, chosen.actor_sparsity, chosen.critic_sparsity) == ("set", 0.95, 0.5)
    assert chosen.frozen == ("actor",)


def test_lengths_are_shares_of_the_runs():
    # As published: 3,000,000 steps, the first 25,000 at random, as many updates as steps.
    published = ("--env-steps", "3000000", "--start-steps", "0", "--updates-per-step", "1")
    given = parse(*published)
    assert given.sparse.topology == "rlx2"
    assert given.sparse.topology_interval == 10_000
    assert (given.algorithm.n_step, given.algorithm.n_step_delay) == (3, 300_000)
    assert (given.replay.minimum, given.replay.check_every) == (200_000, 10_000)
    # 195,000 steps after the start of a run of 200,000, at a sixteenth: 12,187 updates.
    short = parse()
    assert short.sparse.topology_interval == 40
    assert short.algorithm.n_step_delay == 1218
    assert (short.replay.minimum, short.replay.check_every) == (13_333, 666)


def test_what_is_given_wins_over_what_follows():
    given = parse("--topology-interval", "7", "--algorithm.n-step", "2", "--replay.minimum", "50")
    assert given.sparse.topology_interval == 7
    assert (given.algorithm.n_step, given.algorithm.n_step_delay) == (2, 1218)
    assert given.replay.minimum == 50


@pytest.mark.parametrize("topology", ["static", "set", "rigl", "small"])
def test_other_topologies_change_nothing_but_the_mask(topology):
    given = parse("--topology", topology)
    assert (given.algorithm.n_step, given.algorithm.n_step_delay) == (1, 0)
    assert given.replay.minimum is None
    assert (given.sparse.topology_begin, given.sparse.topology_end) == (0.0, 1.0)


def test_gradual_pruning_begins_and_ends_within_the_run():
    chosen = parse("--topology", "gmp").sparse
    assert (chosen.topology_begin, chosen.topology_end) == (0.2, 0.8)


def test_a_manifest_given_back_is_the_same_run(tmp_path):
    given = parse("--topology", "rigl", "--actor-sparsity", "0.7")
    config = command.train_config(given)
    file = tmp_path / "again.yaml"
    file.write_text(command_file(sparse_identity(config, given.sparse).config))
    again = command.read(["--stage", "sparse", "--config", str(file)]).arguments()
    assert again.sparse == given.sparse
    assert command.train_config(again) == config


def command_file(config):
    from trainers.config import yaml_file

    return yaml_file.dump(config)


@pytest.mark.parametrize("algo", ["sac", "td3"])
def test_the_published_settings_are_what_was_published(algo):
    given = command.read(["--stage", "sparse", "--config", f"trainers/settings/rlx2-{algo}.yaml"]).arguments()
    assert (given.algo, given.env, given.env_steps) == (algo, "HalfCheetah-v5", 3_000_000)
    sparsities = {"sac": (0.9, 0.8), "td3": (0.9, 0.85)}
    assert (given.sparse.actor_sparsity, given.sparse.critic_sparsity) == sparsities[algo]
    assert (given.sparse.topology_interval, given.sparse.drop_share) == (10_000, 0.5)
    assert (given.algorithm.n_step, given.algorithm.n_step_delay) == (3, 300_000)
    minimum = {"sac": (3_000_000, 200_000), "td3": (1_000_000, 100_000)}
    assert (given.replay.capacity, given.replay.minimum) == minimum[algo]


@pytest.mark.parametrize("algo", ["sac", "td3"])
def test_settings_for_robots_serve_every_stage_and_are_those_of_rlx2_but_for_its_own(algo):
    file = ["--config", f"trainers/settings/mujoco-{algo}.yaml"]
    dense = command.read(["--stage", "dense", *file]).arguments()
    assert (dense.algo, dense.env, dense.algorithm.n_step) == (algo, "HalfCheetah-v5", 1)
    rlx2 = command.read(["--stage", "sparse", "--config", f"trainers/settings/rlx2-{algo}.yaml"]).arguments()
    own = {"n_step", "n_step_delay", "entropy_of_steps"}
    same = vars(dense.algorithm).keys() - own
    assert {k: getattr(dense.algorithm, k) for k in same} == {k: getattr(rlx2.algorithm, k) for k in same}
    # What a topology brings follows from the run's length: 990,000 updates.
    given = command.read(["--stage", "sparse", "--topology", "rlx2", *file]).arguments()
    assert (given.algorithm.n_step, given.algorithm.n_step_delay) == (3, 99_000)
    assert (given.sparse.topology_interval, given.replay.minimum) == (3_300, 66_666)


def test_every_wrong_value_is_named_at_once():
    found = problems(
        *("--actor-sparsity", "1.0", "--critic-sparsity", "-0.1", "--topology-interval", "0"),
        *("--topology-begin", "0.9", "--topology-end", "0.5", "--drop-share", "0"),
        *("--replay.minimum", "100", "--replay.capacity", "99"),
    )
    named = [
        *("sparse.actor_sparsity is 1.0", "sparse.critic_sparsity is -0.1", "sparse.topology_interval is 0"),
        *("sparse.topology_begin is 0.9", "sparse.drop_share is 0.0", "replay.minimum is 100"),
    ]
    for each in named:
        assert any(problem.startswith(each) for problem in found), (each, found)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (
            ("--topology-interval", "12188"),
            "sparse.topology_interval is 12188; allowed: 1 to 12187, which are all",
        ),
        (("--topology-end", "1.5"), "sparse.topology_end is 1.5; allowed: above 0, up to 1"),
        (("--actor-sparsity", "0", "--critic-sparsity", "0"), "sparse.actor_sparsity and"),
    ],
)
def test_what_lies_beyond_the_run_is_refused(flags, named):
    (found,) = problems("--topology", "rigl", *flags)
    assert found.startswith(named)


def test_values_of_other_types_are_named_and_nothing_follows_from_them(tmp_path):
    file = tmp_path / "bad.yaml"
    file.write_text("stage: sparse\nenv_steps: many\nsparse: 3\n")
    with pytest.raises(ConfigError) as caught:
        command.read(["--stage", "sparse", "--config", str(file)])
    assert any("env_steps is 'many'" in problem for problem in caught.value.problems)
    assert any("sparse is 3" in problem for problem in caught.value.problems)


def test_the_defaults_of_a_study_are_none_of_a_topologys():
    assert SparseConfig().topology_interval == 10_000
    given = command.read(["--stage", "dense"]).arguments()
    assert given.algorithm.n_step == 1


def test_what_cannot_be_ends_with_2_and_leaves_nothing(tmp_path, call):
    flags = ("--actor-sparsity", "1", "--topology-interval", "0", "--replay.minimum", "2000000")
    code, errors = call(*SPARSE, *flags, "--run", tmp_path / "run")
    assert code == 2
    assert [error.split(" is ")[0] for error in errors] == [
        "error: replay.minimum",
        "error: sparse.actor_sparsity",
        "error: sparse.topology_interval",
    ]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("ratio", ["inf", "nan", "0"])
def test_a_ratio_that_cannot_be_is_named_and_nothing_follows_from_it(ratio):
    (found,) = problems("--updates-per-step", ratio)
    assert found.startswith(f"updates_per_step is {float(ratio)}; allowed: a finite number above 0")
