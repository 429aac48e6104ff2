"""Flags and files: what each place gives, which one wins, and what is said of what cannot be."""

import os
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.algorithms import CONFIGS
from fastcollect.support.errors import ConfigError
from trainers import command
from trainers.config.defaults import defaults
from trainers.config.training import PruneConfig, train_config
from trainers.store.folder import RunFolder
from trainers.store.identity import dense_identity
from trainers.study import rewind
from trainers.study.identities import ticket_identity

PUBLISHED = "trainers/settings/published.yaml"


def parse(argv):
    """The arguments that this command line gives."""
    return command.read(argv).arguments()


def choices(arguments):
    """What identifies a run: everything but where it lies and where its flags came from."""
    return {k: v for k, v in vars(arguments).items() if k not in ("config", "run", "runs", "resume")}


def save_manifest(path, identity):
    with RunFolder.create(path, identity, ["train.py"]):
        pass
    return path / "manifest.yaml"


positive = st.floats(1e-9, 1e9)
COMBINATIONS = st.fixed_dictionaries(
    {
        "--seed": st.integers(0, 2**31 - 1),
        "--updates-per-step": positive,
        "--algorithm.actor-learning-rate": positive,
        "--algorithm.max-gradient-norm": st.none() | positive,
        "--algorithm.target-entropy": st.none() | st.floats(-1e9, 1e9),
        "--stop-success": st.none() | st.floats(1e-6, 1),
        "--collect.schedule": st.sampled_from(["asynchronous", "rounds"]),
        "--collect.group-size": st.none() | st.integers(1, 64),
        "--replay.storage": st.sampled_from([None, "host", "device"]),
        "--env": st.sampled_from(["reach-v3", "push-v3", "support.tiny_env:TinyEnv"]),
        "--env-kwargs": st.lists(st.sampled_from(["physics=fast", "a=[1, 2]", "b=x y", "c={}"]), max_size=2),
        "--algorithm.hidden": st.lists(st.integers(1, 512), min_size=1, max_size=3),
    }
)


def written_out(combination):
    flags = []
    for name, value in combination.items():
        if isinstance(value, bool):
            group, dot, own = name[2:].rpartition(".")
            flags.append(f"--{group}{dot}{'' if value else 'no-'}{own}")
        else:
            values = value if isinstance(value, list) else [value]
            flags += [name, *map(str, values)]
    return flags


@pytest.mark.slow
@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(COMBINATIONS)
def test_a_manifest_given_back_is_the_same_configuration(tmp_path, combination):
    arguments = parse(["--stage", "dense", *written_out(combination)])
    assert arguments.algorithm.hidden == tuple(combination["--algorithm.hidden"])
    assert arguments.algorithm.target_entropy == combination["--algorithm.target-entropy"]
    identity = dense_identity(train_config(arguments))
    path = tmp_path / identity.hash()
    file = save_manifest(path, identity) if not path.exists() else path / "manifest.yaml"
    for given_back in (file, path):
        again = parse(["--config", str(given_back)])
        assert choices(again) == choices(arguments)
        assert dense_identity(train_config(again)) == identity


def test_the_manifest_of_a_ticket_is_the_same_ticket(tmp_path):
    base = parse(
        ["--stage", "dense", "--algorithm.hidden", "7", "--collect.schedule", "rounds", "--seed", "5"]
    )
    source = tmp_path / "dense"
    save_manifest(source, dense_identity(train_config(base)))
    flags = ["--prune.critic", "0.3", "--rewind.replay", "fresh"]
    arguments = parse(["--stage", "ticket", "--from", str(source), "--env-steps", "9000", *flags])
    assert (arguments.algorithm.hidden, arguments.seed, arguments.collect.schedule) == ((7,), 5, "rounds")
    config = train_config(arguments)
    identity = ticket_identity(
        config, arguments.prune, arguments.rewind, rewind.Source(str(source), "x"), tmp_path
    )
    again = parse(["--config", str(save_manifest(tmp_path / "ticket", identity))])
    assert choices(again) == choices(arguments)
    assert again.rewind.replay == "fresh"


def test_flags_win_over_the_file_and_the_file_over_the_task(tmp_path):
    file = tmp_path / "some.yaml"
    file.write_text("stage: dense\nenv: push-v3\nseed: 4\nalgorithm:\n  discount: 0.9\n  n_step: 3\n")
    flags = ["--config", str(file), "--algorithm.n-step", "2", "--seed", "6"]
    arguments = parse(flags)
    assert (arguments.seed, arguments.algorithm.n_step, arguments.algorithm.discount) == (6, 2, 0.9)
    assert (arguments.env, arguments.env_steps) == ("push-v3", 400_000)
    file.write_text("stage: dense\nenv: push-v3\nenv_steps: 77777\n")
    assert parse(flags[:2]).env_steps == 77777
    assert parse([*flags[:2], "--env", "reach-v3"]).env == "reach-v3"
    assert parse(["--stage", "dense"]).env_steps == 200_000


def test_a_source_gives_its_settings_but_not_another_tasks_budget(tmp_path):
    config = train_config(parse(["--stage", "dense", "--algorithm.hidden", "5"]))
    save_manifest(tmp_path / "dense", dense_identity(config))
    arguments = parse(["--stage", "ticket", "--from", str(tmp_path / "dense")])
    assert arguments.algorithm.hidden == (5,)
    assert arguments.env_steps == 200_000
    arguments = parse(["--stage", "transfer", "--from", str(tmp_path / "dense"), "--env", "push-v3"])
    assert (arguments.algorithm.hidden, arguments.env, arguments.env_steps) == ((5,), "push-v3", 400_000)
    assert (arguments.algorithm.n_step, arguments.algorithm.target_entropy) == (3, 0.0)
    assert arguments.env_kwargs == ("horizon=200",)


def test_a_source_of_a_task_with_settings_does_not_hand_them_on(tmp_path):
    flags = [
        "--env",
        "push-v3",
        "--algorithm.hidden",
        "5",
        "--algorithm.discount",
        "0.9",
        "--evaluation.episodes",
        "9",
    ]
    config = train_config(parse(["--stage", "dense", *flags]))
    save_manifest(tmp_path / "dense", dense_identity(config))
    arguments = parse(["--stage", "transfer", "--from", str(tmp_path / "dense"), "--env", "reach-v3"])
    assert (arguments.algorithm.hidden, arguments.algorithm.discount, arguments.env_steps) == (
        (5,),
        0.9,
        200_000,
    )
    assert (arguments.algorithm.n_step, arguments.algorithm.temperature_learning_rate) == (1, 1e-3)
    assert (arguments.algorithm.target_entropy, arguments.env_kwargs) == (None, ())
    assert (arguments.evaluation.every, arguments.evaluation.episodes) == (50_000, 50)


def test_arguments_of_the_environment_are_kept_by_name(tmp_path):
    flags = ["--env-kwargs", "goal_visible=false", "mt1_seed=3"]
    config = train_config(parse(["--stage", "dense", *flags]))
    save_manifest(tmp_path / "reach", dense_identity(config))
    transfer = ["--stage", "transfer", "--from", str(tmp_path / "reach"), "--env", "push-v3"]
    arguments = parse([*transfer, "--env-kwargs", "mt1_seed=4"])
    assert arguments.env_kwargs == ("horizon=200", "goal_visible=false", "mt1_seed=4")
    push = ["--stage", "dense", "--env", "push-v3"]
    assert parse([*push, "--env-kwargs", "horizon=500"]).env_kwargs == ("horizon=500",)
    config = train_config(parse([*push, *flags]))
    assert config.env_kwargs == ("horizon=200", "goal_visible=false", "mt1_seed=3")
    save_manifest(tmp_path / "push", dense_identity(config))
    again = ["--stage", "dense", "--config", str(tmp_path / "push")]
    assert parse(again).env_kwargs == config.env_kwargs
    back = ["--stage", "transfer", "--from", str(tmp_path / "push"), "--env", "reach-v3"]
    assert parse(back).env_kwargs == ("goal_visible=false", "mt1_seed=3")
    (tmp_path / "one.yaml").write_text("env: push-v3\nenv_kwargs: physics=fast\n")
    arguments = parse([*again[:3], str(tmp_path / "one.yaml")])
    assert arguments.env_kwargs == ("horizon=200", "physics=fast")


def test_a_transfer_rewinds_to_where_its_ticket_did(tmp_path):
    config = train_config(parse(["--stage", "dense"]))
    dense = save_manifest(tmp_path / "dense", dense_identity(config)).parent
    arguments = parse(["--stage", "ticket", "--from", str(dense), "--rewind.parameters", "initial"])
    identity = ticket_identity(
        config, arguments.prune, arguments.rewind, rewind.Source(str(dense), "y"), tmp_path
    )
    save_manifest(tmp_path / "ticket", identity)
    flags = ["--stage", "transfer", "--from", str(tmp_path / "ticket"), "--env", "push-v3"]
    assert parse(flags).rewind.parameters == "initial"
    assert parse([*flags, "--rewind.parameters", "anchor"]).rewind.parameters == "anchor"


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        (
            "algorithm:\n  discounts: 0.9\n",
            ["algorithm.discounts is no setting; allowed: hidden, batch_size"],
        ),
        ("sead: 3\n", ["sead is no setting; allowed: env, env_kwargs"]),
        ("seed: x\n", ["seed is 'x'; allowed: a whole number"]),
        ("seed: 1.0\ncollect: 5\n", ["seed is 1.0; allowed: a whole", "collect is 5; allowed: settings"]),
        ("controls: 1\nenv: 3\n", ["controls is 1; allowed: true or false", "env is 3; allowed: a text"]),
        ("seeds: [1, a]\n", ["seeds is [1, 'a']; allowed: a whole number"]),
        ("stage: most\n", ["stage is 'most'; allowed: dense, ticket, transfer, sparse, all"]),
        ("algorithm:\n  hidden: [0]\n", ["algorithm.hidden[0] is 0; allowed: 1 and more"]),
        ("algo: none\n", ["algo is 'none'; allowed: sac, td3"]),
        ("algo: [1]\n", ["algo is '[1]'; allowed: sac, td3"]),
    ],
)
def test_what_cannot_be_so_in_a_file_ends_with_2_and_its_name_and_place(text, problems, tmp_path, call):
    file = tmp_path / "some.yaml"
    file.write_text(text)
    flags = [] if "stage" in text else ["--stage", "dense"]
    code, errors = call("--config", file, *flags, "--run", tmp_path / "run")
    assert (code, len(errors)) == (2, len(problems))
    for error, problem in zip(errors, problems, strict=True):
        assert error.startswith(f"error: {problem}")
        assert "algo is" in problem or error.endswith(f"(given by the file {str(file)!r})")
    assert os.listdir(tmp_path) == ["some.yaml"]


def test_an_error_says_which_place_its_value_comes_from(tmp_path, call):
    (tmp_path / "some.yaml").write_text("env: push-v3\nstart_steps: 400000\nanchor_steps: 0\n")
    flags = ["--stage", "dense", "--config", tmp_path / "some.yaml", "--anchor-steps", "-1"]
    code, errors = call(*flags, "--algorithm.discount", "2")
    assert code == 2
    assert [line.rpartition(" (given by ")[2] for line in errors] == [
        "the command line)",
        f"the file {str(tmp_path / 'some.yaml')!r})",
        "the command line)",
    ]


def test_a_flag_that_does_not_exist_ends_with_2(capsys):
    with pytest.raises(SystemExit) as caught:
        parse(["--stage", "dense", "--sead", "3"])
    assert caught.value.code == 2
    output = capsys.readouterr()
    assert "--sead" in output.err + output.out


def test_help_shows_the_chosen_algorithms_flags(capsys, monkeypatch):
    with pytest.raises(SystemExit):
        command.read(["--help"])
    assert "--algorithm.reward-scale" in capsys.readouterr().out
    monkeypatch.setitem(CONFIGS, "other", OtherConfig)
    defaults.cache_clear()
    with pytest.raises(SystemExit):
        command.read(["--algo", "other", "--help"])
    shown = capsys.readouterr().out
    assert "--algorithm.letters" in shown
    assert "--algorithm.reward-scale" not in shown
    arguments = parse(["--stage", "dense", "--algo", "other", "--algorithm.letters", "a", "b"])
    assert (arguments.algo, arguments.algorithm) == ("other", OtherConfig(letters=("a", "b")))
    # Of a task's settings only those of this algorithm count.
    arguments = parse(["--stage", "dense", "--algo", "other", "--env", "push-v3"])
    assert (arguments.algorithm, arguments.env_steps) == (OtherConfig(), 400_000)
    with pytest.raises(ConfigError, match=r"algorithm.letters has 3"):
        parse(["--stage", "dense", "--algo", "other", "--algorithm.letters", "a", "b", "c"])


@dataclass(frozen=True, kw_only=True)
class OtherConfig:
    """Settings of an algorithm that is not there."""

    letters: tuple[str, ...] = ("x",)

    def problems(self):
        return ["letters has 3; allowed: 1, 2"] if len(self.letters) == 3 else []


def test_a_file_that_is_not_there_or_no_yaml_is_one_error(tmp_path, call):
    code, errors = call("--config", tmp_path / "none.yaml")
    assert (code, len(errors)) == (2, 1)
    assert "none.yaml" in errors[0]
    (tmp_path / "bad.yaml").write_text("stage: dense\nseed: 1\nseed: 2\n")
    code, errors = call("--config", tmp_path / "bad.yaml")
    assert (code, len(errors)) == (2, 1)
    assert "line 3" in errors[0]


def test_the_published_settings_are_those_that_were_published():
    arguments = parse(["--config", PUBLISHED])
    train_config(arguments)
    sac = arguments.algorithm
    assert (sac.discount, sac.target_rate) == (0.99, 0.005)
    assert sac.actor_learning_rate == sac.critic_learning_rate == 6e-4
    assert (sac.temperature_learning_rate, sac.initial_temperature) == (5e-5, 0.2)
    assert (sac.batch_size, sac.hidden, sac.reward_scale) == (2048, (256, 256), 0.1)
    assert (sac.n_step, sac.target_entropy) == (1, None)
    push = parse(["--config", PUBLISHED, "--env", "push-v3"])
    assert (push.algorithm, push.env_kwargs, push.env_steps) == (sac, ("horizon=400",), 150_000)
    assert (arguments.env_steps, arguments.start_steps, arguments.anchor_steps) == (150_000, 10_000, 20_000)
    assert (arguments.env_kwargs, arguments.updates_per_step) == (("horizon=400",), 0.25)
    assert (arguments.stop_success, arguments.stop_patience, arguments.evaluation.every) == (0.8, 3, 10_000)
    assert arguments.stage == "all"
    assert arguments.tasks == ("reach-v3", "push-v3", "pick-place-v3")
    assert (arguments.seeds, arguments.targets) == ((2000, 3000, 4000), ("push-v3",))
    assert arguments.prune == PruneConfig(actor=0.8, critic=0.0, rate=0.33, scope="global")
    for task in arguments.tasks:  # its budget is for all of them
        assert parse(["--config", PUBLISHED, "--env", task]).env_steps == 150_000
