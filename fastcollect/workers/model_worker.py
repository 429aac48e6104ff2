"""A model worker: gathers waiting requests into one padded batch, infers, answers."""

import contextlib
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fastcollect.memory.board import WeightsBoard
from fastcollect.memory.ring import Ring, RingConfig
from fastcollect.memory.segment import FieldSpec, Segment
from fastcollect.memory.tokens import Kind, PeerGoneError, Sender, Token, TokenChannel, exchange
from fastcollect.policies.base import POLICY_VERSION, PolicyConfig
from fastcollect.support.errors import ConfigError
from fastcollect.workers.group import Inference, build_policy

_INFERRING, _WAITING, _BATCHES, _ROWS = range(4)
COUNTERS_BYTES = 4 * 8
_MESSAGE_BYTES, _MESSAGE_FDS = 256, 8


@dataclass(frozen=True, kw_only=True)
class ModelWorkerConfig:
    """What a model worker has to know.

    ident: its number among all workers. index: which of the M it is. ring: the sizes of every env worker's
    ring. parameters: the fields of the board of weights. max_groups: most groups in one batch. min_groups:
    it gathers that many requests, or as many as arrive within ``deadline`` seconds of the first. device:
    "cpu" or "gpu", for a JAX policy. reproducible: the NumPy policy infers, without padding.
    """

    ident: int
    index: int
    policy: PolicyConfig
    ring: RingConfig
    parameters: Mapping[str, FieldSpec]
    max_groups: int
    min_groups: int
    deadline: float
    device: str
    reproducible: bool
    tokens: TokenChannel


def model_counters(segment: Segment) -> np.ndarray:
    """The counters in its segment, float64: seconds of inferring and of waiting, batches, their rows."""
    return np.frombuffer(segment.buffer, np.float64)


def main(config: ModelWorkerConfig, fds: list[int]) -> None:
    """Run until told to stop. Descriptors: control socket, board, stats, those of the tokens."""
    _limit_jax(config.device)
    try:
        ModelWorker(config, fds).run()
    except BaseException as error:
        error.add_note(f"model worker {config.index}, policy {config.policy.name!r}:")
        raise


def _limit_jax(device: str) -> None:
    """Settings that JAX reads when it loads: one thread on a CPU, no more GPU memory than is used."""
    flags = " --xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + flags
    os.environ["JAX_CPU_ENABLE_ASYNC_DISPATCH"] = "false"  # saves two context switches a batch
    os.environ["JAX_PLATFORMS"] = "cpu" if device == "cpu" else "cuda"
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"


def _shapes(fields: Mapping[str, FieldSpec]) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    return {name: (tuple(field.shape), np.dtype(field.dtype)) for name, field in fields.items()}


class ModelWorker:
    """The loop: wait, gather, infer, scatter, answer.

    It learns of env workers over its control socket (descriptors come with each), of requests through its
    inbox. A request number fixes the slot, and a ring remembers the last request that was answered, so that
    asking again after a model worker's death is harmless. A batch is padded to one of a few sizes, powers of
    two of the group size, so that a compiled policy sees few shapes.
    """

    def __init__(self, config: ModelWorkerConfig, fds: list[int]) -> None:
        control_fd, board_fd, stats_fd, *token_fds = fds
        self._config, self._stats = config, model_counters(Segment(0, stats_fd))
        ring, spec, most = config.ring, config.ring.spec, config.max_groups
        self._policy = build_policy(config.policy, spec, batched=not config.reproducible)
        for name, expected in (("parameters", config.parameters), ("extras", ring.extras)):
            declared = getattr(self._policy, name, expected)
            if _shapes(declared) != _shapes(expected):
                text = f"{dict(declared)}, of the inline one {dict(expected)}; they must be the same"
                raise ConfigError([f"policy {config.policy.name!r}: {name} of the batched policy are {text}"])
        self._sizes = [max(ring.envs) * min(2**k, most) for k in range((most - 1).bit_length() + 1)]
        rows, dtype = self._sizes[-1], spec.observation_dtype
        if dtype == np.float64 and not config.reproducible:
            dtype = np.dtype(np.float32)
        self._observation = np.zeros((rows, *spec.observation_shape), dtype)
        self._noise = np.zeros((rows, ring.noise), np.float32)
        self._action = np.zeros((rows, *spec.action.shape), spec.action.dtype)
        self._extras = {
            name: np.zeros((rows, *field.shape), field.dtype)
            for name, field in ring.extras.items()
            if name != POLICY_VERSION
        }
        self._rings: dict[int, tuple[Ring, Sender]] = {}
        self._stopped = False
        self._refresh = Inference(self._policy, WeightsBoard(config.parameters, board_fd)).refresh
        self._refresh()
        for size in self._sizes:  # compiled before the clock starts
            self._infer(size)
        self._control = socket.socket(fileno=control_fd)
        self._control.setblocking(False)
        ends = exchange(config.tokens).model_worker(config.index, token_fds, control_fd)
        self._inbox, self._reports = ends

    def run(self) -> None:
        """Answer requests until stopped, then those that are left."""
        self._reports.send(Kind.READY, self._config.ident)
        most = self._config.max_groups
        while True:
            waiting = self._gather()
            for i in range(0, len(waiting), most):
                self._answer(waiting[i : i + most])
            if self._stopped and not waiting:
                return

    def _gather(self) -> list[Token]:
        """Requests: at least ``min_groups``, or what arrived until the deadline after the first."""
        start = time.perf_counter()
        waiting: list[Token] = []
        deadline = left = None
        while not self._stopped and (left is None or left > 0):
            readable = self._inbox.wait(left)
            if self._control.fileno() in readable:
                self._handle_control()
            waiting.extend(self._inbox.read())
            if len(waiting) >= self._config.min_groups:
                break
            if waiting:
                deadline = deadline or time.perf_counter() + self._config.deadline
                left = deadline - time.perf_counter()
        else:
            waiting.extend(self._inbox.read())
        self._stats[_WAITING] += time.perf_counter() - start
        # A request may be there twice after it was sent again; the later one is the same.
        return sorted(set(waiting))

    def _handle_control(self) -> None:
        while not self._stopped:
            try:
                data, fds, _, _ = socket.recv_fds(self._control, _MESSAGE_BYTES, _MESSAGE_FDS)
            except BlockingIOError:
                return
            op, _, worker = data.decode().partition(" ")
            if op == "attach":
                ring = Ring(self._config.ring, fds[0])
                self._rings[int(worker)] = ring, self._inbox.attach(int(worker), fds[1:])
            elif op == "detach":
                ring, _ = self._rings.pop(int(worker))
                ring.segment.close()
                self._inbox.detach(int(worker))
            else:  # it is told to stop, or the collector is gone
                self._stopped = True

    def _answer(self, requests: list[Token]) -> None:
        start = time.perf_counter()
        if any(worker not in self._rings for _, worker, _, _ in requests):
            # Its ring was sent before its first request could be; or it is gone.
            self._handle_control()
            requests = [token for token in requests if token[1] in self._rings]
        fresh = [r for r in requests if r[3] > self._rings[r[1]][0].answered[r[2]]]
        if slots := self._load(fresh):
            version, rows = self._refresh(), slots[-1][2].stop
            self._infer(rows)
            self._store(slots, version)
            self._stats[_BATCHES:] += (1, rows)
        for _, worker, group, sequence in fresh:
            self._rings[worker][0].answered[group] = sequence
        for _, worker, group, sequence in requests:
            with contextlib.suppress(PeerGoneError):  # the env worker died meanwhile
                self._rings[worker][1].send(Kind.ANSWER, worker, group, sequence)
        self._stats[_INFERRING] += time.perf_counter() - start

    def _load(self, requests: list[Token]) -> list[tuple[dict[str, np.ndarray], int, slice]]:
        """Gather observations and noise; gives each request's block, step in it, and rows of the batch."""
        slots, end = [], 0
        for _, worker, group, sequence in requests:
            ring = self._rings[worker][0]
            number, t = divmod(sequence - 1, ring.config.length)  # requests are counted from 1
            block = ring.blocks[group][number % ring.config.capacity]
            rows = slice(end, end + ring.config.envs[group])
            np.copyto(self._observation[rows], block["observation"][t], casting="same_kind")
            self._noise[rows] = ring.noise[group][t]
            slots.append((block, t, rows))
            end = rows.stop
        return slots

    def _infer(self, rows: int) -> None:
        """Actions and extras for the first ``rows`` observations, padded to the next size."""
        # The serial twin has no padding, and bits depend on the shape.
        size = rows if self._config.reproducible else next(size for size in self._sizes if size >= rows)
        extras = {name: array[:size] for name, array in self._extras.items()}
        self._policy.act(self._observation[:size], self._noise[:size], self._action[:size], extras)

    def _store(self, slots: list[tuple[dict[str, np.ndarray], int, slice]], version: int) -> None:
        for block, t, rows in slots:
            block["action"][t] = self._action[rows]
            for name, array in self._extras.items():
                block[f"extra/{name}"][t] = array[rows]
            if f"extra/{POLICY_VERSION}" in block:
                block[f"extra/{POLICY_VERSION}"][t] = version
