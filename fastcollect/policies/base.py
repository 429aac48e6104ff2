"""What a policy is to the engine, and how it travels: by import path."""

import importlib
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from fastcollect.envs.base import EnvSpec
from fastcollect.memory.segment import FieldSpec

Parameters = Mapping[str, np.ndarray]

POLICY_VERSION = "policy_version"
"""An extra that the engine itself writes: the version of the weights that chose the action (int64)."""


class Policy(Protocol):
    """Maps a batch of observations to actions. Built by ``factory(spec, **kwargs)``.

    parameters: names, shapes and dtypes of its weights, in the order of the weights board.
    noise: ("normal" | "uniform", numbers per action), or None for a policy that draws nothing. The
        numbers are given to ``act``, so that they depend on (seed, environment, step) alone.
    extras: what ``act`` writes beside the action, for each environment and step; POLICY_VERSION (shape (),
        int64), if it is among them, is written by the engine.
    """

    parameters: Mapping[str, FieldSpec]
    noise: tuple[str, int] | None
    extras: Mapping[str, FieldSpec]

    def initial_parameters(self, seed: int) -> dict[str, np.ndarray]:
        """Weights to start from, a function of the seed."""

    def load(self, parameters: Parameters) -> None:
        """Take new weights; the arrays are the engine's and may change after the call."""

    def act(
        self,
        observation: np.ndarray,
        noise: np.ndarray | None,
        action: np.ndarray,
        extras: Mapping[str, np.ndarray],
    ) -> None:
        """Write ``action`` (b, *action.shape) and every extra, (b, *extra.shape), for b observations.

        observation: (b, *observation_shape), noise: (b, numbers) float32.
        """


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """A policy by import path.

    name: what profiles and tables call it, widths included.
    inline: "module:factory" of the NumPy implementation: M = 0, and the reference for every shape.
    batched: "module:factory" that model workers load, JAX usually. It acts with the parameters, noise and
        extras that ``inline`` declares; if it declares them too, they must be the same.
    kwargs: keyword arguments of both factories.
    """

    name: str
    inline: str
    batched: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def build(self, spec: EnvSpec, *, batched: bool) -> Policy:
        """The policy itself. Raises ImportError, naming the path, where it cannot be imported."""
        return import_path(self.batched if batched else self.inline)(spec, **self.kwargs)


def import_path(path: str) -> Any:
    """The object that "package.module:name" names. Raises ImportError that names the path."""
    module, _, name = path.partition(":")
    if not module or not name:
        raise ImportError(f"{path!r} is not an import path of the form package.module:name")
    try:
        return operator.attrgetter(name)(importlib.import_module(module))
    except Exception as error:  # whatever a user's module does when it is imported
        raise ImportError(f"cannot import {path!r}: {type(error).__name__}: {error}") from error


def random_policy() -> PolicyConfig:
    """Uniform over the action space; the engine's baseline without inference."""
    path = "fastcollect.policies.random:RandomPolicy"
    return PolicyConfig(name="random", inline=path, batched=path)


def mlp_policy(
    hidden: tuple[int, ...] = (256, 256), extras: tuple[str, ...] = (), *, deterministic: bool = False
) -> PolicyConfig:
    """A multilayer perceptron: tanh-Gaussian for boxes, categorical for discrete actions.

    extras: any of "log_prob", "mean_action", "value", "policy_version". "value" adds a network of its own
        with the same hidden widths, whose parameters are called "value/kernel_0" and so on.
    deterministic: act without noise and without extras.
    """
    return PolicyConfig(
        name="mlp-" + "x".join(map(str, hidden)),
        inline="fastcollect.policies.mlp:MLPPolicy",
        batched="engine.policies:MLPPolicy",
        kwargs={"hidden": tuple(hidden), "extras": tuple(extras), "deterministic": deterministic},
    )


def noisy_mlp_policy(
    hidden: tuple[int, ...] = (256, 256), extras: tuple[str, ...] = (), *, deterministic: bool = False
) -> PolicyConfig:
    """A multilayer perceptron of one output for each action of a box, with noise whose spread is a parameter.

    "spread" (2,) float32: (before, after) of an action clip(tanh(mean + before n) + after n, -1, 1) for
    standard normals n, stretched to the box. The rest is as in ``mlp_policy``, but for the extra "log_prob",
    which there is not: clipped actions have no density.
    """
    return replace(
        mlp_policy(hidden, extras, deterministic=deterministic),
        name="noisy-mlp-" + "x".join(map(str, hidden)),
        inline="fastcollect.policies.mlp:NoisyMLPPolicy",
        batched="engine.policies:NoisyMLPPolicy",
    )


def cnn_policy(
    channels: tuple[int, int] = (16, 32),
    dense: int = 256,
    extras: tuple[str, ...] = (),
    *,
    deterministic: bool = False,
) -> PolicyConfig:
    """Two convolutions and a dense layer, for (h, w, c) uint8 images; the rest is as in ``mlp_policy``.

    The extra "value" is one more output of the dense layer, not a network of its own.
    """
    return PolicyConfig(
        name="cnn-" + "x".join(map(str, channels)) + f"-{dense}",
        inline="fastcollect.policies.cnn:CNNPolicy",
        batched="engine.policies:CNNPolicy",
        kwargs={
            "channels": tuple(channels),
            "dense": dense,
            "extras": tuple(extras),
            "deterministic": deterministic,
        },
    )
