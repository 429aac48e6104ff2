"""Stage sparse: one run whose networks are sparse from the start, with a topology that stays or evolves."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from engine.algorithms.base import AgentState, Algorithm
from engine.sparse import masks as mask_functions
from engine.sparse import topology
from engine.sparse.small import small
from engine.sparse.topology import Topology
from fastcollect import ConfigError
from trainers.config.sparse import EVOLVING, SparseConfig
from trainers.config.training import TrainConfig, updates_due
from trainers.run.learner import Start
from trainers.run.training import algorithm_of
from trainers.study import stages

_KEPT = ("initial", "best")


def sparse(context: stages.Context, path: Path, config: TrainConfig, chosen: SparseConfig) -> dict[str, Any]:
    """Train in a run folder. Raises as ``train``, and ConfigError before there is a folder."""
    start = begin(algorithm_of(config), config, chosen)
    with context.open(path) as folder:
        if folder.finished():
            return context.finished(path)
        context.progress.run(context.title, config.env_steps)
        return stages.train(folder, config, start, context.progress, resume=context.resume)


def begin(algorithm: Algorithm, config: TrainConfig, chosen: SparseConfig) -> Start:
    """What a sparse run begins with. Raises ConfigError naming every layer that would be empty."""
    state = algorithm.init(config.seed)
    sparsities = {"actor": chosen.actor_sparsity, "critic": chosen.critic_sparsity}
    if chosen.topology == "small":
        return _small(state, sparsities)
    masks, evolving, problems = {}, {}, list[str]()
    for name, sparsity in ((name, sparsity) for name, sparsity in sparsities.items() if sparsity):
        try:
            masks[name] = topology.initial(state.parameters[name], sparsity, chosen.distribution)
            if chosen.topology in EVOLVING and name not in chosen.frozen:
                updates = updates_due(config, config.env_steps) // algorithm.period(name)
                evolving[name] = _topology(chosen, masks[name], updates)
        except ValueError as error:
            problems.append(f"the {name} of sparsity {sparsity}: {error}")
    if problems:
        raise ConfigError(problems)
    # What is pruned gradually begins dense.
    begin = masks if chosen.topology != "gmp" else {n: mask for n, mask in masks.items() if n not in evolving}
    return Start(begin, topology=evolving, keep=_KEPT)


def _small(state: AgentState, sparsities: Mapping[str, float]) -> Start:
    """A start with small layers in place of sparse ones."""
    masks, parameters = {}, dict(state.parameters)
    for name, sparsity in sparsities.items():
        masks[name], weights = small(parameters[name], sparsity)
        parameters[name] = {leaf: jax.numpy.array(value) for leaf, value in weights.items()}
    targets, averages = (
        {name: jax.tree.map(jax.numpy.copy, parameters[name]) for name in copies}
        for copies in (state.targets, state.averages)
    )
    state = state.replace(parameters=parameters, targets=targets, averages=averages)
    return Start(masks, state=state, keep=_KEPT)


def _topology(chosen: SparseConfig, mask: mask_functions.Mask, updates: int) -> Topology:
    """How a network's topology evolves, which is updated so many times. mask: of its final sparsity."""
    method = EVOLVING[chosen.topology]
    return Topology.make(
        method,
        interval=chosen.topology_interval,
        begin=int(chosen.topology_begin * updates),
        end=int(chosen.topology_end * updates),
        drop_share=chosen.drop_share,
        final=mask_functions.counts(mask)[0] if method == "gmp" else None,
    )
