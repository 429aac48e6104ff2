"""Learners of the tiny environment, fed with blocks made by hand."""

import numpy as np
from support import tiny_env
from support.blocks import block
from support.training import tiny_config

from trainers.run.learner import Learner, Start

SPEC = tiny_env.spec(8)
ENVS = 4


def learner(masks=None, spec=SPEC, first_env=0, **changes):
    config = tiny_config(**changes)
    total = config.collect.n * config.collect.N
    made = Learner(config, spec, range(first_env, first_env + total))
    if masks is not None:
        made.start_from(Start(masks))
    return made


def some_block(seed, first_step=0, steps=4, envs=range(ENVS), **kwargs):
    rng, count = np.random.default_rng(seed), len(envs)
    observation = rng.normal(size=(steps + 1, count, tiny_env.OBSERVATIONS)).astype(np.float32)
    action = rng.uniform(tiny_env.LOW, tiny_env.HIGH, (steps, count, 2)).astype(np.float32)
    reward = rng.normal(size=(steps, count))
    return block(observation, action, env_index=envs, first_step=first_step, reward=reward, **kwargs)


def filled(masks=None, blocks=3, updates=4, **changes):
    made = learner(masks, **changes)
    for k in range(blocks):
        made.learn_from(some_block(k, first_step=4 * k))
    if updates:
        made.update(updates)
    return made


def stored(made):
    """What its replay holds, by name, with an environment's steps in a row each: (envs, steps, ...)."""
    state = made.replay.get_state()
    names = ("observation", "action", "reward", "terminated", "ended")
    held = state["held"].tolist()
    assert len(set(held)) == 1
    return {name: state[name].reshape(len(held), held[0], *state[name].shape[1:]) for name in names}
