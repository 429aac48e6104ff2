"""Inference inside the process that steps (M = 0)."""

from __future__ import annotations

from fastcollect.memory.board import WeightsBoard
from fastcollect.policies.base import POLICY_VERSION, Policy
from fastcollect.workers.group import Group


class Inference:
    """A policy with the board it reads its weights from."""

    def __init__(self, policy: Policy, board: WeightsBoard) -> None:
        self.policy, self.version = policy, 0
        self._board = board

    def refresh(self) -> int:
        """Load newer weights, if there are any; returns the version in use."""
        if self._board.version != self.version:
            self.version, parameters = self._board.read()
            self.policy.load(parameters)
        return self.version

    def act(self, group: Group) -> None:
        """Fill the group's current slot."""
        version = self.refresh()
        extras = group.extras
        if POLICY_VERSION in extras:
            extras.pop(POLICY_VERSION)[...] = version
        self.policy.act(group.observation, group.noise, group.action, extras)
