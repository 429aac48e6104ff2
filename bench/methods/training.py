"""Whole trainings of one algorithm, environment and learner together: ours, SBX's and Stable-Baselines3's."""

import contextlib
import importlib
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from bench.methods.base import Method, Subject
from bench.methods.learners import Algo

_TEST_SEED = 1_000_000
"""Added to a run's seed for the episodes that test it."""


@dataclass(frozen=True, kw_only=True)
class TrainingRequest:
    """A request to train; the settings are those published for these algorithms on MuJoCo's robots.

    method, algo: what trains, and by what. env: a gymnasium id. seed: of the run. every: environment steps of
    a turn. start_steps: of random actions before the first update. episodes: of an evaluation.
    """

    method: str
    algo: Algo
    env: str
    seed: int
    every: int
    start_steps: int
    episodes: int
    batch: int = 256
    hidden: tuple[int, ...] = (256, 256)
    learning_rate: float = 3e-4
    target_rate: float = 5e-3
    discount: float = 0.99
    updates_per_step: float = 1.0
    rows: int = 1_000_000


def returns_of(request: TrainingRequest, act: Callable[[np.ndarray], Any]) -> dict[str, float]:
    """Mean and standard deviation of the returns of whole episodes in the stock environment."""
    import gymnasium

    env, returns = gymnasium.make(request.env), []
    for episode in range(request.episodes):
        observation, _ = env.reset(seed=_TEST_SEED + request.seed + episode)
        total, ended = 0.0, False
        while not ended:
            observation, reward, terminated, truncated, _ = env.step(act(observation))
            total, ended = total + float(reward), terminated or truncated
        returns.append(total)
    env.close()
    return {"return_mean": float(np.mean(returns)), "return_std": float(np.std(returns))}


def ours(request: TrainingRequest) -> Subject:
    """The product: workers collect while the learner learns, with the same updates for each step."""
    from bench.product import published_training

    loop = published_training(request)
    done = 0

    def step() -> int:
        nonlocal done
        before, goal = done, done + request.every
        while done < goal:
            done += loop.turn()
        return done - before

    def facts() -> dict[str, Any]:
        versions = {"versions": {"jax": importlib.metadata.version("jax")}}
        return {
            "env_steps": done,
            "updates": loop.updates(),
            **returns_of(request, loop.policy()),
            **versions,
        }

    return Subject(step, loop.close, facts=facts, wait=loop.wait)


def peer(request: TrainingRequest) -> Subject:
    """The peer's training with an update after every step of one environment."""
    import gymnasium

    package = "stable_baselines3" if request.method == "sb3-training" else "sbx"
    settings: dict[str, Any] = {"ent_coef": "auto"} if request.algo == "sac" else {}
    if request.algo == "td3":
        from stable_baselines3.common.noise import NormalActionNoise

        with contextlib.closing(gymnasium.make(request.env)) as env:
            zeros = np.zeros(env.action_space.shape or ())
        settings["action_noise"] = NormalActionNoise(zeros, zeros + 0.1)
    model = getattr(importlib.import_module(package), request.algo.upper())(
        "MlpPolicy",
        request.env,
        learning_rate=request.learning_rate,
        buffer_size=request.rows,
        learning_starts=request.start_steps,
        batch_size=request.batch,
        tau=request.target_rate,
        gamma=request.discount,
        train_freq=1,
        gradient_steps=int(request.updates_per_step),
        policy_kwargs={"net_arch": list(request.hidden)},
        seed=request.seed,
        device="cpu",
        **settings,
    )

    def step() -> int:
        before = model.num_timesteps
        model.learn(request.every, reset_num_timesteps=False, log_interval=None)
        return model.num_timesteps - before

    def facts() -> dict[str, Any]:
        found = returns_of(request, lambda observation: model.predict(observation, deterministic=True)[0])
        name = "stable-baselines3" if package == "stable_baselines3" else "sbx-rl"
        versions = {"versions": {name: importlib.metadata.version(name)}}
        return {"env_steps": model.num_timesteps, "updates": int(model._n_updates), **found, **versions}

    return Subject(step, model.env.close, num_envs=1, facts=facts)


_training = partial(Method, request=TrainingRequest, capped=False)
METHODS = (
    _training("ours-training", ours),
    *(_training(name, peer, peer="learners", role="peer") for name in ("sbx-training", "sb3-training")),
)
