"""The simulation alone: what a process could reach if everything else were free."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from bench.methods.base import (
    RESEED_STEPS,
    Request,
    Subject,
    UnsupportedError,
    draw_actions,
    make_stock,
    stock_name,
)

_FRAMES, _START_FRAMES = 4, 120
_BUTTONS = ("a", "b", "up", "down", "left", "right", "start", "select")


def physics_limit(request: Request) -> Subject:
    """What a process could reach if everything but the simulation were free."""
    import gymnasium
    from gymnasium.envs.mujoco import MujocoEnv

    from fastcollect.envs.gym_vector import action_spec

    if request.env.startswith("gameboy:"):
        return emulators(request)
    spec = gymnasium.registry.get(stock_name(request.env))
    if spec is not None and spec.vector_entry_point is not None:
        vector = gymnasium.make_vec(
            spec.id, num_envs=request.n, vectorization_mode=gymnasium.VectorizeMode.VECTOR_ENTRY_POINT
        )
        vector.reset(seed=request.index)
        actions = draw_actions(action_spec(vector.single_action_space), request.n)

        def step() -> int:
            vector.step(next(actions))
            return request.n

        return Subject(step, vector.close, request.n)
    stock = make_stock(request.env)
    stock.reset(seed=request.index)
    if not isinstance(stock.unwrapped, MujocoEnv):
        raise UnsupportedError(
            f"physics-limit exists for Meta-World, gymnasium's MuJoCo environments, those with a "
            f"vector_entry_point (CartPole-v1) and Game Boys, not for {request.env}"
        )
    loop = BareLoop(stock.unwrapped, request.n, request.index)
    return Subject(loop.step, stock.close, request.n)


def emulators(request: Request) -> Subject:
    """PyBoy alone: one console for each environment, a button drawn beforehand held for each four frames."""
    from pyboy import PyBoy

    path = request.env.partition(":")[2]
    consoles = [PyBoy(path, window="null", sound_emulated=False) for _ in range(request.n)]
    for console in consoles:
        console.set_emulation_speed(0)
        console.tick(_START_FRAMES, True, False)
    drawn = np.random.default_rng(request.index).choice(_BUTTONS, (RESEED_STEPS, request.n)).tolist()
    rows = itertools.cycle(drawn)

    def step() -> int:
        for console, button in zip(consoles, next(rows), strict=True):
            console.button(button, _FRAMES)
            console.tick(_FRAMES, True, False)
        return request.n

    def close() -> None:
        for console in consoles:
            console.stop(save=False)

    return Subject(step, close, request.n)


class BareLoop:
    """``mj_step`` (and ``mj_forward``, where stock calls it) over one MjData for each environment.

    stock: a MujocoEnv after its reset. On the clock: copying the inputs drawn beforehand, the simulation,
    and restoring the first state every 500 steps.
    """

    def __init__(self, stock: Any, num_envs: int, seed: int) -> None:
        import mujoco

        self._model = model = stock.model
        self._frame_skip = stock.frame_skip
        self._state = np.empty(mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_INTEGRATION))
        mujoco.mj_getState(model, stock.data, self._state, mujoco.mjtState.mjSTATE_INTEGRATION)
        datas = [mujoco.MjData(model) for _ in range(num_envs)]
        rng = np.random.default_rng(seed)
        # Meta-World moves the hand through a mocap body and refreshes poses after the substeps.
        self._forward = mujoco.mj_forward if model.nmocap else None
        if model.nmocap:
            mocap, control = _metaworld_inputs(stock, rng, num_envs)
            self._inputs = [list(zip(*pair, strict=True)) for pair in zip(mocap, control, strict=True)]
            self._lanes = [(data, data.mocap_pos[0], data.ctrl) for data in datas]
        else:
            low, high = model.actuator_ctrlrange.T
            self._inputs = list(rng.uniform(low, high, (RESEED_STEPS, num_envs, model.nu)))
            self._lanes = [(data, data.ctrl) for data in datas]
        self._steps = 0

    def step(self) -> int:
        """Step every environment once."""
        import mujoco

        row = self._steps % RESEED_STEPS
        if row == 0:
            for data, *_ in self._lanes:
                mujoco.mj_setState(self._model, data, self._state, mujoco.mjtState.mjSTATE_INTEGRATION)
        self._steps += 1
        model, frame_skip, step, forward = self._model, self._frame_skip, mujoco.mj_step, self._forward
        if forward is None:
            for (data, ctrl), control in zip(self._lanes, self._inputs[row], strict=True):
                ctrl[...] = control
                step(model, data, frame_skip)
        else:
            for (data, pos, ctrl), (mocap, control) in zip(self._lanes, self._inputs[row], strict=True):
                pos[...] = mocap
                ctrl[...] = control
                step(model, data, frame_skip)
                forward(model, data)
        return len(self._lanes)


def _metaworld_inputs(stock: Any, rng: np.random.Generator, num_envs: int) -> tuple[np.ndarray, np.ndarray]:
    """The random walk of the hand that uniform actions make, and the fingers' controls."""
    action = rng.uniform(-1, 1, (RESEED_STEPS, num_envs, 4))
    mocap = np.empty((RESEED_STEPS, num_envs, 3))
    position = np.tile(stock.data.mocap_pos[0], (num_envs, 1))
    for row in range(RESEED_STEPS):
        moved = position + action[row, :, :3] * stock.action_scale
        mocap[row] = position = np.clip(moved, stock.mocap_low, stock.mocap_high)
    return mocap, np.stack([action[..., 3], -action[..., 3]], axis=-1)
