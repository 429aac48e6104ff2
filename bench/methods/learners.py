"""Learners of one algorithm on the same batches: ours, SBX's and Stable-Baselines3's."""

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import gymnasium
import numpy as np

from bench.methods.base import Method, Subject

Storage = Literal["host", "device"]
"""Where the product's replay lies."""
Algo = Literal["sac", "td3"]
"""What all of them learn by."""


@dataclass(frozen=True, kw_only=True)
class LearnerRequest:
    """A request to count updates.

    algo: what learns. batch: transitions in a batch. hidden: widths of actor and critics. env,
    updates_per_step: of the method that collects. observations, actions: sizes of a transition's vectors.
    rows: transitions in the replay. peer_updates: how many a peer makes in one call.
    """

    method: str
    algo: Algo = "sac"
    batch: int
    hidden: tuple[int, ...]
    env: str
    updates_per_step: float
    observations: int = 39
    actions: int = 4
    rows: int = 100_000
    learning_rate: float = 1e-3
    target_rate: float = 0.01
    discount: float = 0.97
    peer_updates: int = 64

    @property
    def spaces(self) -> tuple[gymnasium.Space, gymnasium.Space]:
        """Of observations and actions."""
        box = gymnasium.spaces.Box
        return box(-np.inf, np.inf, (self.observations,), np.float32), box(-1, 1, (self.actions,), np.float32)


def _versions(*packages: str) -> Callable[[], dict[str, Any]]:
    """Of the packages that decide a method's speed."""
    return lambda: {"versions": {name: importlib.metadata.version(name) for name in packages}}


SPARSE = {"ours-static": "static", "ours-rigl": "rigl"}
"""Method -> how the masks of its sparse networks evolve."""
_OURS = _versions("jax", "flax", "optax", "numpy")


def updating(request: LearnerRequest) -> Subject:
    """The product's learner with a full replay, kept on the host or on the device."""
    from bench.product import filled_learner

    storage: Storage = "device" if request.method == "ours-device" else "host"
    update, wait = filled_learner(request, storage, SPARSE.get(request.method))
    return Subject(update, facts=_OURS, wait=wait)


def collecting(request: LearnerRequest) -> Subject:
    """The product's loop: workers collect, and the ratio of updates to their steps is kept."""
    from bench.product import training_config, training_loop

    loop = training_loop(training_config(request))

    def step() -> int:
        before = loop.updates()
        loop.turn()
        return loop.updates() - before

    return Subject(step, loop.close, facts=_OURS, wait=loop.wait)


def peer(request: LearnerRequest) -> Subject:
    """The peer's own learner, its replay buffer full of random transitions.

    By td3 SBX's targets move at every update, and its actor asks both critics.
    """
    from stable_baselines3.common.logger import configure

    package = importlib.import_module("sbx" if request.method == "sbx" else "stable_baselines3")
    settings: dict[str, Any] = {}
    if request.algo == "sac":
        delay = "policy_delay" if request.method == "sbx" else "target_update_interval"
        settings = {"ent_coef": "auto", delay: 1}
    env = gymnasium.Env()  # spaces and nothing else: what a peer needs to know of an environment
    env.observation_space, env.action_space = request.spaces
    model = getattr(package, request.algo.upper())(
        "MlpPolicy",
        env,
        learning_rate=request.learning_rate,
        buffer_size=request.rows,
        batch_size=request.batch,
        tau=request.target_rate,
        gamma=request.discount,
        policy_kwargs={"net_arch": list(request.hidden)},
        seed=0,
        device="cpu",
        **settings,
    )
    model.set_logger(configure(None, []))
    buffer, rng = model.replay_buffer, np.random.default_rng(0)
    for array in (buffer.observations, buffer.next_observations):
        array[...] = rng.standard_normal(array.shape, np.float32)
    buffer.actions[...] = rng.uniform(-1, 1, buffer.actions.shape)
    buffer.rewards[...] = rng.uniform(0, 1, buffer.rewards.shape)
    buffer.full = True

    def update() -> int:
        model.train(gradient_steps=request.peer_updates, batch_size=request.batch)
        return request.peer_updates

    if request.method == "sb3":  # computes as it goes
        return Subject(update, facts=_versions("stable-baselines3", "torch", "numpy"))

    def wait() -> None:
        import jax

        states = model.policy.qf_state, model.policy.actor_state, getattr(model, "ent_coef_state", None)
        jax.block_until_ready(states)

    return Subject(update, facts=_versions("sbx-rl", "jax", "flax", "optax", "numpy"), wait=wait)


_learner = partial(Method, request=LearnerRequest, capped=False)
_UPDATING = ("ours-host", "ours-device", *SPARSE)
_BUILDERS = {**dict.fromkeys(_UPDATING, updating), "ours-collecting": collecting}
METHODS = (
    *(_learner(name, build) for name, build in _BUILDERS.items()),
    *(_learner(name, peer, peer="learners", role="peer") for name in ("sbx", "sb3")),
)
