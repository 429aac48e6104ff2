"""Policies for a start, and the protocol for one's own."""

from fastcollect.policies.base import (
    POLICY_VERSION,
    Policy,
    PolicyConfig,
    cnn_policy,
    mlp_policy,
    random_policy,
)

__all__ = [
    "POLICY_VERSION",
    "Parameters",
    "Policy",
    "PolicyConfig",
    "cnn_policy",
    "mlp_policy",
    "random_policy",
]
