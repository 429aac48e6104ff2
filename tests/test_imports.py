"""Who may import whom, and what a process of the engine has loaded."""

import ast
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from support import witness_env

from fastcollect.control.collector import Collector
from fastcollect.control.config import CollectorConfig
from fastcollect.envs.registry import EnvConfig
from fastcollect.policies import mlp_policy

ROOT = Path(__file__).resolve().parents[1]
OURS = ("fastcollect", "engine", "trainers", "bench")
MAY_IMPORT = {
    "fastcollect": {"fastcollect"},
    "engine": {"engine"},
    "trainers": {"trainers", "fastcollect", "engine"},
    "bench": set(OURS),
}


def module_paths(source):
    """Every module that a source text imports, wherever it does, and every import path in a text of it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            yield node.module
        elif isinstance(node, ast.Call) and _name(node.func) in ("import_module", "__import__"):
            argument = node.args[0]
            if isinstance(argument, ast.Constant):
                yield argument.value


def _name(function):
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def imports(package):
    """(file, imported module) for every module of a package."""
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    return [(file.relative_to(ROOT), module) for file in files for module in module_paths(file.read_text())]


def offenders(package, forbidden):
    return [
        f"{file} imports {module}"
        for file, module in imports(package)
        if module.partition(".")[0] in forbidden
    ]


@pytest.mark.parametrize("package", OURS)
def test_packages_import_only_what_the_design_allows(package):
    assert offenders(package, set(OURS) - MAY_IMPORT[package]) == []
    assert offenders(package, {"tests", "support", "train", "tune_throughput"}) == []


def test_fastcollect_never_names_jax_not_even_lazily():
    assert offenders("fastcollect", {"jax", "jaxlib", "flax", "optax"}) == []


def test_the_search_for_imports_finds_every_kind():
    source = """
        import jax.numpy as jnp
        from engine.policies import MLPPolicy
        def late():
            import trainers
            importlib.import_module("bench.table")
            __import__("flax")
    """
    found = set(module_paths(textwrap.dedent(source)))
    assert found == {"jax.numpy", "engine.policies", "trainers", "bench.table", "flax"}


def in_fresh_process(code, *args, folders=()):
    """The words that a script prints, run as a file by a fresh interpreter."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests", *folders)))}
    done = subprocess.run(
        [sys.executable, *args] if code is None else [sys.executable, "-c", textwrap.dedent(code), *args],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_importing_an_env_worker_leaves_jax_out():
    code = """
        import sys
        import fastcollect.workers.env_worker
        print(*({"jax", "jaxlib", "mujoco", "metaworld", "gymnasium"} & set(sys.modules)))
    """
    assert in_fresh_process(code) == []


@pytest.mark.parametrize("env_id", ["reach-v3", "HalfCheetah-v5", "CartPole-v1", "gym:Pendulum-v1"])
def test_building_and_stepping_an_environment_leaves_jax_out(env_id):
    code = """
        import sys
        import numpy as np
        from fastcollect.envs.base import StepBuffers
        from fastcollect.envs.registry import EnvConfig, make_env

        env = make_env(EnvConfig(id=sys.argv[1]), np.arange(2))
        out = StepBuffers.allocate(env.spec, 2)
        env.reset(out.observation)
        for _ in range(3):
            env.step(np.zeros((2, *env.spec.action.shape), env.spec.action.dtype), out)
        assert out.observation.any()
        print("stepped", "jax" in sys.modules)
    """
    assert in_fresh_process(code, env_id) == ["stepped", "False"]


def witnesses(num_env_workers, num_model_workers):
    """What the environments of running workers observed: one dict of single values for each worker."""
    config = CollectorConfig(
        env=EnvConfig(id="witness", entry_point="support.witness_env:WitnessEnv"),
        policy=mlp_policy(hidden=(8,)),
        num_envs=2,
        num_env_workers=num_env_workers,
        num_model_workers=num_model_workers,
        block_length=4,
    )
    seen = {}
    with Collector(config) as collector:
        pids = collector.pids()["env_worker"]
        while len(seen) < num_env_workers or min(map(len, seen.values())) < 3:
            block = collector.take(timeout=60)
            seen.setdefault(block.worker, []).append(block.observation.reshape(-1, len(witness_env.FIELDS)))
    workers = [np.unique(np.concatenate(blocks), axis=0) for blocks in seen.values()]
    assert all(len(rows) == 1 for rows in workers)  # the same from the first step to the last
    out = [dict(zip(witness_env.FIELDS, rows[0].astype(int).tolist(), strict=True)) for rows in workers]
    assert sorted(worker["pid"] for worker in out) == sorted(pids)
    return out


@pytest.mark.parametrize("num_model_workers", [0, 1])
def test_a_running_env_worker_has_no_jax_one_thread_and_a_processor_of_its_own(num_model_workers):
    allowed = sorted(os.sched_getaffinity(0))
    workers = witnesses(min(2, len(allowed)), num_model_workers)
    for worker in workers:
        assert (worker["jax"], worker["threads"], worker["omp"]) == (0, 1, 1)
        assert worker["num_cpus"] == 1
        assert worker["cpu"] in allowed
    assert len({worker["cpu"] for worker in workers}) == len(workers)


def test_env_workers_without_a_processor_each_may_run_on_all_of_them():
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) > 8:
        pytest.skip("this would start more than nine workers")
    for worker in witnesses(len(allowed) + 1, 0):
        assert worker["num_cpus"] == len(allowed)
        assert (worker["jax"], worker["threads"], worker["omp"]) == (0, 1, 1)


MAIN = """
    import sys
    from pathlib import Path

    import jax  # a user's script may; its workers must not
    import numpy as np

    with open(sys.argv[1], "a") as file:
        file.write("imported\\n")

    from fastcollect.control.collector import Collector
    from fastcollect.control.config import CollectorConfig
    from fastcollect.envs.registry import EnvConfig
    from support.witness_env import FIELDS, WitnessEnv


    class MyEnv(WitnessEnv):
        pass


    config = CollectorConfig(
        env=EnvConfig(id="mine", entry_point=MyEnv),
        num_envs=2,
        num_env_workers=2,
        block_length=4,
    )
    seen = set()
    with Collector(config) as collector:
        while len(seen) < 2:
            block = collector.take(timeout=60)
            seen.add(block.worker)
            assert not block.observation[..., FIELDS.index("jax")].any()
    assert "jax" in sys.modules
    print("collected")
"""


def test_the_users_main_is_not_imported_again_in_any_worker(tmp_path):
    script, count = tmp_path / "study.py", tmp_path / "count"
    script.write_text(textwrap.dedent(MAIN))  # without the guard that multiprocessing would need
    assert in_fresh_process(None, str(script), str(count)) == ["collected"]
    assert count.read_text() == "imported\n"


def test_the_collectors_process_loads_no_simulator_and_no_jax():
    code = """
        import sys
        from fastcollect.control.collector import Collector
        from fastcollect.control.config import CollectorConfig
        from fastcollect.envs.registry import EnvConfig
        from fastcollect.policies import mlp_policy

        config = CollectorConfig(
            env=EnvConfig(id="reach-v3"), policy=mlp_policy(hidden=(8,)), num_envs=2, num_env_workers=1
        )
        with Collector(config) as collector:
            assert collector.take(timeout=60).observation.any()
        print("collected", *({"jax", "mujoco", "metaworld"} & set(sys.modules)))
    """
    assert in_fresh_process(code) == ["collected"]


def test_the_reader_of_runs_loads_no_runner_and_no_study():
    code = """
        import sys
        import trainers.store.reader
        rooms = ("trainers.run", "trainers.study", "trainers.command", "trainers.report")
        print(*(name for name in sys.modules if name.startswith(rooms)))
    """
    assert in_fresh_process(code) == []


@pytest.mark.parametrize(
    ("room", "may"),
    [
        ("config", {"config"}),
        ("store", {"config", "store"}),
        ("run", {"config", "store", "run"}),
        ("study", {"config", "store", "run", "study"}),
        ("report", {"config", "store", "report", "export"}),
    ],
)
def test_rooms_of_trainers_import_only_what_they_say(room, may):
    found = {module for _, module in imports(f"trainers/{room}") if module.startswith("trainers.")}
    assert {module.split(".")[1] for module in found} - may == set()
