"""What the source texts of our packages import, and which modules their strings name."""

import ast
import functools
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("fastcollect", "engine", "trainers", "bench")
_PATH = re.compile(rf"((?:{'|'.join(PACKAGES)})(?:\.\w+)+)(?::[\w.]+)?")


@functools.cache
def sources(package):
    """{module: (file relative to the root, its text)} of a package."""
    found = {}
    for file in sorted((ROOT / package).rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = file.relative_to(ROOT), file.read_text()
    return found


def exists(module):
    package = module.partition(".")[0]
    return package in PACKAGES and module in sources(package)


def imported(node):
    """The modules that one import statement loads; of a package's names, those that are modules."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    assert node.level == 0, "imports are absolute here"
    inner = [f"{node.module}.{alias.name}" for alias in node.names]
    modules = [name for name in inner if exists(name)]
    return modules + [node.module] * (len(modules) < len(inner))


def _name(function):
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def module_paths(source):
    """Every module that a source text imports, wherever it does, by statement or by a call."""
    for node in ast.walk(ast.parse(source)):
        yield from imported(node)
        if isinstance(node, ast.Call) and _name(node.func) in ("import_module", "__import__"):
            argument = node.args[0]
            if isinstance(argument, ast.Constant):
                yield argument.value


def named_in_strings(source):
    """Every module of ours that a string names, as "package.module" or "package.module:Name"."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            match = _PATH.fullmatch(node.value)
            if match and exists(match[1]):
                yield match[1]


def loaded_with(source):
    """The modules that are imported as soon as this text is: not inside functions, nor for types only."""
    todo = list(ast.parse(source).body)
    while todo:
        node = todo.pop()
        yield from imported(node)
        if isinstance(node, ast.If) and _name(node.test) == "TYPE_CHECKING":
            todo += node.orelse
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            todo += [
                child
                for child in ast.iter_child_nodes(node)
                if isinstance(child, (ast.stmt, ast.excepthandler))
            ]
