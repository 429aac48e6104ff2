"""Configurations in files: what is written comes back, and what cannot be read is named with its line."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastcollect.support.errors import ConfigError
from trainers.config import yaml_file
from trainers.store.identity import Identity


def error_of(function, *args):
    with pytest.raises(ConfigError) as caught:
        function(*args)
    (problem,) = caught.value.problems
    return problem


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
CONFIGS = st.dictionaries(st.text().filter(lambda key: key != "algo"), VALUES, max_size=4)


@pytest.mark.slow
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(CONFIGS)
def test_a_configuration_comes_back_as_it_was_given(tmp_path, config):
    file = tmp_path / "config.yaml"
    file.write_text(yaml_file.dump(config))
    assert yaml_file.read(file) == config
    hashes = {Identity(kind="dense", config=each).hash() for each in (config, yaml_file.read(file))}
    assert len(hashes) == 1


@pytest.mark.parametrize(
    "text", ["6e-4", "1.5e3", "1e5", "0x1f", "1_0", "on", "2024-01-01", "12:30:00", "~", "a: b"]
)
def test_texts_that_look_like_something_else_stay_texts(tmp_path, text):
    file = tmp_path / "config.yaml"
    file.write_text(yaml_file.dump({"name": text, text: 1.0}))
    assert yaml_file.read(file) == {"name": text, text: 1.0}


def test_numbers_as_people_write_them_are_numbers(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("a: 6e-4\nb: 1.5e3\nc: -1E+2\nd: 1.0e-05\ne: .inf\nf: e5\ng: 1e\n")
    assert yaml_file.read(file) == {
        "a": 6e-4,
        "b": 1500.0,
        "c": -100.0,
        "d": 1e-5,
        "e": float("inf"),
        "f": "e5",
        "g": "1e",
    }


def test_a_list_that_is_there_twice_is_written_twice(tmp_path):
    shared = [256, 256]
    (tmp_path / "config.yaml").write_text(yaml_file.dump({"actor": shared, "critic": shared}))
    assert yaml_file.read(tmp_path / "config.yaml") == {"actor": shared, "critic": shared}


BAD_YAML = {
    "": 1,
    "a: 1\nb: [1, 2\n": 3,
    "a: 1\nb: {c: 1, d: 2, c: 3}\n": 2,
    "a: 1\nb: 2\na: 3\n": 3,
    "- 1\n- 2\n": 1,
    "just words": 1,
    "a: 1\n1: 2\n": 2,
    "on: true\n": 1,
    "a: 1\nb: !!python/object/apply:os.system ['touch sprung']\n": 2,
    "a: 1\nb: !!python/name:os.system\n": 2,
    "a: &x 1\nb: *x\n": 2,
    "a: &x [*x]\n": 1,
    "a: 1\n\n? [1]\n: 2\n": 3,
    "a: 1\nb: c: d\n": 2,
    "a: 1\nb: 2024-13-45\n": 2,
    "a: 1\nb: !!int x\n": 2,
    "a: 1\nb: !!int ''\n": 2,
    "a: 1\nb: !!bool x\n": 2,
    "a: 1\nb: !!timestamp x\n": 2,
    "a: 1\nb: " + "9" * 5000 + "\n": 2,
    "a: 1\nb: 2\n---\nc: 1\n": 3,
    "a: 1\nb: 'x\x00'\n": 2,
    "a: 1\n\tb: 2\n": 2,
    "a: " + "[" * 5000: 1,
}


@pytest.mark.parametrize(("text", "line"), BAD_YAML.items(), ids=range(len(BAD_YAML)))
def test_a_configuration_that_cannot_be_read_is_named_with_its_line(tmp_path, monkeypatch, text, line):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "config.yaml"
    file.write_text(text)
    assert error_of(yaml_file.read, file).startswith(f"{str(file)!r}, line {line}: ")
    assert not (tmp_path / "sprung").exists()


def test_a_configuration_that_is_no_text_is_named_with_its_line(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_bytes(b"a: 1\nb: \xff\xfe\n")
    assert error_of(yaml_file.read, file).startswith(f"{str(file)!r}, line 2: ")
    assert "cannot be read" in error_of(yaml_file.read, tmp_path / "absent.yaml")


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text("abm:-[]{}!&*'\"|>#%@`?,.0123e~<= \n\t\\", max_size=40))
def test_any_text_is_a_configuration_or_one_error(tmp_path, text):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    problems = ()
    try:
        assert all(isinstance(key, str) for key in yaml_file.read(file))
    except ConfigError as error:
        problems = error.problems
    assert [problem.startswith(f"{str(file)!r}, line ") for problem in problems] in ([], [True])
