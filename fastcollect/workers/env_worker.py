"""An env worker: steps its groups of environments and asks for actions.

While one group waits for its actions the other one steps. With M = 0 actions are computed here instead, by
the policy's NumPy twin.
"""

from __future__ import annotations

import time
from collections import deque

import numpy as np

from fastcollect.envs.base import EnvStepError
from fastcollect.memory.board import WeightsBoard
from fastcollect.memory.latency import bucket
from fastcollect.memory.ring import TIMES, Ring
from fastcollect.memory.tokens import EnvWorkerEnds, Kind, Token, exchange
from fastcollect.support.errors import ConfigError
from fastcollect.workers.group import ActionError, Group, Inference, build_policy
from fastcollect.workers.groups import (
    REFUSAL,
    EnvWorkerConfig,
    make_groups,
    read_arrays,
    restore_groups,
    save_groups,
    write_arrays,
)

_STEPPING, _WAITING_ACTIONS, _INFERRING, _WAITING_LEARNER = range(len(TIMES))


def main(config: EnvWorkerConfig, fds: list[int]) -> None:
    """Run until told to stop.

    Descriptors: ring, board, state (a file that is empty for a fresh start), those of the tokens.
    """
    ring_fd, board_fd, state_fd, *token_fds = fds
    try:
        ring = Ring(config.ring, ring_fd)
        groups = make_groups(config, ring)
        if state := read_arrays(state_fd):
            restore_groups(groups, config.env.id, state)
    except BaseException as error:
        error.add_note(f"env worker {config.ident} could not build its environments")
        raise
    inference = None
    if config.inline:
        policy = build_policy(config.policy, config.ring.spec, batched=False)
        inference = Inference(policy, WeightsBoard(config.parameters, board_fd))
    ends = exchange(config.tokens).env_worker(token_fds)
    try:
        EnvWorker(config, ring, groups, ends, state_fd, inference).run()
    finally:
        for group in groups:
            group.env.close()


class EnvWorker:
    """The loop. A group is ready (its actions are there), outstanding (asked for), blocked (its ring is
    full, or it waits for its first round) or retired; every group is in exactly one of these."""

    def __init__(
        self,
        config: EnvWorkerConfig,
        ring: Ring,
        groups: list[Group],
        ends: EnvWorkerEnds,
        state_fd: int,
        inference: Inference | None,
    ) -> None:
        self._config, self._ring, self._groups = config, ring, groups
        self._inbox, self._reports, self._models = ends
        self._state_fd, self._inference = state_fd, inference
        self._model = config.model
        # How many each group has made, those before it was restored included: the number says the slot.
        self._requests = [group.first_step for group in groups]
        self._asked = [0.0 for _ in groups]  # when, on the clock of time.perf_counter
        self._ready: deque[int] = deque()
        self._outstanding: dict[int, int] = {}  # group -> the model worker that was asked
        self._blocked: set[int] = set()
        self._retiring = self._stopped = False

    def run(self) -> None:
        """Step until stopped, or until every group has retired."""
        self._reports.send(Kind.READY, self._config.ident)
        for g in range(len(self._groups)):
            if g in self._config.waiting:
                self._blocked.add(g)
            else:
                self._request(g)
        while not self._stopped:
            if self._ready:
                self._step(self._ready.popleft())
                self._drain()
            elif self._outstanding or self._blocked:
                self._wait()
            else:
                return

    def _step(self, g: int) -> None:
        group = self._groups[g]
        start = time.perf_counter()
        self._ring.latencies[bucket(start - self._asked[g])] += 1
        try:
            group.step()
        except ActionError as error:
            # No traceback of ours would help: it is the policy's number, and the user's to mend.
            raise ConfigError([f"{self._place(group, error.env_index)} {error}"]) from error
        except EnvStepError as error:
            error.add_note(self._place(group, error.env_index))
            raise
        except BaseException as error:
            error.add_note(self._place(group))
            raise
        if group.complete:
            self._reports.send(Kind.PUBLISHED, self._config.ident, g, group.publish())
            self._blocked.add(g)
        self._ring.times[_STEPPING] += time.perf_counter() - start
        self._advance(g)

    def _advance(self, g: int) -> None:
        """Ask for the next actions, if the group has a slot to write them to."""
        group = self._groups[g]
        if g in self._blocked:
            if self._retiring:
                self._blocked.discard(g)
                return
            if not group.index.can_write:
                return
            self._blocked.discard(g)
            if group.complete:  # one that waited for its first block has it open already
                group.open_block()
        self._request(g)

    def _request(self, g: int) -> None:
        self._requests[g] += 1
        self._asked[g] = start = time.perf_counter()
        if self._inference is None:
            self._send_request(g)
            return
        try:
            self._inference.act(self._groups[g])
        except BaseException as error:
            error.add_note(f"{self._place(self._groups[g])} in the policy:")
            raise
        self._ring.times[_INFERRING] += time.perf_counter() - start
        self._ready.append(g)

    def _send_request(self, g: int) -> None:
        self._outstanding[g] = self._model
        self._models[self._model].send(Kind.REQUEST, self._config.ident, g, self._requests[g])

    def _place(self, group: Group, row: int | None = None) -> str:
        """Which environments and which step an error belongs to."""
        first = group.first_env
        which = f"s {first} to {first + group.env.num_envs - 1}" if row is None else f" {first + row}"
        return f"env worker {self._config.ident}, environment{which}, step {group.first_step + group.t}:"

    def _wait(self) -> None:
        start = time.perf_counter()
        self._inbox.wait(None)
        reason = _WAITING_ACTIONS if self._outstanding else _WAITING_LEARNER
        self._ring.times[reason] += time.perf_counter() - start
        self._drain()

    def _drain(self) -> None:
        for token in self._inbox.read():
            self._handle(token)

    def _handle(self, token: Token) -> None:
        kind, _, g, sequence = token
        if kind == Kind.ANSWER:
            # An answer may come twice after a model worker was replaced.
            if g in self._outstanding and sequence == self._requests[g]:
                del self._outstanding[g]
                self._ready.append(g)
        elif kind == Kind.FREED:
            self._groups[g].index = self._groups[g].index.free(sequence)
            if g in self._blocked:
                self._advance(g)
        elif kind == Kind.RESEND:
            for each, model in list(self._outstanding.items()):
                if model == sequence:
                    self._send_request(each)
        elif kind == Kind.ASSIGN:
            self._model = sequence
        elif kind == Kind.RETIRE:
            self._retiring = True
            self._blocked.clear()
        elif kind == Kind.SAVE:
            self._save()
        elif kind == Kind.STOP:
            self._stopped = True

    def _save(self) -> None:
        try:
            arrays = save_groups(self._groups, self._config.env.id)
        except ConfigError as error:  # no reason to end: only the state cannot be had
            arrays = {REFUSAL: np.array(str(error))}
        except BaseException as error:
            error.add_note(f"env worker {self._config.ident} could not save the state of its environments")
            raise
        write_arrays(self._state_fd, arrays)
        self._reports.send(Kind.SAVED, self._config.ident)
