"""The process that every worker is forked from: NumPy and the environments' libraries loaded, JAX never.

It owns the workers: it reaps them and reports how they ended, kills them all when the collector's end of
the socket closes (however the collector died), and takes them along when it dies itself. Started by
``fastcollect.control.launcher`` as a fresh interpreter, so that thread caps are in place before any import
and the user's ``__main__`` is never imported again.
"""

import contextlib
import ctypes
import faulthandler
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import traceback

from fastcollect.memory.tokens import PeerGoneError
from fastcollect.support.errors import CONFIG_EXIT_CODE, ConfigError

_PR_SET_PDEATHSIG = 1
_MAX_FDS = 200
MESSAGE_BYTES = 4096


def main() -> None:
    """Serve spawn and kill requests on the socket whose descriptor is argv[1]; argv[2:] are preloaded."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the collector's to handle
    for module in sys.argv[2:]:
        # A library that is missing is the error of whoever asks for it, not of the launch.
        with contextlib.suppress(Exception, SystemExit):
            importlib.import_module(module)
    gc.collect()
    gc.freeze()
    _Zygote(socket.socket(fileno=int(sys.argv[1]))).serve()


class _Zygote:
    def __init__(self, sock: socket.socket) -> None:
        self._sock, self._libc = sock, ctypes.CDLL(None)
        self._children: dict[int, int] = {}  # pid -> id
        self._wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_write)

    def serve(self) -> None:
        poll = select.poll()
        # The socket alone would not tell, if the collector's process left a fork of itself behind.
        for fd in (self._sock.fileno(), self._wake_read, os.pidfd_open(os.getppid())):
            poll.register(fd, select.POLLIN)
        self._reply(event="ready")
        while True:
            for fd, _ in poll.poll():
                if fd == self._wake_read:
                    self._reap()
                elif fd != self._sock.fileno() or not self._handle():
                    for pid in self._children:
                        os.kill(pid, signal.SIGKILL)
                    # Whoever waits for this process then knows that they are gone too.
                    for pid in self._children:
                        os.waitpid(pid, 0)
                    return

    def _reply(self, **message: str | int) -> None:
        with contextlib.suppress(OSError):  # the collector is gone; the next poll says so
            self._sock.send(json.dumps(message).encode())

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_read, 4096)
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            self._reply(event="exit", id=self._children.pop(pid), code=os.waitstatus_to_exitcode(status))

    def _handle(self) -> bool:
        """Serve one request; False when the other end is gone."""
        data = b""
        with contextlib.suppress(ConnectionError):
            data, fds, _, _ = socket.recv_fds(self._sock, MESSAGE_BYTES, _MAX_FDS)
        if not data:
            return False
        request, zygote_pid = json.loads(data), os.getpid()
        if request["op"] == "kill":
            for pid in [pid for pid, ident in self._children.items() if ident == request["id"]]:
                os.kill(pid, request["signal"])
            return True
        pid = os.fork()
        if pid == 0:
            self._become_worker(request, fds, zygote_pid)
        self._children[pid] = request["id"]
        for fd in fds:
            os.close(fd)
        self._reply(event="spawned", pid=pid)
        return True

    def _become_worker(self, request: dict, fds: list[int], zygote_pid: int) -> None:
        """The child's whole life; never returns."""
        code = 1
        try:
            self._libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != zygote_pid:
                os._exit(1)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._sock.close()
            # A place of its own is a gain, not a need; the container's processors may have changed.
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, request["cpus"] or os.sched_getaffinity(0))
            code = _run_worker(request["target"], fds)
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)


def _run_worker(target: str, fds: list[int]) -> int:
    """Call ``module:function`` with the payload behind fds[0] and return the exit code.

    Last words go to fds[1]: an exception as text, and the stack of every thread at SIGUSR1.
    """
    import cloudpickle

    payload_fd, words_fd, *rest = fds
    words = os.fdopen(words_fd, "w", encoding="utf-8", errors="backslashreplace")
    faulthandler.register(signal.SIGUSR1, file=words, all_threads=True)
    try:
        with os.fdopen(payload_fd, "rb") as file:
            file.seek(0)
            payload = cloudpickle.load(file)
        module, _, name = target.partition(":")
        getattr(importlib.import_module(module), name)(payload, rest)
    except PeerGoneError:
        pass  # the collector is gone, and with it everyone to talk to
    except ConfigError as error:
        print(error, file=words, flush=True)
        return CONFIG_EXIT_CODE
    except BaseException as error:
        # A note that the worker attached (worker, environment, step) belongs in front of the traceback.
        notes, error.__notes__ = getattr(error, "__notes__", []), []
        print(*notes, "".join(traceback.format_exception(error)), sep="\n", file=words, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    main()
