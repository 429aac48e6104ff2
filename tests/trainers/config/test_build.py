"""Settings merged as data: the order of the places, what goes by name, and what is not taken over."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.algorithms import CONFIGS
from fastcollect.support.plain import plain
from trainers.config.build import TASKS, Layer, build, combine, merge, task_layer
from trainers.config.training import StudyConfig, TrainConfig, problems_of

NESTED = st.recursive(
    st.integers(), lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3), max_leaves=6
)
SETTINGS = st.dictionaries(st.sampled_from("abc"), NESTED, max_size=3)


def flat(settings, at=""):
    return {
        name: value
        for key, each in settings.items()
        for name, value in (
            flat(each, f"{at}{key}.") if isinstance(each, dict) else {f"{at}{key}": each}
        ).items()
    }


@given(SETTINGS, SETTINGS)
def test_a_later_layer_wins_name_by_name_and_each_value_knows_its_place(first, second):
    merged = merge(Layer("first", first), Layer("second", second))
    values = flat(merged.settings)
    assert flat(second).items() <= values.items()
    for name, value in values.items():
        layer = {"first": first, "second": second}[merged.origins[name]]
        assert flat(layer)[name] == value


def test_merging_changes_no_layer():
    first, second = {"a": {"b": 1}}, {"a": {"c": 2}}
    assert merge(Layer("", first), Layer("", second)).settings == {"a": {"b": 1, "c": 2}}
    assert (first, second) == ({"a": {"b": 1}}, {"a": {"c": 2}})


def places(**names):
    """The five places, each with its own discount and one name of its own."""
    flags = {"env": "push-v3", "algorithm": {"n_step": 9, "target_rate": 0.9}}
    file = {"algorithm": {"target_rate": 0.8, "batch_size": 80, "n_step": 8}}
    source = {**plain(TrainConfig(env="push-v3")), "env_steps": 70}
    source["algorithm"] |= {"batch_size": 70, "target_rate": 0.7, "discount": 0.7, "n_step": 7}
    layers = {"flags": flags, "file": file, "source": source}
    return {name: Layer(name, layers[name]) for name in names or layers if name in layers}


def test_the_order_is_defaults_task_file_source_config_file_flags():
    config = build(StudyConfig, combine(**places()))
    sac = config.algorithm
    assert (sac.n_step, sac.target_rate, sac.batch_size, sac.discount) == (9, 0.9, 80, 0.7)
    assert (config.env_steps, config.env_kwargs) == (70, ("horizon=200",))
    without = build(StudyConfig, combine(flags=places()["flags"]))
    assert (without.env_steps, without.algorithm.initial_temperature) == (400_000, 0.1)
    assert without.algorithm.discount == TrainConfig().algorithm.discount
    merged = combine(**places())
    origins = {name: merged.origins[f"algorithm.{name}"] for name in ("n_step", "batch_size", "discount")}
    assert origins == {"n_step": "flags", "batch_size": "file", "discount": "source"}


def test_another_environment_takes_over_what_was_chosen_and_nothing_else():
    source = plain(build(StudyConfig, combine(flags=Layer("", {"env": "push-v3", "env_kwargs": ["a=1"]}))))
    source["algorithm"] |= {"discount": 0.5, "n_step": 4}
    source |= {"env_steps": 5, "evaluation": {"every": 7, "episodes": 50}}
    merged = combine(flags=Layer("flags", {"env": "reach-v3"}), source=Layer("source", source))
    own = task_layer("reach-v3", "sac").settings["algorithm"]
    assert merged.settings["algorithm"] == {**own, "discount": 0.5, "n_step": 4}
    assert merged.settings["env_kwargs"] == ["a=1"]
    assert not {"env_steps", "evaluation"} & merged.settings.keys()
    # What the source's user chose is more than what another task has for its own.
    source = plain(TrainConfig())
    source["algorithm"] |= {"n_step": 5}
    merged = combine(flags=Layer("flags", {"env": "push-v3"}), source=Layer("source", source))
    assert merged.settings["algorithm"]["n_step"] == 5
    assert merged.settings["algorithm"]["reward_scale"] == 1.0
    same = combine(flags=Layer("flags", {}), source=Layer("source", source))
    assert same.settings.items() >= {key: source[key] for key in source if key != "env_kwargs"}.items()


def test_another_algorithm_takes_over_no_settings_of_the_algorithm():
    source = Layer("source", plain(TrainConfig(seed=8)))
    merged = combine(flags=Layer("flags", {"algo": "other"}), source=source)
    assert merged.settings["seed"] == 8
    assert "algorithm" not in merged.settings


@pytest.mark.parametrize("file", sorted(os.listdir(TASKS)))
def test_the_settings_of_every_task_can_be(file):
    env = file.removesuffix(".yaml")
    assert any(task_layer(env, algo).settings for algo in CONFIGS)
    for algo in CONFIGS:
        assert problems_of(build(StudyConfig, combine(flags=Layer("", {"env": env, "algo": algo})))) == []


@pytest.mark.parametrize("env", ["none", "../tasks/push-v3", "a:B", "", "x" * 5000, "a\0b"])
def test_an_environment_without_a_file_has_no_settings_of_its_own(env):
    assert task_layer(env, "sac").settings == {}


def test_a_problem_is_explained_by_the_place_of_its_value():
    merged = merge(Layer("the file", {"a": {"b": [1]}}), Layer("the flags", {"c": 1}))
    problems = ["a.b[0] is 1; allowed: 2", "c is 1; allowed: 2", "d is 1; allowed: 2", "other words"]
    assert merged.explained(problems) == [
        "a.b[0] is 1; allowed: 2 (given by the file)",
        "c is 1; allowed: 2 (given by the flags)",
        *problems[2:],
    ]
