"""What ``import fastcollect`` offers: everything public by name, loaded when it is asked for."""

import ast
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import fastcollect
from fastcollect.envs.registry import make_env

ROOT = Path(__file__).resolve().parents[2]


def in_fresh_process(code, *flags):
    """The words that a script prints in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, *flags, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def imported_for_type_checkers():
    """{name: module} of the imports that only type checkers see."""
    tree = ast.parse(Path(fastcollect.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    return {alias.name: node.module for node in block.body for alias in node.names}


def test_the_list_the_modules_and_what_type_checkers_see_agree():
    assert sorted(fastcollect.__all__) == sorted(fastcollect._HOMES)
    assert len(set(fastcollect.__all__)) == len(fastcollect.__all__)
    assert imported_for_type_checkers() == fastcollect._HOMES
    for name, home in fastcollect._HOMES.items():
        value = getattr(fastcollect, name)
        assert value is getattr(sys.modules[home], name)
        assert getattr(value, "__module__", home) in (home, "typing")  # where it is defined
    assert set(fastcollect.__all__) <= set(dir(fastcollect))


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'fastcollect' has no attribute 'Collektor'"):
        _ = fastcollect.Collektor
    with pytest.raises(ImportError, match="Collektor"):
        from fastcollect import Collektor  # noqa: F401


def test_importing_the_package_loads_nothing_else():
    code = """
        import sys
        before = set(sys.modules)
        import fastcollect
        dir(fastcollect)
        heavy = {"numpy", "cloudpickle", "gymnasium", "jax"}
        print(*sorted(m for m in set(sys.modules) - before if m in heavy or m.startswith("fastcollect.")))
        fastcollect.ConfigError
        print(*sorted(m for m in set(sys.modules) - before if m in heavy or m.startswith("fastcollect.")))
    """
    assert in_fresh_process(code) == ["fastcollect.support", "fastcollect.support.errors"]


def test_the_move_to_the_projects_environment_needs_no_numpy():
    code = """
        import sys

        class Missing:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] == "numpy":
                    raise ModuleNotFoundError(name)

        sys.meta_path.insert(0, Missing())
        import fastcollect.support.project_environment
        print("numpy" in sys.modules)
        try:
            from fastcollect import Collector
        except ModuleNotFoundError as error:
            print(error)
    """
    assert in_fresh_process(code) == ["False", "numpy"]


# The README's examples.

EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_readmes_examples_take_what_they_use_from_the_package(number):
    modules = {
        node.module
        for node in ast.walk(ast.parse(EXAMPLES[number]))
        if isinstance(node, ast.ImportFrom) and node.module.startswith("fastcollect")
    }
    assert modules <= {"fastcollect"}


@pytest.mark.slow
def test_the_readmes_first_example_runs(capsys):
    env = make_env(fastcollect.EnvConfig(id="reach-v3"), np.arange(1))
    policy = fastcollect.mlp_policy((256, 256)).build(env.spec, batched=False)
    names = {"weights": policy.initial_parameters(1)}
    exec(EXAMPLES[0], names)
    assert names["block"].observation.shape[0] == 17
    assert "env_worker" in capsys.readouterr().out


def test_the_readmes_own_environment_and_policy_run(tmp_path):
    (script,) = (text for text in EXAMPLES if "class Walk" in text)
    (tmp_path / "mine.py").write_text(script)
    done = subprocess.run(
        [sys.executable, "mine.py"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(tmp_path)))},
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert "(17, 16, 1)" in done.stdout
    assert "stepping" in done.stdout
