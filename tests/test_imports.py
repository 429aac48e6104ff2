"""Who may import whom, and what a process of the engine has loaded."""

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from support import witness_env
from support.modules import PACKAGES, ROOT, module_paths, named_in_strings, sources

from fastcollect import mlp_policy
from fastcollect.control.collector import Collector
from fastcollect.control.config import CollectorConfig
from fastcollect.envs.registry import EnvConfig

MAY_IMPORT = {
    "fastcollect": {"fastcollect"},
    "engine": {"engine"},
    "trainers": {"trainers", "fastcollect", "engine"},
    "bench": set(PACKAGES),
}


NAMED_ONLY = {("fastcollect.policies.base", "engine.policies")}
"""(module, what it names in a string): the JAX twins of the policies, which model workers alone load."""


def offenders(package, forbidden):
    """What imports a forbidden package, or names one of its modules in a string."""
    found = []
    for module, (_, text) in sources(package).items():
        named = {(name, "names") for name in named_in_strings(text) if (module, name) not in NAMED_ONLY}
        for target, how in {(path, "imports") for path in module_paths(text)} | named:
            if target.partition(".")[0] in forbidden:
                found.append(f"{module} {how} {target}")
    return sorted(found)


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_what_the_design_allows(package):
    assert offenders(package, set(PACKAGES) - MAY_IMPORT[package]) == []
    assert offenders(package, {"tests", "support", "train", "tune_throughput"}) == []


def test_fastcollect_never_names_jax_not_even_lazily():
    assert offenders("fastcollect", {"jax", "jaxlib", "flax", "optax"}) == []


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
        from fastcollect import mlp_policy

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
