"""What a retraining starts from: finished runs, and a ticket's rounds by the rewind matrix."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np

from engine.algorithms.base import AgentState, Algorithm, Masks, adam, map_weights
from engine.normalizer import Moments
from engine.sparse.masks import Inputs, live_inputs, rescaled
from fastcollect import ConfigError
from trainers.config.training import RewindConfig, TrainConfig
from trainers.run.learner import Start, make_algorithm
from trainers.run.policy import load_policy
from trainers.store import artifacts
from trainers.store.layout import from_arrays
from trainers.store.manifest import read_identity, read_summary

_STATES = ("initial", "anchor", "best", "final")
_FRESH_SEED = 7_919
"""Added to a run's seed for weights that must not be the ones it began with."""


@dataclass(frozen=True)
class Source:
    """A finished run that others begin from: ``path`` of its folder, ``config_hash`` of its artifacts."""

    path: str
    config_hash: str

    def state(self, name: str, like: AgentState) -> AgentState:
        """The state in its artifact "initial", "anchor", "best" or "final". Raises ConfigError."""
        return from_arrays(self.arrays(name), like, f"artifact {name!r} of {self.path!r}")

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """The arrays of any of its artifacts. Raises ConfigError."""
        return artifacts.load(self.path, name, self.config_hash).arrays

    def check(self, config: TrainConfig, names: Sequence[str]) -> AgentState:
        """A state such as a run of this configuration has.

        Raises ConfigError naming all of these artifacts that are missing, were changed, or do not fit it.
        """
        like = self.algorithm(config).init(config.seed)
        problems: list[str] = []
        for name in names:
            try:
                self.state(name, like) if name in _STATES else self.arrays(name)
            except ConfigError as error:
                problems += error.problems
        if problems:
            raise ConfigError(problems)
        return like

    def algorithm(self, config: TrainConfig) -> Algorithm:
        """The algorithm of this configuration in the spaces that the run had. Raises ConfigError."""
        return make_algorithm(config, load_policy(Path(self.path), self.config_hash).spec)


def open_source(path: str) -> Source:
    """A finished run. Raises ConfigError where it is none, not finished, or its configuration was changed."""
    read_summary(path)
    _, manifest = read_identity(path)
    return Source(path, manifest["config_hash"])


@dataclass(frozen=True)
class Ticket:
    """A ticket in one of its rounds, and what it is drawn from.

    config: of the runs that it is trained in. source: the dense run. masks: of this round. last: the round
    before, trained; the dense run's final state before the first one. live: inputs of each prunable network
    that changed in all that the dense run saw, so that every round counts the same weights; masks keep none
    of the others'. number: of the round, from 1.
    """

    config: TrainConfig
    algorithm: Algorithm
    matrix: RewindConfig
    source: Source
    last: AgentState
    masks: Masks
    live: Mapping[str, Inputs]
    number: int = 0

    @classmethod
    def begin(cls, config: TrainConfig, matrix: RewindConfig, source: Source, masks: Masks) -> Self:
        """A ticket before its first round. Raises ConfigError where the source does not fit."""
        algorithm = source.algorithm(config)
        last = source.state("final", algorithm.init(config.seed))
        constant = last.normalizer.squares == 0
        live = {name: live_inputs(last.parameters[name], constant) for name in algorithm.prunable}
        return cls(config, algorithm, matrix, source, last, masks, live)

    def rewound(self, masks: Masks) -> Start:
        """The start of a run under these masks, with each part from where the rewind matrix says.

        Raises ConfigError for artifacts that are missing or changed.
        """
        matrix, prunable, last = self.matrix, self.algorithm.prunable, self.last
        like, anchor = self.algorithm.init(self.config.seed), self.source.state("anchor", last)
        weights = last if matrix.parameters == "final" else self.source.state(matrix.parameters, last)
        parameters, optimizer, targets = dict(anchor.parameters), dict(anchor.optimizer), anchor.targets
        parameters |= {name: weights.parameters[name] for name in prunable}
        if matrix.optimizer == "fresh":
            optimizer = {name: adam(leaves) for name, leaves in parameters.items()}
        if matrix.temperature == "fresh":
            others = {name: leaves for name, leaves in like.parameters.items() if name not in prunable}
            parameters |= others
            optimizer |= {name: adam(leaves) for name, leaves in others.items()}
        if matrix.targets == "online":
            targets = {name: jax.tree.map(jax.numpy.copy, parameters[name]) for name in targets}
        normalizer = {
            "anchor": anchor.normalizer,
            "fresh": Moments.empty(len(anchor.normalizer.mean)),
            "final": last.normalizer,
        }[matrix.normalizer]
        counters = like if matrix.step == "zero" else anchor
        state = anchor.replace(
            parameters=parameters,
            targets=targets,
            averages=weights.averages,
            optimizer=optimizer,
            normalizer=normalizer,
            updates=counters.updates,
            env_steps=counters.env_steps,
        )
        replay = self.source.arrays("anchor-replay") if matrix.replay == "anchor" else None
        return Start(masks, state, replay, random_actions=False, keep=())

    def rewound_but_actor(self, masks: Masks) -> Start:
        """As ``rewound``, with an actor that begins anew: its weights, their moments, and its target."""
        start, new = self.rewound(masks), self.fresh(masks, other_seed=True).state
        assert start.state is not None, "a rewound start has a state"
        assert new is not None, "a fresh one too"
        mixed = {
            part: getattr(start.state, part) | {k: v for k, v in getattr(new, part).items() if k == "actor"}
            for part in ("parameters", "targets", "averages", "optimizer")
        }
        return replace(start, state=start.state.replace(**mixed))

    def restarted(self, name: str, masks: Masks, networks: Collection[str] | None = None) -> Start:
        """The start at step 0 with weights and normaliser of this state of the source; all else is fresh.

        networks: those whose weights are the source's; by default all that can be pruned.
        """
        begin, state = self.algorithm.init(self.config.seed), self.source.state(name, self.last)
        taken = self.algorithm.prunable if networks is None else networks
        parameters = begin.parameters | {each: state.parameters[each] for each in taken}
        begin = begin.replace(
            parameters=parameters,
            targets={each: jax.tree.map(jax.numpy.copy, parameters[each]) for each in begin.targets},
            averages=state.averages,
            optimizer={each: adam(leaves) for each, leaves in parameters.items()},
            normalizer=state.normalizer,
        )
        return Start(masks, begin, keep=())

    def fresh(self, masks: Masks, *, other_seed: bool = False) -> Start:
        """The start with fresh weights; ``other_seed`` for ones that this seed's dense run did not have.

        They are rescaled for their masks if the rewind matrix says so.
        """

        def scaled(network: str, tree: Mapping[str, Any]) -> Mapping[str, Any]:
            return rescaled(tree, masks.get(network, {}), self.live[network])

        # The noise of updates stays the seed's own; only the weights differ.
        state = self.algorithm.init((self.config.seed + _FRESH_SEED * other_seed) % 2**31)
        if self.matrix.rescale_fresh:
            state = map_weights(state, scaled)
        return Start(masks, state.replace(seed=jax.numpy.uint32(self.config.seed)), keep=())
