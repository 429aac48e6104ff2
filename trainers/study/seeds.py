"""Seeds of whatever a study leaves to chance, keyed by names, so that no new choice changes another's."""

from __future__ import annotations

import hashlib
import json


def derive(seed: int, *names: str | int) -> list[int]:
    """Four words of 32 bits for ``numpy.random.default_rng``: a function of the run's seed and the names.

    The names are those of the choice and of the round, network or run that it is made for.
    """
    digest = hashlib.sha256(json.dumps([seed, *names]).encode()).digest()
    return [int.from_bytes(digest[i : i + 4], "little") for i in range(0, 16, 4)]
