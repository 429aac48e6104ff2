"""The design that one writes first: environments in processes, queues to a model process, pipes back.

Written from scratch as a baseline, with nothing of the collector in it but the policy. An env worker steps n
stock environments: it sends their observations, pickled, through one queue to the model process, waits at
its pipe for the actions, and after 32 steps sends what happened through another queue to the caller. The
model process computes the actions of all the workers that wait.
"""

import contextlib
import itertools
import multiprocessing
import os
import queue
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from bench.methods.base import Method, Request, Subject, die_with, each_processor
from bench.methods.stock import Actor, make_stock

ROLLOUT_STEPS = 32
_WAITING_ROLLOUTS = 4  # for each worker, so that a slow caller does not fill the memory
_POLL_SECONDS = 1.0


def naive(request: Request) -> Subject:
    """N env workers of n environments each, and one model process."""
    context, size, parent = multiprocessing.get_context("spawn"), request.parallelism, os.getpid()
    observations, rollouts = context.Queue(), context.Queue(_WAITING_ROLLOUTS * size.N)
    pipes = [context.Pipe(duplex=False) for _ in range(size.N)]
    model = parent, request, observations, [send for _, send in pipes]
    processes = [context.Process(target=run_model, args=model, daemon=True)]
    for index, (receive, _) in enumerate(pipes):
        worker = parent, index, request, observations, receive, rollouts
        processes.append(context.Process(target=run_worker, args=worker, daemon=True))
    for process in processes:
        process.start()
    # The children have their own ends now; with ours open nobody would see a broken pipe.
    for end in itertools.chain.from_iterable(pipes):
        end.close()

    def close() -> None:
        for process in processes:
            process.kill()
        for process in processes:
            process.join()

    try:
        # Every worker has begun when the slowest one's first rollout is here.
        waiting = set(range(size.N))
        while waiting:
            waiting.discard(_take(rollouts, processes)[0])
    except BaseException:
        close()
        raise
    return Subject(lambda: _take(rollouts, processes)[3].size, close, size.total)


def run_worker(
    parent: int, index: int, request: Request, observations: Any, actions: Connection, rollouts: Any
) -> None:
    """An env worker's whole life."""
    die_with(parent)
    envs = [make_stock(request.env) for _ in range(request.parallelism.n)]
    first = index * len(envs)
    current = np.stack([env.reset(seed=seed)[0] for seed, env in enumerate(envs, first)])
    while True:
        steps = []
        for _ in range(ROLLOUT_STEPS):
            observations.put((index, current))
            action = actions.recv()
            results = [_step(env, each) for env, each in zip(envs, action, strict=True)]
            following, *outcome = map(np.stack, zip(*results, strict=True))
            steps.append((current, action, *outcome))
            current = following
        rollouts.put((index, *map(np.stack, zip(*steps, strict=True))))


def _step(env: Any, action: np.ndarray) -> tuple[Any, ...]:
    """One step of one environment: next observation, reward, terminated, truncated."""
    observation, reward, terminated, truncated, _ = env.step(action)
    if terminated or truncated:
        observation, _ = env.reset()
    return observation, reward, terminated, truncated


def run_model(parent: int, request: Request, observations: Any, actions: Sequence[Connection]) -> None:
    """The model process's whole life."""
    die_with(parent)
    env = make_stock(request.env)
    act = Actor(request, env.observation_space, env.action_space, request.parallelism.total)
    env.close()
    while True:
        waiting = [observations.get()]
        with contextlib.suppress(queue.Empty):
            while True:
                waiting.append(observations.get_nowait())
        chosen = act(np.concatenate([each for _, each in waiting]))
        for (index, _), rows in zip(waiting, np.split(chosen, len(waiting)), strict=True):
            actions[index].send(rows)


def _take(rollouts: Any, processes: Sequence[multiprocessing.process.BaseProcess]) -> tuple[Any, ...]:
    """The next rollout: whose it is, observations, actions, rewards, terminated, truncated.

    Raises RuntimeError when a process has ended, since then none may come.
    """
    while True:
        try:
            return rollouts.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            codes = [process.exitcode for process in processes]
            if any(code is not None for code in codes):
                raise RuntimeError(f"a process of the naive design ended; exit codes: {codes}") from None


_NOTE = "N processes of n stock environments, a queue to one model process, pipes back, rollouts in a queue"
METHODS = (Method("naive", naive, _NOTE, role="peer", policy=True, sizes=each_processor(1), obeys=True),)
