"""Anything as plain data: what JSON and YAML can hold."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any


def plain(value: Any) -> Any:
    """The value as strict JSON knows it: dataclasses become mappings, arrays lists, and keys texts.

    NaN and infinities become null.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # an array or scalar of NumPy or JAX
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
