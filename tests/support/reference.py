"""A reproducible run as a plain loop over the collector's serial twin and the engine's functions."""

import numpy as np
from support import tiny_env

from engine.algorithms import base
from engine.data.replay import Replay
from fastcollect import mlp_policy
from fastcollect.control.config import CollectorConfig
from fastcollect.control.serial import SerialCollector
from fastcollect.envs.registry import EnvConfig
from trainers.store.layout import from_arrays, to_arrays


def reference_run(config, start=None, masks=None, replay=None):
    """The final state of a run on TinyEnv, as named arrays.

    start: arrays of a state to go on from, None for fresh weights that explore. masks: of its networks.
    replay: arrays of what was collected before.
    """
    collect, settings, spec = config.collect, config.algorithm, tiny_env.spec(8)
    collection = CollectorConfig(
        env=EnvConfig(id=config.env),
        policy=mlp_policy(settings.hidden),
        num_envs=collect.n,
        num_env_workers=collect.N,
        group_size=collect.group_size,
        block_length=collect.block_length,
        seed=config.seed,
        schedule="rounds",
        reproducible=True,
    )
    algorithm = settings.make(spec, config.variance_floor)
    state = algorithm.init(config.seed)
    acting = algorithm.exploring(state)
    if start is not None:
        state = base.masked(from_arrays(start, state, "the start"), masks)
        acting = algorithm.acting(state, *state.normalizer.scaling(config.variance_floor))
    pruned = base.pruned_networks(state)
    held = Replay(
        config.replay.capacity, collect.n * collect.N, tiny_env.OBSERVATIONS, tiny_env.ACTIONS, "host"
    )
    if replay is not None:
        held.set_state(replay)
    last = int((config.env_steps - config.start_steps) * config.updates_per_step)
    with SerialCollector(collection, parameters=acting) as source:
        while state.env_steps < config.env_steps:
            block = source.take()
            held.add(block.env_index, rows_of(block), continues=block.first_step > 0)
            state = state.replace(
                env_steps=state.env_steps + len(block),
                normalizer=state.normalizer.update(block.observation[:-1].reshape(len(block), -1)),
            )
            due = int((state.env_steps - config.start_steps) * config.updates_per_step)
            while due - (made := int(state.updates)) >= config.updates_per_dispatch:
                count = config.updates_per_dispatch
                batches = held.batches(config.seed, made, count, settings.batch_size, settings.n_step)
                pace = 1 - (1 - config.final_learning_rate) * (made / last)
                state, acting, _ = base.learn(algorithm, state, batches, pace, pruned)
                source.publish(acting)
    assert state.updates == last  # no part of a dispatch is owed
    return to_arrays(state)


def rows_of(block):
    """A block as a replay takes it, its actions from their box to [-1, 1]."""
    low, high = tiny_env.LOW.astype(np.float64), tiny_env.HIGH.astype(np.float64)
    return {
        "observation": block.observation,
        "action": ((block.action - (low + high) / 2) / ((high - low) / 2)).astype(np.float32),
        "reward": block.reward,
        "terminated": block.terminated,
        "truncated": block.truncated,
        "final_row": block.episodes.row,
        "final_observation": block.episodes.final_observation,
    }
