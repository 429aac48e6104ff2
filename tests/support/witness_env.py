"""An environment that observes the process it runs in."""

import os
import sys

import numpy as np

from fastcollect.envs.base import ActionSpec, EnvSpec

FIELDS = ("jax", "threads", "omp", "num_cpus", "cpu", "pid")
SPEC = EnvSpec(
    observation_shape=(len(FIELDS),),
    observation_dtype=np.dtype(np.float64),
    observation_low=np.zeros(len(FIELDS)),
    observation_high=np.full(len(FIELDS), np.inf),
    action=ActionSpec(shape=(1,), dtype=np.dtype(np.float32), low=np.full(1, -1.0), high=np.full(1, 1.0)),
)


def testimony():
    cpus = sorted(os.sched_getaffinity(0))
    threads = len(os.listdir("/proc/self/task"))
    return [
        "jax" in sys.modules,
        threads,
        int(os.environ["OMP_NUM_THREADS"]),
        len(cpus),
        cpus[0],
        os.getpid(),
    ]


class WitnessEnv:
    spec = SPEC

    def __init__(self, seeds):
        self.num_envs = len(seeds)

    def reset(self, observation):
        observation[...] = testimony()

    def step(self, action, out):
        product = np.ones((300, 300)) @ np.ones((300, 300))  # large enough for threads, were they allowed
        assert product[0, 0] == 300
        out.observation[...] = testimony()
        out.reward[:] = out.terminated[:] = out.truncated[:] = 0

    def get_state(self):
        return {}

    def set_state(self, state):
        pass

    def close(self):
        pass
