"""A model worker: gathers waiting requests into one padded batch, infers, answers.

It learns of env workers over its control socket (descriptors come with each), of requests through its inbox.
A request number fixes the slot, and a ring remembers the last request that was answered, so that asking
again after a model worker's death is harmless.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastcollect.envs.base import EnvSpec
from fastcollect.memory.board import WeightsBoard
from fastcollect.memory.ring import Ring, RingConfig
from fastcollect.memory.segment import FieldSpec, Layout, Segment
from fastcollect.memory.tokens import Kind, ModelInbox, PeerGoneError, Sender, Token, TokenChannel, exchange
from fastcollect.policies.base import POLICY_VERSION, PolicyConfig
from fastcollect.support.errors import ConfigError

MODEL_TIMES = ("inferring", "waiting")
_INFERRING, _WAITING = range(len(MODEL_TIMES))
_MESSAGE_BYTES, _MESSAGE_FDS = 256, 8


@dataclass(frozen=True, kw_only=True)
class ModelWorkerConfig:
    """One model worker.

    index: which of the M. ring: sizes of every env worker's ring. parameters: the board's fields.
    max_groups: most groups in one batch. min_groups: gather that many requests, or as many as arrive within
    ``deadline`` seconds of the first. device: "cpu" or "gpu", for a JAX policy. reproducible: the NumPy
    policy infers, without padding. tokens: what carries them.
    """

    index: int
    spec: EnvSpec
    policy: PolicyConfig
    ring: RingConfig
    parameters: dict[str, FieldSpec]
    extras: dict[str, FieldSpec]
    max_groups: int
    min_groups: int
    deadline: float
    device: str
    reproducible: bool
    tokens: TokenChannel


def stats_layout() -> Layout:
    """What a model worker counts: seconds by MODEL_TIMES, then batches and rows inferred."""
    return Layout(
        {
            "times": FieldSpec((len(MODEL_TIMES),), np.dtype(np.float64)),
            "counts": FieldSpec((2,), np.dtype(np.int64)),
        }
    )


def send_control(sock: socket.socket, op: str, ident: int = 0, fds: tuple[int, ...] = ()) -> None:
    """Collector's side of the control socket: "attach" (ring, Line.model_fds), "detach", "stop"."""
    socket.send_fds(sock, [json.dumps({"op": op, "worker": ident}).encode()], fds)


def main(config: ModelWorkerConfig, fds: list[int]) -> None:
    """Run until told to stop. Descriptors: control socket, board, stats, those of the tokens."""
    limit_jax(config.device)
    control_fd, board_fd, stats_fd, *token_fds = fds
    try:
        batch = Batch(config, WeightsBoard(config.parameters, board_fd))
        batch.warm_up()
    except BaseException as error:
        error.add_note(f"model worker {config.index} could not start the policy {config.policy.name!r}")
        raise
    control = socket.socket(fileno=control_fd)
    control.setblocking(False)
    stats = stats_layout().views(Segment(stats_layout().nbytes, stats_fd).buffer)
    inbox, reports = exchange(config.tokens).model_worker(config.index, token_fds, control_fd)
    worker = ModelWorker(config, batch, control, inbox, stats)
    reports.send(Kind.READY, -1 - config.index)
    try:
        worker.run()
    except BaseException as error:
        error.add_note(f"model worker {config.index}, policy {config.policy.name!r}:")
        raise


def limit_jax(device: str) -> None:
    """Settings that JAX reads when it loads: one thread on a CPU, no more GPU memory than is used.

    Computing in the calling thread (no asynchronous dispatch) saves two context switches a batch.
    """
    flags = " --xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + flags
    os.environ["JAX_CPU_ENABLE_ASYNC_DISPATCH"] = "false"
    os.environ["JAX_PLATFORMS"] = "cpu" if device == "cpu" else "cuda"
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"


class Batch:
    """The padded batch: fixed buffers, a few fixed sizes, one policy.

    Sizes are powers of two of the group size, so that a compiled policy sees few shapes.
    """

    def __init__(self, config: ModelWorkerConfig, board: WeightsBoard) -> None:
        self._board = board
        self._version = 0
        self._reproducible = config.reproducible
        self._group = max(config.ring.envs)
        try:
            self._policy = config.policy.build(config.spec, batched=not config.reproducible)
        except (ImportError, ValueError, TypeError) as error:
            raise ConfigError([f"policy {config.policy.name!r}: {error}"]) from error
        for name, expected in (("parameters", config.parameters), ("extras", config.extras)):
            declared = getattr(self._policy, name, expected)
            if not _same_fields(declared, expected):
                raise ConfigError(
                    [
                        f"policy {config.policy.name!r}: {name} of the batched policy are "
                        f"{dict(declared)}, of the inline one {expected}; they must be the same"
                    ]
                )
        groups, self.sizes = 1, [self._group]
        while groups < config.max_groups:
            groups = min(2 * groups, config.max_groups)
            self.sizes.append(groups * self._group)
        rows = self.sizes[-1]
        spec, action = config.spec, config.spec.action
        dtype = spec.observation_dtype
        if dtype == np.float64 and not config.reproducible:
            dtype = np.dtype(np.float32)
        self.observation = np.zeros((rows, *spec.observation_shape), dtype)
        self.noise = np.zeros((rows, config.ring.noise), np.float32)
        self.action = np.zeros((rows, *action.shape), action.dtype)
        self.extras = {
            name: np.zeros((rows, *field.shape), field.dtype)
            for name, field in config.extras.items()
            if name != POLICY_VERSION
        }

    def warm_up(self) -> None:
        """Compile every size before the clock starts."""
        self.refresh()
        for size in self.sizes:
            self.infer(size)

    def refresh(self) -> int:
        """Load newer weights, if there are any; returns the version in use."""
        if self._board.version != self._version:
            self._version, parameters = self._board.read()
            self._policy.load(parameters)
        return self._version

    def infer(self, rows: int) -> None:
        """Actions and extras for the first ``rows`` observations, padded to the next size."""
        # The serial twin has no padding, and bits depend on the shape.
        size = rows if self._reproducible else next(size for size in self.sizes if size >= rows)
        extras = {name: array[:size] for name, array in self.extras.items()}
        self._policy.act(self.observation[:size], self.noise[:size], self.action[:size], extras)


def _same_fields(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two declarations agree in names, shapes and dtypes."""
    return a.keys() == b.keys() and all(
        (tuple(a[k].shape), np.dtype(a[k].dtype)) == (tuple(b[k].shape), np.dtype(b[k].dtype)) for k in a
    )


class ModelWorker:
    """The loop: wait, gather, infer, scatter, answer."""

    def __init__(
        self,
        config: ModelWorkerConfig,
        batch: Batch,
        control: socket.socket,
        inbox: ModelInbox,
        stats: dict[str, np.ndarray],
    ) -> None:
        self._config, self._batch, self._control, self._inbox = config, batch, control, inbox
        self._times, self._counts = stats["times"], stats["counts"]
        self._rings: dict[int, tuple[Ring, Sender]] = {}
        self._stopped = False

    def run(self) -> None:
        """Answer requests until stopped, then those that are left."""
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
        deadline = None
        while not self._stopped:
            left = None if deadline is None else deadline - time.perf_counter()
            if left is not None and left <= 0:
                break
            readable = self._inbox.wait(left)
            if self._control.fileno() in readable:
                self._handle_control()
            waiting.extend(self._inbox.read())
            if len(waiting) >= self._config.min_groups:
                break
            if waiting and deadline is None:
                deadline = time.perf_counter() + self._config.deadline
        else:
            waiting.extend(self._inbox.read())
        self._times[_WAITING] += time.perf_counter() - start
        # A request may be there twice after it was sent again; the later one is the same.
        return sorted(set(waiting))

    def _handle_control(self) -> None:
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self._control, _MESSAGE_BYTES, _MESSAGE_FDS)
            except BlockingIOError:
                return
            message: dict[str, Any] = json.loads(data) if data else {"op": "stop"}
            if message["op"] == "attach":
                ring = Ring(self._config.ring, fds[0])
                self._rings[message["worker"]] = ring, self._inbox.attach(message["worker"], fds[1:])
            elif message["op"] == "detach":
                ring, _ = self._rings.pop(message["worker"])
                ring.segment.close()
                self._inbox.detach(message["worker"])
            else:
                self._stopped = True
                return

    def _answer(self, requests: list[Token]) -> None:
        start = time.perf_counter()
        if any(worker not in self._rings for _, worker, _, _ in requests):
            # Its ring was sent before its first request could be; or it is gone.
            self._handle_control()
            requests = [token for token in requests if token[1] in self._rings]
        fresh = [r for r in requests if r[3] > self._rings[r[1]][0].answered[r[2]]]
        slots = [self._slot(*request[1:]) for request in fresh]
        rows = self._load(slots)
        if rows:
            version = self._batch.refresh()
            self._batch.infer(rows)
            self._store(slots, version)
            self._counts += (1, rows)
        for _, worker, group, sequence in fresh:
            self._rings[worker][0].answered[group] = sequence
        for _, worker, group, sequence in requests:
            with contextlib.suppress(PeerGoneError):  # the env worker died meanwhile
                self._rings[worker][1].send(Kind.ANSWER, worker, group, sequence)
        self._times[_INFERRING] += time.perf_counter() - start

    def _slot(self, worker: int, group: int, sequence: int) -> tuple[dict[str, np.ndarray], np.ndarray, int]:
        """(block, noise, t) of request number ``sequence``, counted from 1."""
        ring = self._rings[worker][0]
        number, t = divmod(sequence - 1, self._config.ring.length)
        return ring.blocks[group][number % self._config.ring.capacity], ring.noise[group], t

    def _load(self, slots: list) -> int:
        end = 0
        for block, noise, t in slots:
            observation = block["observation"][t]
            rows = slice(end, end + len(observation))
            np.copyto(self._batch.observation[rows], observation, casting="same_kind")
            self._batch.noise[rows] = noise[t]
            end = rows.stop
        return end

    def _store(self, slots: list, version: int) -> None:
        end = 0
        for block, _, t in slots:
            action = block["action"][t]
            rows = slice(end, end + len(action))
            action[...] = self._batch.action[rows]
            for name, array in self._batch.extras.items():
                block[f"extra/{name}"][t] = array[rows]
            if f"extra/{POLICY_VERSION}" in block:
                block[f"extra/{POLICY_VERSION}"][t] = version
            end = rows.stop
