"""Sample Factory's own sampler with its own policy, and nothing that learns from what it collects."""

from __future__ import annotations

import multiprocessing
import tempfile
from typing import Any

from bench.methods.base import Request, Subject, UnsupportedError, make_stock, parse_policy

ROLLOUT_STEPS = 32


def make_registered(name: str, _config: Any, _env_config: Any, render_mode: str | None = None) -> Any:
    """A stock environment, called as Sample Factory calls what is registered with it."""
    return make_stock(name)


def arguments(request: Request, folder: str) -> list[str]:
    """The command line of a training run of its own; what concerns the learner alone is left out.

    Batched sampling was the faster of its two, with two groups of environments that take turns.
    """
    hidden = parse_policy(request.policy, request.env).kwargs.get("hidden")
    if hidden is None:
        raise UnsupportedError("sample-factory runs policies of hidden widths only, such as 256,256")
    options = {
        "env": request.env,
        "experiment": "sampler",
        "train_dir": folder,
        "device": "cpu",
        "async_rl": True,
        "batched_sampling": True,
        "num_workers": request.N,
        "num_envs_per_worker": request.n,
        "worker_num_splits": 1 if request.n % 2 else 2,
        "policy_workers_per_policy": 1,
        "rollout": ROLLOUT_STEPS,
        "batch_size": ROLLOUT_STEPS * request.n * request.N,
        "use_rnn": False,
        "nonlinearity": "relu",
        "normalize_input": False,
        "normalize_returns": False,
        # Its workers take 10 more, and would make way for whatever else runs on the machine.
        "default_niceness": -10,
        "decorrelate_experience_max_seconds": 0,
        "decorrelate_envs_on_one_worker": False,
        "log_to_file": False,
        "seed": 0,
    }
    texts = [f"--{name}={value}" for name, value in options.items()]
    return [*texts, "--encoder_mlp_layers", *map(str, hidden)]


def sample_factory(request: Request) -> Subject:
    """N rollout workers of n environments each, one inference worker, and its loop in this process."""
    from sample_factory.algo.sampling.simplified_sampling_api import SyncSamplingAPI
    from sample_factory.algo.utils.env_info import obtain_env_info_in_a_separate_process
    from sample_factory.algo.utils.rl_utils import samples_per_trajectory
    from sample_factory.cfg.arguments import parse_full_cfg, parse_sf_args
    from sample_factory.envs.env_utils import register_env

    folder = tempfile.TemporaryDirectory()
    argv = arguments(request, folder.name)
    register_env(request.env, make_registered)
    config = parse_full_cfg(parse_sf_args(argv)[0], argv)
    sampler = SyncSamplingAPI(config, obtain_env_info_in_a_separate_process(config))
    sampler.start()

    def step() -> int:
        return samples_per_trajectory(sampler.get_trajectories_sync())

    def close() -> None:
        sampler.stop()
        for process in multiprocessing.active_children():
            process.join()
        folder.cleanup()

    # Workers begin one after another; all have once each environment could have given a rollout.
    collected = 0
    while collected < ROLLOUT_STEPS * request.n * request.N:
        collected += step()
    return Subject(step, close, request.n * request.N)
