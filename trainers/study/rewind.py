"""What a retraining starts from: sources, and the rewind matrix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from engine.algorithms.base import AgentState, Algorithm, Masks, adam
from engine.data.transition import Batch
from engine.normalizer import Moments
from engine.sparse import masks as mask_functions
from engine.sparse.saliency import mean_absolute_gradients
from fastcollect.support.errors import ConfigError
from trainers.config.training import RewindConfig, TrainConfig
from trainers.run.learner import Start, make_algorithm
from trainers.run.policy import load_policy
from trainers.store import artifacts
from trainers.store.manifest import read_identity, read_summary
from trainers.store.states import from_arrays

_FRESH_SEED = 7_919
"""Added to a run's seed for weights that must not be the ones it began with."""


@dataclass(frozen=True)
class Source:
    """A finished run that others begin from: ``path`` of its folder, ``config_hash`` of its artifacts."""

    path: str
    config_hash: str

    def state(self, name: str, like: AgentState) -> AgentState:
        """Its artifact "initial", "anchor", "best" or "final". Raises ConfigError; see from_arrays."""
        found = artifacts.load(self.path, name, self.config_hash)
        return from_arrays(found.arrays, like, f"artifact {name!r} of {self.path!r}")

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """Any artifact's arrays. Raises ConfigError."""
        return artifacts.load(self.path, name, self.config_hash).arrays

    def algorithm(self, config: TrainConfig) -> Algorithm:
        """The algorithm of this configuration in the spaces that the run had. Raises ConfigError."""
        return make_algorithm(config, load_policy(Path(self.path), self.config_hash).spec)


def open_source(path: str) -> Source:
    """A finished run. Raises ConfigError where it is none, not finished, or its configuration was changed."""
    read_summary(path)
    _, manifest = read_identity(path)
    return Source(path, manifest["config_hash"])


def fresh(config: TrainConfig, algorithm: Algorithm, *, other_seed: bool) -> AgentState:
    """Fresh weights; ``other_seed`` for ones that this seed's dense run did not have."""
    # The noise of updates stays the seed's own; only the weights differ.
    state = algorithm.init((config.seed + _FRESH_SEED * other_seed) % 2**31)
    return state.replace(seed=jax.numpy.uint32(config.seed))


def rewound(
    config: TrainConfig,
    algorithm: Algorithm,
    rewind: RewindConfig,
    source: Source,
    last: AgentState,
    masks: Masks,
) -> Start:
    """The start of a ticket: every part from where the rewind matrix says; the run masks it.

    last: the round before, trained. Raises ConfigError for artifacts that are missing or changed.
    """
    like = algorithm.init(config.seed)
    anchor = source.state("anchor", like)
    weights = {
        "anchor": lambda: anchor,
        "initial": lambda: source.state("initial", like),
        "final": lambda: last,
    }[rewind.parameters]()
    parameters, optimizer, targets = dict(anchor.parameters), dict(anchor.optimizer), anchor.targets
    parameters |= {name: weights.parameters[name] for name in algorithm.prunable}
    if rewind.optimizer == "fresh":
        optimizer = {name: adam(leaves) for name, leaves in parameters.items()}
    if rewind.temperature == "fresh":
        others = {name: v for name, v in like.parameters.items() if name not in algorithm.prunable}
        parameters |= others
        optimizer |= {name: adam(leaves) for name, leaves in others.items()}
    if rewind.targets == "online":
        targets = {name: jax.tree.map(jax.numpy.copy, parameters[name]) for name in targets}
    normalizer = {
        "anchor": anchor.normalizer,
        "fresh": Moments.empty(len(anchor.normalizer.mean)),
        "final": last.normalizer,
    }[rewind.normalizer]
    counters = like if rewind.step == "zero" else anchor
    state = anchor.replace(
        parameters=parameters,
        targets=targets,
        optimizer=optimizer,
        normalizer=normalizer,
        updates=counters.updates,
        env_steps=counters.env_steps,
    )
    replay = source.arrays("anchor-replay") if rewind.replay == "anchor" else None
    return Start(masks, state, replay, random_actions=False, keep=())


def restarted(config: TrainConfig, algorithm: Algorithm, state: AgentState, masks: Masks) -> Start:
    """From these weights and this normaliser at step 0, everything else fresh: the start of a transfer."""
    begin = algorithm.init(config.seed)
    parameters = {**begin.parameters, **{name: state.parameters[name] for name in algorithm.prunable}}
    begin = begin.replace(
        parameters=parameters,
        targets={name: jax.tree.map(jax.numpy.copy, parameters[name]) for name in begin.targets},
        optimizer={name: adam(leaves) for name, leaves in parameters.items()},
        normalizer=state.normalizer,
    )
    return Start(masks, begin, random_actions=False, keep=())


def as_arrays(parameters: Mapping) -> dict[str, np.ndarray]:
    """Parameters in NumPy."""
    return {name: np.asarray(value) for name, value in parameters.items()}


def saliency(algorithm: Algorithm, last: AgentState, samples: Mapping[str, np.ndarray]) -> dict[str, dict]:
    """Network -> mean |dL/dw| of a trained state over the saved batches."""
    found = mean_absolute_gradients(algorithm, last, Batch(**samples))
    return {name: as_arrays(value) for name, value in found.items()}


def check_mask(masks: Masks, state: AgentState, where: str) -> None:
    """Raises ConfigError naming every leaf, and both shapes, where masks are of another architecture."""
    problems = []
    for name in state.masks:
        try:
            mask_functions.check_matches(masks.get(name, {}), state.parameters[name])
        except ValueError as error:
            problems.append(f"{where}, {name}: {error}")
    if problems:
        raise ConfigError(problems)
