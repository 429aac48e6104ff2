"""A mutex in shared memory that outlives its owner's death: POSIX's robust one, by way of ctypes.

When a process that holds it is killed, the kernel gives it to the next one that asks, with the word that
what it guards may be in any state (pthread_mutexattr_setrobust(3)).
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from typing import Any

import numpy as np

MUTEX_BYTES = 64
"""Of shared memory for each; pthread_mutex_t and pthread_mutexattr_t are smaller on every platform."""

_PROCESS_SHARED = _ROBUST = 1


def _function(library: ctypes.CDLL, name: str, *arguments: Any) -> Callable[..., int]:
    found = library[f"pthread_{name}"]
    found.argtypes, found.restype = [ctypes.c_void_p, *arguments], ctypes.c_int
    return found


_LIBC = ctypes.PyDLL(None)  # keeps Python's own lock, for calls that return at once
_try_lock = _function(_LIBC, "mutex_trylock")
_unlock = _function(_LIBC, "mutex_unlock")
_make_consistent = _function(_LIBC, "mutex_consistent")
_lock = _function(ctypes.CDLL(None), "mutex_lock")  # may wait, and lets other threads run


def init_mutex(memory: np.ndarray) -> None:
    """Make MUTEX_BYTES of shared memory a mutex, once, before anybody else uses it."""
    attributes = ctypes.create_string_buffer(MUTEX_BYTES)
    _check(_function(_LIBC, "mutexattr_init")(attributes))
    _check(_function(_LIBC, "mutexattr_setpshared", ctypes.c_int)(attributes, _PROCESS_SHARED))
    _check(_function(_LIBC, "mutexattr_setrobust", ctypes.c_int)(attributes, _ROBUST))
    _check(_function(_LIBC, "mutex_init", ctypes.c_void_p)(memory.ctypes.data, attributes))


class RobustMutex:
    """One process's handle of a mutex."""

    def __init__(self, memory: np.ndarray) -> None:
        self._memory = memory  # which must last as long as its address is used
        self._address = memory.ctypes.data

    def acquire(self, wait: bool, mend: Callable[[], None]) -> bool:
        """Take it; without ``wait``, False where another process has it. Raises OSError if it is none.

        mend: called where the last owner died, with the mutex held, to put in order what it guards.
        """
        code = _try_lock(self._address)
        if code == errno.EBUSY:
            if not wait:
                return False
            code = _lock(self._address)
        if code == errno.EOWNERDEAD:
            mend()
            code = _make_consistent(self._address)
        _check(code)
        return True

    def release(self) -> None:
        """Give it up."""
        _unlock(self._address)


def _check(code: int) -> None:
    if code:
        raise OSError(code, os.strerror(code))
