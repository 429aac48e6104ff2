"""Benchmarks, one command a file; may import everything and is imported by nothing but the tests.

``harness`` measures in turns and in processes of their own and shows what was found, ``methods`` is what
can be measured, and ``product`` is the only file that knows how the product trains.
"""

import sys

# First, because it may change the interpreter; a peer's own lacks on purpose what the commands need.
if ".venv-peers" not in sys.prefix:
    import fastcollect.support.project_environment  # noqa: F401
