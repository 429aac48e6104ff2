"""Stages of a study over the tiny environment, what their runs begin with, and runs that are pretended."""

import jax
import numpy as np
import pytest
from support import tiny_env
from support.training import Silent, artifact, assert_same, tiny_config

from engine.algorithms import base
from engine.normalizer import Moments
from fastcollect.support.errors import ConfigError
from trainers.config.training import PruneConfig, RewindConfig
from trainers.run import training as loop
from trainers.store import artifacts
from trainers.store.identity import dense_identity
from trainers.store.layout import to_arrays, unpack_masks
from trainers.study import rewind, stages
from trainers.study.identities import study_root, ticket_identity, transfer_identity

CONFIG = tiny_config()
TARGET = tiny_config(seed=4, env_kwargs=("scale=2.0",))
BOTH = PruneConfig(actor=0.6, critic=0.4, rate=0.4, scope="global")
"""Two rounds: the actor to 0.4 and 0.6, the critic to 0.4 in the first."""

LAYERS = {
    "actor": {"kernel_0": (6, 8), "kernel_1": (8, 4)},
    "critic": {f"q{i}/kernel_{k}": shape for i in range(2) for k, shape in enumerate([(8, 8), (8, 1)])},
}


class StopError(Exception):
    """Enough was seen."""


class Starts:
    """What runs began with, by their folders' names: everything that the learner is, in arrays.

    stop_at: the folder whose run is to raise StopError then.
    """

    def __init__(self, patch, stop_at=None):
        self.arrays, self.replay, self.density, self.random = {}, {}, {}, {}
        train, session = stages.train, loop.Session

        def named(folder, config, start, progress, *, resume=False):
            name = folder.path.name

            def begun(source, learner, observers):
                self.arrays[name] = to_arrays(learner.state)
                self.replay[name] = learner.replay.get_state()
                self.density[name] = base.densities(learner.state)
                self.random[name] = start.random_actions
                if name == stop_at:
                    raise StopError
                return session(source, learner, observers)

            with pytest.MonkeyPatch.context() as inside:
                inside.setattr(loop, "Session", begun)
                return train(folder, config, start, progress, resume=resume)

        patch.setattr(stages, "train", named)


def context(identity, resume=False, progress=None):
    return stages.Context(identity, ["test"], progress or Silent(), resume, "title")


def run_dense(path, config=CONFIG):
    return stages.dense(context(dense_identity(config)), path, config)


def run_ticket(path, dense, prune=BOTH, matrix=None, controls=(), config=CONFIG, **kwargs):
    source, matrix = rewind.open_source(str(dense)), matrix or RewindConfig()
    identity = ticket_identity(config, prune, matrix, source, study_root(path))
    return stages.ticket(context(identity, **kwargs), path, config, prune, matrix, source, controls)


def run_transfer(path, ticket, dense, config=TARGET, matrix=None):
    sources = [rewind.open_source(str(each)) for each in (ticket, dense)]
    matrix = matrix or RewindConfig()
    identity = transfer_identity(config, matrix, *sources, study_root(path))
    return stages.transfer(context(identity), path, config, matrix, *sources)


def pretend(folder, config, start, progress, *, resume=False):
    """In place of a training: weights that moved at random, where they are not pruned."""
    state = start.state
    rng = np.random.default_rng(len(folder.path.name) + int(folder.path.name[-1], 36))

    def moved(tree):
        return {
            k: jax.numpy.asarray(v + 0.3 * rng.standard_normal(v.shape, np.float32)) for k, v in tree.items()
        }

    parameters = {**state.parameters, **{name: moved(state.parameters[name]) for name in LAYERS}}
    moments = Moments(7, *rng.random((2, tiny_env.OBSERVATIONS)))
    state = state.replace(
        parameters=parameters,
        normalizer=moments,
        env_steps=np.int64(320),
        updates=jax.numpy.int32(32),
    )
    arrays = to_arrays(base.masked(state, start.masks))
    artifacts.save(folder.path, "final", arrays, config_hash=folder.config_hash)
    pretend_anything(folder)


def pretend_anything(folder, *_, **__):
    """In place of a training of which only the start matters."""
    results = dict.fromkeys(("success_any", "success_last", "return_mean", "wall_seconds"), 0.0)
    folder.write_summary({**results, "env_steps": 320, "updates": 32, "best": {}, "reached": {}})


def files(path, but=(".lock",)):
    """Content and time of every file."""
    return {
        str(each.relative_to(path)): (each.read_bytes(), each.stat().st_mtime_ns)
        for each in path.rglob("*")
        if each.is_file() and each.name not in but
    }


def problems_of(function, *args, **kwargs):
    with pytest.raises(ConfigError) as caught:
        function(*args, **kwargs)
    return caught.value.problems


def masks_of(path):
    """{"actor", "critic"} -> the mask that a run folder keeps."""
    return unpack_masks(artifact(path, "mask"))


def shapes(mask):
    return {name: kept.shape for name, kept in mask.items()}


def kept(mask):
    return sum(int(part.sum()) for part in mask.values())


def masked(arrays, masks):
    """A state's arrays with these masks, and pruned weights, targets and moments zero."""
    out = dict(arrays)
    places = {
        "actor": ("parameters/actor", "optimizer/actor/mu", "optimizer/actor/nu"),
        "critic": ("parameters/critic", "targets/critic", "optimizer/critic/mu", "optimizer/critic/nu"),
    }
    for kind, prefixes in places.items():
        for leaf, mask in masks[kind].items():
            out[f"masks/{kind}/{leaf}"] = mask
            for prefix in prefixes:
                name = f"{prefix}/{leaf}"
                out[name] = np.where(mask, out[name], np.float32(0))
    return out


def part(arrays, prefix):
    return {name: value for name, value in arrays.items() if name.startswith(prefix)}


def zeros(arrays):
    return {name: np.zeros_like(value) for name, value in arrays.items()}


def assert_same_but_temperature(got, expected):
    """As assert_same; the logarithm of a fresh temperature may differ in its last bit."""
    name = "parameters/temperature/log_temperature"
    np.testing.assert_allclose(got[name], expected[name], rtol=1e-6)
    assert_same({k: v for k, v in got.items() if k != name}, {k: v for k, v in expected.items() if k != name})


def at_step_zero(weights, seed, normalizer=None):
    """These weights with everything else fresh."""
    out = dict(weights)
    online = part(out, "parameters/critic/")
    out |= {name.replace("parameters/", "targets/"): value for name, value in online.items()}
    out |= zeros(part(out, "optimizer/"))
    out |= zeros({name: out[name] for name in ("env_steps", "updates")})
    initial = np.float32(CONFIG.algorithm.initial_temperature)
    out["parameters/temperature/log_temperature"] = np.log(initial)
    out["seed"] = np.array(seed, np.uint32)
    return out | (zeros(part(out, "normalizer/")) if normalizer is None else part(normalizer, "normalizer/"))


def counts(masks):
    return {(kind, leaf): int(mask.sum()) for kind in LAYERS for leaf, mask in masks[kind].items()}
