"""Sample Factory's own sampler with its own policy, and nothing that learns from what it collects."""

import multiprocessing
import tempfile
from typing import Any

from bench.methods.base import Method, Request, Subject, UnsupportedError, each_processor
from bench.methods.stock import make_stock
from fastcollect.policies.choice import parse_policy

ROLLOUT_STEPS = 32
IMPALA_CHANNELS = (16, 32)
"""Of its two convolutions called "convnet_impala", whose kernels, strides and lack of padding are ours."""

# Its workers take 10 more of the niceness, and would make way for whatever else runs on the machine.
_FIXED = """
--experiment=sampler --device=cpu --seed=0 --async_rl=True --batched_sampling=True --use_rnn=False
--policy_workers_per_policy=1 --nonlinearity=relu --normalize_input=False --normalize_returns=False
--default_niceness=-10 --decorrelate_experience_max_seconds=0 --decorrelate_envs_on_one_worker=False
--log_to_file=False
"""


def make_registered(name: str, _config: Any, _env_config: Any, render_mode: str | None = None) -> Any:
    """A stock environment, called as Sample Factory calls what is registered with it."""
    env = make_stock(name)
    if len(env.observation_space.shape) < 3:
        return env
    from sample_factory.envs.env_wrappers import PixelFormatChwWrapper

    return PixelFormatChwWrapper(env)


def encoder_arguments(request: Request) -> list[str]:
    """Its options for the hidden layers of the row's policy. Raises UnsupportedError where it has none."""
    widths = parse_policy(request.policy, request.env).kwargs
    if "hidden" in widths:
        return ["--encoder_mlp_layers", *map(str, widths["hidden"])]
    if widths.get("channels") == IMPALA_CHANNELS:
        conv = ["--encoder_conv_architecture=convnet_impala", "--encoder_conv_mlp_layers"]
        return [*conv, str(widths["dense"]), "--obs_scale=255"]
    raise UnsupportedError('sample-factory runs hidden widths such as 256,256, and "cnn", only')


def arguments(request: Request, folder: str) -> list[str]:
    """The command line of a training run of its own; what concerns the learner alone is left out.

    Batched sampling was the faster of its two. Two groups of environments that take turns were slower
    than one with hidden widths, and no slower with the policy for images.
    """
    encoder, size = encoder_arguments(request), request.parallelism
    turns = 1 if encoder[0] == "--encoder_mlp_layers" or size.n % 2 else 2
    return [
        *_FIXED.split(),
        *(f"--env={request.env}", f"--train_dir={folder}", f"--num_workers={size.N}"),
        *(f"--num_envs_per_worker={size.n}", f"--worker_num_splits={turns}"),
        *(f"--rollout={ROLLOUT_STEPS}", f"--batch_size={ROLLOUT_STEPS * size.total}"),
        *encoder,
    ]


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
    while collected < ROLLOUT_STEPS * request.parallelism.total:
        collected += step()
    return Subject(step, close, request.parallelism.total)


_NOTE = """its sampler with its own policy of the same widths, which has a critic too: N rollout workers \
of n stock environments, one inference worker, rollouts copied out; no learner"""
_SIZES = each_processor(1, most=256)
METHODS = (Method("sample-factory", sample_factory, _NOTE, "sample-factory", "peer", True, _SIZES),)
