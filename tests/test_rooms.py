"""Rooms: which part of a package may import which, and that no modules import each other in a circle."""

import textwrap

import pytest
from support.modules import PACKAGES, exists, loaded_with, module_paths, named_in_strings, sources

_BASE = {"fastcollect.support", "fastcollect.envs.base", "fastcollect.memory", "fastcollect.policies"}
_WORKERS = _BASE | {"fastcollect.envs", "fastcollect.policies.choice", "fastcollect.workers"}
_RUN = {"trainers.config", "trainers.store"}
ROOMS = {
    # Each room of the collector may import those before it, and the public API names them all.
    "fastcollect.support": set(),
    "fastcollect.envs.base": {"fastcollect.support"},
    "fastcollect.envs": {"fastcollect.support", "fastcollect.envs.base"},
    "fastcollect.memory": {"fastcollect.support", "fastcollect.envs.base"},
    "fastcollect.policies": _BASE,
    "fastcollect.policies.choice": _BASE | {"fastcollect.envs"},
    "fastcollect.workers": _BASE | {"fastcollect.envs"},
    "fastcollect.control": _WORKERS,
    "fastcollect.tuning": _WORKERS | {"fastcollect.control"},
    "fastcollect": _WORKERS | {"fastcollect.control"},
    "engine": set(),
    "engine.data": set(),
    "engine.sparse": {"engine"},
    "engine.algorithms": {"engine", "engine.data", "engine.sparse"},
    "trainers.config": set(),
    "trainers.store": {"trainers.config"},
    "trainers.run": _RUN,
    "trainers.study": _RUN | {"trainers.run"},
    "trainers.report": {"trainers.store", "trainers.export"},
}
"""Which rooms the modules of a room may import, besides their own and other packages'. A module's room is the
longest name here that it begins with; modules in no room are not restricted."""


def room(module):
    """The room that a module is in, or None."""
    parts = module.split(".")
    names = [".".join(parts[:k]) for k in range(len(parts), 0, -1)]
    return next((name for name in names if name in ROOMS), None)


def trespasses(package):
    """What imports, or names in a string, what it may not."""
    found = []
    for module, (_, text) in sources(package).items():
        here = room(module)
        named = {(name, "names") for name in named_in_strings(text)}
        for target, how in {(path, "imports") for path in module_paths(text)} | named:
            there = room(target) if target.partition(".")[0] == package else None
            if here and there and there != here and there not in ROOMS[here]:
                found.append(f"{module} {how} {target}")
    return sorted(found)


@pytest.mark.parametrize("package", PACKAGES)
def test_rooms_import_only_those_that_they_may(package):
    assert trespasses(package) == []


def test_every_room_exists():
    assert [name for name in ROOMS if not exists(name)] == []
    allowed = set().union(*ROOMS.values())
    assert [name for name in allowed if not exists(name)] == []


@pytest.mark.parametrize("package", ("fastcollect", "engine", "trainers"))
def test_every_folder_of_a_package_is_in_the_table(package):
    inside = [module.split(".") for module in sources(package)]
    folders = {".".join(parts[:2]) for parts in inside if len(parts) > 2}
    assert folders
    assert folders <= set(ROOMS)


def circle(package):
    """Modules of which each imports the next and the last the first, or [] if there are none."""
    modules = sources(package)
    edges = {m: {t for t in loaded_with(text) if t in modules and t != m} for m, (_, text) in modules.items()}
    done, path = set(), []

    def visit(module):
        if module in path:
            return path[path.index(module) :]
        if module in done:
            return []
        path.append(module)
        found = next((c for target in sorted(edges[module]) if (c := visit(target))), [])
        path.pop()
        done.add(module)
        return found

    return next((c for module in sorted(edges) if (c := visit(module))), [])


@pytest.mark.parametrize("package", PACKAGES)
def test_no_modules_import_each_other_in_a_circle(package):
    assert circle(package) == []


# The search itself.


def test_the_search_for_imports_finds_every_kind():
    source = """
        import jax.numpy as jnp
        from engine.policies import MLPPolicy
        from fastcollect.envs import base, CRAFTER
        def late():
            import trainers
            importlib.import_module("bench.fps")
            __import__("flax")
    """
    found = set(module_paths(textwrap.dedent(source)))
    ours = {"engine.policies", "fastcollect.envs", "fastcollect.envs.base", "trainers", "bench.fps"}
    assert found == {"jax.numpy", "flax", *ours}


def test_the_search_in_strings_finds_paths_of_modules_that_exist_and_nothing_else():
    source = """
        a = "engine.policies:MLPPolicy", "fastcollect.workers.env_worker:main", "bench.fps"
        b = "engine.nothing:MLPPolicy", "see engine.policies", "fastcollect.", "jax.numpy", b"engine.policies"
    """
    found = set(named_in_strings(textwrap.dedent(source)))
    assert found == {"engine.policies", "fastcollect.workers.env_worker", "bench.fps"}


def test_what_is_loaded_with_a_module_is_not_what_its_functions_import():
    source = """
        import engine
        if TYPE_CHECKING:
            import trainers
        else:
            import bench.fps
        try:
            from engine import policies
        except ImportError:
            import bench.scaling
        class Late:
            import bench.plan
            def late(self):
                import bench.soak
    """
    found = set(loaded_with(textwrap.dedent(source)))
    assert found == {"engine", "bench.fps", "engine.policies", "bench.scaling", "bench.plan"}
