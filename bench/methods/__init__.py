"""The methods that are compared, each something that can be stepped and timed.

Each file declares its own in ``METHODS`` and is registered by its name below. Every peer's interpreter
imports all of the files, so that what a peer needs is imported where it is built.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from bench.methods.base import Method
from fastcollect import Parallelism

_OURS = ("ours", "learners", "training")
_OTHERS = ("naive", "vector_envs", "sample_factory", "physics", "original_protocol")
METHODS: Mapping[str, Method] = {
    method.name: method
    for file in (*_OURS, *_OTHERS)
    for method in import_module(f"bench.methods.{file}").METHODS
}
"""By name, in the order in which they are listed."""


def names(request: type) -> list[str]:
    """The methods that take requests of this class."""
    return [name for name, method in METHODS.items() if method.request is request]


def read_request(values: dict[str, Any]) -> Any:
    """A request from its fields, as JSON keeps them."""
    if "parallelism" in values:
        values = {**values, "parallelism": Parallelism(**values["parallelism"])}
    return METHODS[values["method"]].request(**values)
