"""The simulation alone: what a process could reach if everything else were free."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from bench.methods.base import Method, Request, Subject, UnsupportedError, is_cheap
from bench.methods.stock import RESEED_STEPS, draw_actions, make_stock, stock_name
from bench.methods.vector_envs import stepped
from fastcollect import Parallelism
from fastcollect.envs.gym_vector import action_spec

_FRAMES, _START_FRAMES = 4, 120
_BUTTONS = ("a", "b", "up", "down", "left", "right", "start", "select")


def physics_limit(request: Request) -> Subject:
    """The bare loop over whatever simulates the environment."""
    import gymnasium
    from gymnasium.envs.mujoco import MujocoEnv

    if request.env.startswith("gameboy:"):
        return emulators(request)
    num_envs = request.parallelism.n
    spec = gymnasium.registry.get(stock_name(request.env))
    if spec is not None and spec.vector_entry_point is not None:
        vector = gymnasium.make_vec(spec.id, num_envs, vectorization_mode="vector_entry_point")
        actions = draw_actions(action_spec(vector.single_action_space), num_envs)
        return stepped(vector, lambda _: next(actions), vector.reset(seed=request.index))
    stock = make_stock(request.env)
    stock.reset(seed=request.index)
    if not isinstance(stock.unwrapped, MujocoEnv):
        raise UnsupportedError(
            f"physics-limit exists for Meta-World, gymnasium's MuJoCo environments, those with a "
            f"vector_entry_point (CartPole-v1) and Game Boys, not for {request.env}"
        )
    return Subject(bare_loop(stock.unwrapped, num_envs, request.index), stock.close, num_envs)


def emulators(request: Request) -> Subject:
    """PyBoy alone: one console for each environment, a button drawn beforehand held for each four frames."""
    from pyboy import PyBoy

    path, num_envs = request.env.partition(":")[2], request.parallelism.n
    consoles = [PyBoy(path, window="null", sound_emulated=False) for _ in range(num_envs)]
    for console in consoles:
        console.set_emulation_speed(0)
        console.tick(_START_FRAMES, True, False)
    drawn = np.random.default_rng(request.index).choice(_BUTTONS, (RESEED_STEPS, num_envs)).tolist()
    rows = itertools.cycle(drawn)

    def step() -> int:
        for console, button in zip(consoles, next(rows), strict=True):
            console.button(button, _FRAMES)
            console.tick(_FRAMES, True, False)
        return num_envs

    def close() -> None:
        for console in consoles:
            console.stop(save=False)

    return Subject(step, close, num_envs)


def bare_loop(stock: Any, num_envs: int, seed: int) -> Callable[[], int]:
    """Steps every environment, an MjData, once: ``mj_step``, and ``mj_forward`` where stock calls it.

    stock: a MujocoEnv after its reset. On the clock: copying the inputs drawn beforehand, the simulation,
    and restoring the first state every 500 steps, or as often as stock ends episodes, because a robot that
    has fallen takes longer to simulate.
    """
    from mujoco import MjData, mj_forward, mj_getState, mj_setState, mj_stateSize, mj_step, mjtState

    model, frame_skip, kind = stock.model, stock.frame_skip, mjtState.mjSTATE_INTEGRATION
    state = np.empty(mj_stateSize(model, kind))
    mj_getState(model, stock.data, state, kind)
    datas = [MjData(model) for _ in range(num_envs)]
    rng, rows = np.random.default_rng(seed), itertools.cycle(range(RESEED_STEPS))
    # Meta-World moves the hand through a mocap body and refreshes poses after the substeps.
    moves_hand, lifetime = model.nmocap > 0, RESEED_STEPS
    lanes: list[tuple[Any, ...]]
    inputs: list[Any]
    if moves_hand:
        inputs = [list(zip(*pair, strict=True)) for pair in _metaworld_inputs(stock, rng, num_envs)]
        lanes = [(data, data.mocap_pos[0], data.ctrl) for data in datas]
    else:
        low, high = model.actuator_ctrlrange.T
        inputs = list(rng.uniform(low, high, (RESEED_STEPS, num_envs, model.nu)))
        lanes = [(data, data.ctrl) for data in datas]
        lifetime = _lifetime(stock, [row[0] for row in inputs])

    def step() -> int:
        row = next(rows)
        if row % lifetime == 0:
            for data in datas:
                mj_setState(model, data, state, kind)
        pairs = zip(lanes, inputs[row], strict=True)
        if moves_hand:
            for (data, position, control), (moved, given) in pairs:
                position[...] = moved
                control[...] = given
                mj_step(model, data, frame_skip)
                mj_forward(model, data)
        else:
            for (data, control), given in pairs:
                control[...] = given
                mj_step(model, data, frame_skip)
        return num_envs

    return step


def _lifetime(stock: Any, actions: Sequence[np.ndarray]) -> int:
    """Steps of stock's episodes under these actions on average, at most all of them."""
    ends = 0
    for action in actions:
        if stock.step(action)[2]:
            ends += 1
            stock.reset()
    return len(actions) // max(1, ends)


def _metaworld_inputs(
    stock: Any, rng: np.random.Generator, num_envs: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each step the random walk of the hand that uniform actions make, and the fingers' controls."""
    action = rng.uniform(-1, 1, (RESEED_STEPS, num_envs, 4))
    position = np.tile(stock.data.mocap_pos[0], (num_envs, 1))
    for row in action:
        moved = position + row[:, :3] * stock.action_scale
        position = np.clip(moved, stock.mocap_low, stock.mocap_high)
        yield position, np.stack([row[:, 3], -row[:, 3]], axis=-1)


def _sizes(env: str, ours: Sequence[Parallelism]) -> list[Parallelism]:
    return [Parallelism(2048 if is_cheap(env) else 16, max(each.N for each in ours), 0)]


_NOTE = "bare simulation loops in N processes at once, inputs drawn beforehand, no policy"
METHODS = (Method("physics-limit", physics_limit, _NOTE, role="limit", sizes=_sizes, everywhere=True),)
