"""What a retraining starts from: sources, and the rewind matrix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import numpy as np

from engine.algorithms import sac
from engine.normalizer import Moments
from engine.sparse import masks as mask_functions
from engine.sparse.saliency import mean_absolute_gradients
from fastcollect.support.errors import ConfigError
from trainers.config.training import RewindConfig, TrainConfig
from trainers.run.snapshots import Snapshot, Start, from_arrays
from trainers.store import artifacts
from trainers.store.manifest import read_identity, read_summary

_FRESH_SEED = 7_919
"""Added to a run's seed for weights that must not be the ones it began with."""


@dataclass(frozen=True)
class Source:
    """A finished run that others begin from: ``path`` of its folder, ``config_hash`` of its artifacts."""

    path: str
    config_hash: str

    def snapshot(self, name: str, template: sac.SACState) -> Snapshot:
        """Its artifact "initial", "anchor", "best" or "final". Raises ConfigError; see from_arrays."""
        found = artifacts.load(self.path, name, self.config_hash)
        return from_arrays(found.arrays, template, f"artifact {name!r} of {self.path!r}")

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """Any artifact's arrays. Raises ConfigError."""
        return artifacts.load(self.path, name, self.config_hash).arrays


def open_source(path: str) -> Source:
    """A finished run. Raises ConfigError where it is none, not finished, or its configuration was changed."""
    read_summary(path)
    _, manifest = read_identity(path)
    return Source(path, manifest["config_hash"])


def template(config: TrainConfig, like: Mapping[str, np.ndarray]) -> sac.SACState:
    """A state of this configuration's shapes for the observations and actions of saved arrays."""
    try:
        observations = like["sac/actor/kernel_0"].shape[0]
        depth = max(int(k.rsplit("_", 1)[1]) for k in like if k.startswith("sac/actor/bias_"))
        actions = like[f"sac/actor/bias_{depth}"].shape[0] // 2
    except (KeyError, ValueError) as error:
        raise ConfigError([f"the artifact holds no actor: {error}"]) from error
    return sac.init(config.algorithm, config.seed, observations, actions)


def fresh(config: TrainConfig, like: sac.SACState, *, other_seed: bool) -> Snapshot:
    """Fresh weights; ``other_seed`` for ones that this seed's dense run did not have."""
    observations, actions = like.actor["kernel_0"].shape[0], like.critic["q0/kernel_0"].shape[0]
    actions -= observations
    # The noise of updates stays the seed's own; only the weights differ.
    seed = (config.seed + _FRESH_SEED * other_seed) % 2**31
    state = sac.init(config.algorithm, seed, observations, actions)
    state = state.replace(seed=jax.numpy.uint32(config.seed))
    return Snapshot(state, Moments.empty(observations), 0, 0)


def rewound(
    config: TrainConfig, rewind: RewindConfig, source: Source, last: Snapshot, masks: sac.Masks
) -> Start:
    """The start of a ticket: every part from where the rewind matrix says, then masked.

    last: the round before, trained. Raises ConfigError for artifacts that are missing or changed.
    """
    like = last.state
    anchor = source.snapshot("anchor", like)
    weights = {
        "anchor": lambda: anchor.state,
        "initial": lambda: source.snapshot("initial", like).state,
        "final": lambda: last.state,
    }[rewind.parameters]()
    state = anchor.state.replace(actor=weights.actor, critic=weights.critic)
    if rewind.targets == "online":
        state = state.replace(target_critic=weights.critic)
    if rewind.optimizer == "fresh":
        state = state.replace(optimizer=sac.init_optimizers(config.algorithm, state))
    if rewind.temperature == "fresh":
        log_temperature = np.log(np.float32(config.algorithm.initial_temperature))
        optimizer = sac.init_optimizers(config.algorithm, state)
        optimizer = {**state.optimizer, "temperature": optimizer["temperature"]}
        state = state.replace(log_temperature=jax.numpy.asarray(log_temperature), optimizer=optimizer)
    moments = {
        "anchor": anchor.moments,
        "fresh": Moments.empty(len(anchor.moments.mean)),
        "final": last.moments,
    }[rewind.normalizer]
    zero = rewind.step == "zero"
    if zero:
        state = state.replace(updates=jax.numpy.int32(0))
    replay = source.arrays("anchor-replay") if rewind.replay == "anchor" else None
    steps, updates = (0, 0) if zero else (anchor.env_steps, anchor.updates)
    snapshot = Snapshot(state, moments, steps, updates)
    return Start(masks, snapshot, replay, random_actions=False, keep=())


def restarted(config: TrainConfig, snapshot: Snapshot, masks: sac.Masks) -> Start:
    """From these weights and this normaliser at step 0, everything else fresh: the start of a transfer."""
    state = snapshot.state.replace(
        target_critic=jax.tree.map(jax.numpy.copy, snapshot.state.critic),
        log_temperature=jax.numpy.log(jax.numpy.float32(config.algorithm.initial_temperature)),
        seed=jax.numpy.uint32(config.seed),
        updates=jax.numpy.int32(0),
    )
    state = state.replace(optimizer=sac.init_optimizers(config.algorithm, state))
    return Start(masks, Snapshot(state, snapshot.moments, 0, 0), random_actions=False, keep=())


def as_arrays(parameters: Mapping) -> dict[str, np.ndarray]:
    """Parameters in NumPy."""
    return {name: np.asarray(value) for name, value in parameters.items()}


def saliency(config: TrainConfig, last: Snapshot, samples: Mapping[str, np.ndarray]) -> dict[str, dict]:
    """{"actor", "critic"} -> mean |dL/dw| of a trained snapshot over the saved batches."""
    mean, scale = last.moments.scaling(config.variance_floor)
    found = mean_absolute_gradients(config.algorithm, last.state, sac.Batch(**samples), mean, scale)
    return {name: as_arrays(value) for name, value in found.items()}


def check_mask(masks: sac.Masks, state: sac.SACState, where: str) -> None:
    """Raises ConfigError naming every leaf, and both shapes, where masks are of another architecture."""
    problems = []
    for name, parameters in (("actor", state.actor), ("critic", state.critic)):
        try:
            mask_functions.check_matches(masks[name], parameters)
        except ValueError as error:
            problems.append(f"{where}, {name}: {error}")
    if problems:
        raise ConfigError(problems)
