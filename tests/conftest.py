"""What every test needs of its process, and which tests ``make quick`` leaves out.

It leaves out what starts processes, which is found here, and the long tests that are marked slow by hand.
"""

import functools
import inspect
import os
import signal
import sys
from pathlib import Path
from types import CodeType, FunctionType, ModuleType

import hypothesis
import pytest

# What a shell starts in the background ignores SIGINT, and so would every program started from here.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Compiling costs these small programs the most. XLA fuses as it does; LLVM's optimisation is left out, fused
# loops come from the older of XLA's emitters, whose code compiles in a third of the time, and a program is
# not split into parts that are compiled beside each other, which takes a fifth longer in all.
# `make optimised` compiles as users do.
if os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true") == "true":
    flags = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ.setdefault("XLA_FLAGS", flags)

TESTS = Path(__file__).resolve().parent
OURS = {"tests", "support", "fastcollect", "engine", "trainers", "bench"}
STARTERS = {
    *("Popen", "multiprocessing", "fork", "_fork", "Launcher", "Collector", "run_module"),
    *("filled_learner", "training_loop", "single_updates"),
}
"""Names of what starts processes, or trains for real; a test that reaches one of them, through any of our
code, is slow."""
LONGEST = {
    *("trainers/test_command.py", "bench/test_pipeline.py", "bench/test_learner.py", "bench/test_scaling.py"),
    *("control/test_faults.py", "trainers/test_learning.py", "envs/test_metaworld.py", "bench/test_soak.py"),
    *("trainers/test_seam.py", "trainers/test_notebook.py"),
}
"""Files that begin first, so that the end does not wait for one of them."""
FEW_EXAMPLES = 15
"""How many examples of a property `make quick` tries, unless the test itself says how many."""


def pytest_configure(config):
    """Make the inner loop shorter: fewer examples of each property."""
    if config.option.markexpr == "not slow":
        hypothesis.settings.register_profile("quick", max_examples=FEW_EXAMPLES)
        hypothesis.settings.load_profile("quick")


def pytest_collection_modifyitems(config, items):
    """Mark as slow every test that starts processes, itself or through fixtures, helpers and parameters."""
    items.sort(key=lambda item: f"{item.path.parent.name}/{item.path.name}" not in LONGEST)
    for item in items:
        test = getattr(item.function, "hypothesis", None)
        begin = [test.inner_test if test else item.function]
        begin += [each.func for name in item.fixturenames for each in _fixtures(item, name)]
        begin += item.callspec.params.values() if hasattr(item, "callspec") else ()
        if any(map(_starts_processes, _ours(begin))):
            item.add_marker(pytest.mark.slow)
    if "jax" in sys.modules:
        # What this process compiles it need not compile again when the tests are run again. Other processes
        # have no part in it, because one that is killed while it writes would leave a broken entry.
        jax = sys.modules["jax"]
        jax.config.update("jax_compilation_cache_dir", str(config.rootpath / ".pytest_cache" / "jax"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _fixtures(item, name):
    return item._fixtureinfo.name2fixturedefs.get(name, ())


def _ours(values):
    """Functions and classes of ours among these, and in tuples of them, without what wraps them."""
    for each in values:
        each = inspect.unwrap(each) if callable(each) else each
        if isinstance(each, tuple):
            yield from _ours(each)
        elif _is_ours(each):
            yield each


@functools.cache
def _starts_processes(begin):
    """Whether this, or a function or class of ours that it names in turn, names one of STARTERS."""
    waiting, seen = [begin], {begin}
    while waiting:
        starts, named = _named(waiting.pop())
        if starts:
            return True
        new = set(named) - seen
        seen |= new
        waiting += new
    return False


@functools.cache
def _named(each):
    """Whether a function itself names a starter, and everything else that it or a class names."""
    if inspect.isclass(each):
        return False, tuple(_ours(vars(each).values()))
    names = set(_names(each.__code__))
    in_tests = each.__code__.co_filename.startswith(str(TESTS))
    found = [each.__globals__[name] for name in names if name in each.__globals__]
    modules = [vars(module) for module in found if isinstance(module, ModuleType)]
    found += [module[name] for module in modules for name in names if name in module]
    return bool(names & STARTERS or (in_tests and "subprocess" in names)), tuple(_ours(found))


def _is_ours(each):
    return isinstance(each, FunctionType | type) and (each.__module__ or "").partition(".")[0] in OURS


def _names(code):
    """Every global and attribute that a function and those within it name."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
