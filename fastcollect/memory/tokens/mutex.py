"""A mutex in shared memory that outlives its owner's death: POSIX's robust one, by way of ctypes.

When a process that holds it is killed, the kernel gives it to the next one that asks, with the word that
what it guards may be in any state (pthread_mutexattr_setrobust(3)).
"""

import ctypes
import errno
import os
from collections.abc import Callable

import numpy as np

MUTEX_BYTES = 64
"""Of shared memory for each; pthread_mutex_t and pthread_mutexattr_t are smaller on every platform."""

_PROCESS_SHARED = _ROBUST = 1
_libc = ctypes.PyDLL(None)  # keeps Python's own lock, for calls that return at once
_lock = ctypes.CDLL(None).pthread_mutex_lock  # may wait, and lets other threads run


class RobustMutex:
    """One process's handle of a mutex in MUTEX_BYTES of shared memory."""

    def __init__(self, memory: np.ndarray) -> None:
        self._memory = memory  # which must last as long as its address is used
        self._address = ctypes.c_void_p(memory.ctypes.data)

    def init(self) -> None:
        """Make the memory a mutex, once, before anybody else uses it."""
        attributes = ctypes.create_string_buffer(MUTEX_BYTES)
        _check(_libc.pthread_mutexattr_init(attributes))
        _check(_libc.pthread_mutexattr_setpshared(attributes, _PROCESS_SHARED))
        _check(_libc.pthread_mutexattr_setrobust(attributes, _ROBUST))
        _check(_libc.pthread_mutex_init(self._address, attributes))

    def acquire(self, wait: bool, mend: Callable[[], None]) -> bool:
        """Take it; without ``wait``, False where another process has it. Raises OSError if it is none.

        mend: called where the last owner died, with the mutex held, to put in order what it guards.
        """
        code = _libc.pthread_mutex_trylock(self._address)
        if code == errno.EBUSY:
            if not wait:
                return False
            code = _lock(self._address)
        if code == errno.EOWNERDEAD:
            mend()
            code = _libc.pthread_mutex_consistent(self._address)
        _check(code)
        return True

    def release(self) -> None:
        """Give it up."""
        _libc.pthread_mutex_unlock(self._address)


def _check(code: int) -> None:
    if code:
        raise OSError(code, os.strerror(code))
