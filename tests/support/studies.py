"""Whole studies without training: the stages' own code, and a trainer that only writes what one writes."""

import jax.numpy as jnp
import numpy as np
from support.specs import box_spec

from engine.algorithms import base
from engine.normalizer import Moments
from engine.sparse import masks
from trainers import command
from trainers.run.metrics import MetricsWriter
from trainers.run.policy import save_policy
from trainers.run.training import acting_policy
from trainers.store import artifacts
from trainers.store.layout import to_arrays
from trainers.study import stages

OBSERVATIONS, ACTIONS = 39, 4
SPEC = box_spec(np.full(ACTIONS, -1.0), np.ones(ACTIONS), (OBSERVATIONS,))
CONSTANT = (*range(11, 18), *range(29, 36))
FLAGS = (
    *("--algorithm.hidden", "8", "6", "--algorithm.batch-size", "16", "--collect.n", "2", "--collect.N", "1"),
    *("--env-steps", "3000", "--start-steps", "100", "--anchor-steps", "1000", "--evaluation.every", "1000"),
)


def study(monkeypatch, path, *flags):
    """``train.py`` with these flags into ``path``, its trainer replaced by ``fake_train``."""
    monkeypatch.setattr(stages, "train", fake_train)
    command.main([*FLAGS, "--run", str(path), *flags])
    return path


def fake_train(folder, config, start, progress, *, resume=False):
    """A run that learns at random, with every file of a real one but checkpoints."""
    algorithm = config.algorithm.make(SPEC, config.variance_floor)
    begin = base.masked(start.state or algorithm.init(config.seed), start.masks)
    final = learned(config, begin)
    densities = base.densities(begin)
    with MetricsWriter(folder.path) as writer:
        rows = [evaluation(config, step, densities) for step in range(int(begin.env_steps), 3001, 1000)]
        for row in rows:
            writer.write_evaluation(row)
    kept = {"initial": begin, "anchor": at(begin, 1000), "best": final}
    for name in (name for name in start.keep if name in kept):
        save(folder, name, to_arrays(kept[name]))
    if "saliency" in start.keep:
        save(folder, "saliency", {"observation": observations(config.seed).reshape(4, 16, OBSERVATIONS)})
    if "anchor" in start.keep:
        save(folder, "anchor-replay", {"replay/observation": observations(config.seed + 1)})
    save(folder, "final", to_arrays(final))
    acting = algorithm.acting(base.evaluated(final), *final.normalizer.scaling(config.variance_floor))
    save_policy(folder, acting_policy(config.algorithm.network, deterministic=True), SPEC, acting)
    summary = {
        **{key: rows[-1][key] for key in ("success_any", "success_last", "return_mean")},
        "best": {key: rows[-1][key] for key in ("success_any", "success_last", "return_mean")},
        "reached": {"success_any": {"at": 0.95, "env_steps": 2000, "wall_seconds": 1.0}}
        if config.seed
        else {},
        "env": config.env,
        "seed": config.seed,
        "env_steps": 3000,
        "updates": 187,
        "density": densities,
        "kept_weights": {name: masks.counts(mask)[0] for name, mask in begin.masks.items()},
        "flops": algorithm.flops(begin),
        "updates_per_step": 0.0625,
        "wall_seconds": 4.0,
        "training_seconds": 2.0,
        "stopped_early": False,
    }
    folder.write_summary(summary)
    return summary


def at(state, step):
    return state.replace(env_steps=np.int64(step), updates=jnp.int32(step // 16))


def learned(config, state):
    """Other weights, zero where they are pruned, and a normaliser that has seen something."""
    rng = np.random.default_rng([config.seed, len(config.env), int(state.env_steps)])

    def shaken(tree):
        return {name: leaf + 0.1 * rng.standard_normal(leaf.shape, np.float32) for name, leaf in tree.items()}

    parameters = {**state.parameters, **{name: shaken(state.parameters[name]) for name in state.masks}}
    averages = {name: shaken(tree) for name, tree in state.averages.items()}
    normalizer = Moments.empty(OBSERVATIONS).update(observations(config.seed))
    state = state.replace(parameters=parameters, averages=averages, normalizer=normalizer)
    return at(base.masked(state), 3000)


def observations(seed):
    rows = np.random.default_rng(seed).normal(0.5, 0.3, (64, OBSERVATIONS)).astype(np.float32)
    rows[:, CONSTANT] = 0
    return rows


def evaluation(config, step, densities):
    value = min(1.0, 0.2 * config.seed + step / 10_000)
    return {
        "env_steps": step,
        "updates": step // 16,
        "wall_seconds": step / 1000,
        "density": densities,
        "success_any": value,
        "success_last": value / 2,
        "return_mean": 1000 * value,
    }


def save(folder, name, arrays):
    artifacts.save(folder.path, name, arrays, config_hash=folder.config_hash)
