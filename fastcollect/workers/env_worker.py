"""An env worker: steps its groups of environments, one while the others wait for their actions."""

import time
from collections import deque

from fastcollect.envs.base import EnvStepError
from fastcollect.memory.board import WeightsBoard
from fastcollect.memory.latency import bucket
from fastcollect.memory.ring import TIMES, Ring
from fastcollect.memory.tokens import Kind, exchange
from fastcollect.support.errors import ConfigError
from fastcollect.workers.group import ActionError, EnvWorkerConfig, Group, Inference, build_policy
from fastcollect.workers.groups import make_groups, read_arrays, restore_groups, write_groups

_STEPPING, _WAITING_ACTIONS, _INFERRING, _WAITING_LEARNER = range(len(TIMES))


def main(config: EnvWorkerConfig, fds: list[int]) -> None:
    """Run until told to stop. Descriptors: ring, board, state (empty for a new life), those of the tokens."""
    worker = EnvWorker(config, fds)
    try:
        worker.run()
    finally:
        for group in worker.groups:
            group.env.close()


class EnvWorker:
    """The loop. A group is ready (its actions are there), outstanding (asked for), blocked (its ring is
    full, or it waits for its first round) or retired; every group is in exactly one of these."""

    def __init__(self, config: EnvWorkerConfig, fds: list[int]) -> None:
        ring_fd, board_fd, self._state_fd, *token_fds = fds
        try:
            self._ring = Ring(config.ring, ring_fd)
            self.groups = groups = make_groups(config, self._ring)
            if state := read_arrays(self._state_fd):
                restore_groups(groups, config.env.id, state)
        except BaseException as error:
            error.add_note(f"env worker {config.ident} could not build its environments")
            raise
        self._inference = None
        if config.inline:
            policy = build_policy(config.policy, config.ring.spec, batched=False)
            self._inference = Inference(policy, WeightsBoard(policy.parameters, board_fd))
        self._inbox, self._reports, self._models = exchange(config.tokens).env_worker(token_fds)
        self._config, self._model = config, config.model
        # How many each group has made, those before it was restored included: the number says the slot.
        self._requests = [group.first_step for group in groups]
        self._asked = [0.0 for _ in groups]  # when, on the clock of time.perf_counter
        self._ready: deque[int] = deque()
        self._outstanding: dict[int, int] = {}  # group -> the model worker that was asked
        self._blocked = set(config.waiting)
        self._retiring = self._stopped = False

    def run(self) -> None:
        """Step until stopped, or until every group has retired."""
        self._reports.send(Kind.READY, self._config.ident)
        for g in range(len(self.groups)):
            if g not in self._config.waiting:
                self._request(g)
        while not self._stopped:
            if self._ready:
                self._step(self._ready.popleft())
            elif self._outstanding or self._blocked:
                self._wait()
            else:
                return
            self._drain()

    def _step(self, g: int) -> None:
        group = self.groups[g]
        start = time.perf_counter()
        self._ring.latencies[bucket(start - self._asked[g])] += 1
        try:
            group.step()
        except BaseException as error:
            row = error.env_index if isinstance(error, EnvStepError) else None
            place = self._place(group, row)
            if isinstance(error, ActionError):
                # No traceback of ours would help: it is the policy's number, and the user's to mend.
                raise ConfigError([f"{place} {error}"]) from error
            error.add_note(place)
            raise
        if group.complete:
            self._reports.send(Kind.PUBLISHED, self._config.ident, g, group.publish())
            self._blocked.add(g)
        self._ring.times[_STEPPING] += time.perf_counter() - start
        self._advance(g)

    def _advance(self, g: int) -> None:
        """Ask for the next actions, if the group has a slot to write them to."""
        group = self.groups[g]
        if g in self._blocked:
            if not self._retiring and not group.index.can_write:
                return
            self._blocked.discard(g)
            if self._retiring:
                return
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
            self._inference.act(self.groups[g])
        except BaseException as error:
            error.add_note(f"{self._place(self.groups[g])} in the policy:")
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

    def _drain(self) -> None:
        for kind, _, g, sequence in self._inbox.read():
            if kind == Kind.ANSWER:
                # An answer may come twice after a model worker was replaced.
                if g in self._outstanding and sequence == self._requests[g]:
                    del self._outstanding[g]
                    self._ready.append(g)
            elif kind == Kind.FREED:
                self.groups[g].index = self.groups[g].index.free(sequence)
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
            write_groups(self._state_fd, self.groups, self._config.env.id)
        except BaseException as error:
            error.add_note(f"env worker {self._config.ident} could not save the state of its environments")
            raise
        self._reports.send(Kind.SAVED, self._config.ident)
