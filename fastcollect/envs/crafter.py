"""Crafter (Hafner 2021, "Benchmarking the Spectrum of Agent Capabilities"); needs ``fastcollect[crafter]``.

Row i plays as ``crafter.Env(seed=seeds[i])`` does, bit for bit, but for one thing: stock Crafter removes
creatures by their position in a set of objects, which is that of their memory addresses, so that two stock
copies with one seed part sooner or later. Here they are kept in the order in which they came, one of the
orders that stock may have, and an episode is a function of (seed, episode number, actions).

The game is Crafter's own code. What surrounds it computes the same numbers faster: tiles are looked up
instead of drawn one by one, and new worlds are made map by map (``crafter_world``).
"""

import functools
import types
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np

from fastcollect.envs import gym

try:
    import crafter
    from crafter import engine

    from fastcollect.envs.crafter_world import generate_world, with_globals
except ImportError as exc:
    raise ImportError(
        "the Crafter environments need Crafter: pip install crafter (the extra fastcollect[crafter])"
    ) from exc

_OUTSIDE = 127  # grey, what lies beyond the edge of the world


def make(
    seeds: np.ndarray,
    *,
    reward: bool = True,
    area: tuple[int, int] = (64, 64),
    view: int | tuple[int, int] = (9, 9),
    size: int | tuple[int, int] = (64, 64),
    length: int | None = 10_000,
    record_actions: bool = True,
) -> gym.GymEnv:
    """``len(seeds)`` games: observations (height, width, 3) uint8, one of 17 actions.

    seeds: (n,) int64. reward: False gives zeros, as CrafterNoReward-v1. area: the world's fields. view: the
    fields in sight, the inventory's rows included. size: the image's pixels (width, height). length: steps
    after which an episode is truncated, None for none; dying terminates one. record_actions: see
    ``fastcollect.envs.gym.make``. Raises ValueError for numbers that Crafter cannot draw or play.
    """
    area, view, size = (
        _pair(name, value) for name, value in (("area", area), ("view", view), ("size", size))
    )
    rows = -(-len(crafter.constants.items) // view[0])
    if view[1] <= rows or min(size[0] // view[0], size[1] // view[1]) < 2:
        raise ValueError(
            f"view is {view}, size {size}; allowed: more than {rows} rows, and two pixels for every field"
        )
    if length is not None and length < 1:
        raise ValueError(f"length is {length!r}; allowed: at least 1 step, or None")
    arguments = {"reward": reward, "area": area, "view": view, "size": size, "length": length}
    env = gym.make(
        seeds, entry_point=Crafter, env_kwargs=arguments, has_success=False, record_actions=record_actions
    )
    env.spec = replace(env.spec, max_episode_steps=length)
    return env


def make_no_reward(seeds: np.ndarray, **kwargs: Any) -> gym.GymEnv:
    """The same game without rewards; arguments as ``make``'s, ``reward`` left out."""
    return make(seeds, reward=False, **kwargs)


def _pair(name: str, value: int | tuple[int, int]) -> tuple[int, int]:
    pair = tuple(value) if isinstance(value, Iterable) else (value, value)
    if len(pair) != 2 or not all(isinstance(number, int) and number > 0 for number in pair):
        raise ValueError(f"{name} is {value!r}; allowed: a positive integer, or two")
    return pair[0], pair[1]


class _Ordered(dict):
    """A set in the order of its additions."""

    add, remove = dict.setdefault, dict.__delitem__


class _World(engine.World):
    def reset(self, seed: int | None = None) -> None:
        super().reset(seed)
        self._chunks: defaultdict[Any, _Ordered] = defaultdict(_Ordered)


class _LocalView(engine.LocalView):
    """What the player sees, from finished tiles; only the night's noise depends on more than the tile."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._tiles: dict[tuple[int, str | None], int] = {}
        self._atlas = np.empty((0, 0, 0, 3), np.uint8)

    def __call__(self, player: Any, unit: np.ndarray) -> np.ndarray:
        """(width, height, 3): uint8 by day, by night float64 as stock's."""
        cells = self._cells(player, unit)
        if self._world.daylight < 0.5:
            canvas = self._light(self._assemble(self._atlas, cells), self._world.daylight)
            return self._sleep(canvas) if player.sleeping else canvas
        # By day a pixel's light depends on its colour alone, so that each kind of tile is lit once.
        kinds, which = np.unique(cells, return_inverse=True)
        tiles = self._atlas[kinds].reshape(-1, unit[1], 3)
        tiles = self._light(tiles, self._world.daylight)
        if player.sleeping:
            tiles = self._sleep(tiles)
        return self._assemble(tiles.astype(np.uint8).reshape(-1, *unit, 3), which.reshape(cells.shape))

    def _cells(self, player: Any, unit: np.ndarray) -> np.ndarray:
        """Which tile of the atlas each field in sight shows, (columns, rows)."""
        world, (columns, rows) = self._world, self._grid.tolist()
        (x, y), (left, top) = player.pos.tolist(), self._offset.tolist()
        x, y = x - left, y - top
        # A view over the edge begins inside, at a later cell.
        sight = slice(max(x, 0), x + columns), slice(max(y, 0), y + rows)
        cells = np.zeros((columns, rows), np.intp)
        fields = zip(world._mat_map[sight].tolist(), world._obj_map[sight].tolist(), strict=True)
        for i, column in enumerate(fields, max(-x, 0)):
            for j, (material, index) in enumerate(zip(*column, strict=True), max(-y, 0)):
                key = material, world._objects[index].texture if index else None
                cell = self._tiles.get(key)
                cells[i, j] = self._draw(key, unit) if cell is None else cell
        return cells

    def _draw(self, key: tuple[int, str | None], unit: np.ndarray) -> int:
        """Add a tile to the atlas, whose first is empty: a material, and what stands on it."""
        material, standing = key
        tile = np.full((1, *unit, 3), _OUTSIDE, np.uint8)
        if not len(self._atlas):
            self._atlas = tile.copy()
        engine._draw(tile[0], (0, 0), self._textures.get(self._world._mat_names[material], unit))
        if standing is not None:
            engine._draw_alpha(tile[0], (0, 0), self._textures.get(standing, unit))
        self._tiles[key] = len(self._atlas)
        self._atlas = np.concatenate([self._atlas, tile])
        return self._tiles[key]

    def _assemble(self, tiles: np.ndarray, cells: np.ndarray) -> np.ndarray:
        (columns, rows), (_, width, height, _) = cells.shape, tiles.shape
        picture = tiles[cells].transpose(0, 2, 1, 3, 4)
        return picture.reshape(columns * width, rows * height, 3)

    # Stock's own cache holds ten views of a process, fewer than a worker has copies.
    _vignette = staticmethod(functools.cache(functools.partial(engine.LocalView._vignette.__wrapped__, None)))


class _ItemView(engine.ItemView):
    """The inventory, drawn when it has changed."""

    _shown: tuple[int, ...] = ()
    _canvas: np.ndarray

    def __call__(self, inventory: dict[str, int], unit: np.ndarray) -> np.ndarray:
        amounts = tuple(inventory.values())
        if amounts != self._shown:
            self._shown, self._canvas = amounts, super().__call__(inventory, unit)
        return self._canvas


def _distance(player: Any, target: Any) -> int:
    """``Player.distance`` for the many objects that it is asked about at every step."""
    (x, y), (u, v) = player.pos.tolist(), getattr(target, "pos", target).tolist()
    return abs(u - x) + abs(v - y)


# Crafter's own constructor and reset over the classes of this module.
_PARTS = types.SimpleNamespace(
    World=_World,
    Textures=functools.cache(engine.Textures),
    LocalView=_LocalView,
    ItemView=_ItemView,
    SemanticView=lambda *_: lambda: None,  # of the info, which nobody reads
)
_construct = with_globals(crafter.Env.__init__, engine=_PARTS)
_reset = with_globals(crafter.Env.reset, worldgen=types.SimpleNamespace(generate_world=generate_world))


class Crafter(crafter.Env, gymnasium.Env):
    """One game with gymnasium's interface; arguments as ``make``'s. Its infos are empty."""

    observation_space = gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8)
    action_space = gymnasium.spaces.Discrete(len(crafter.constants.actions))
    _view: Any
    _np_random: Any

    def __init__(self, **kwargs: Any) -> None:
        _construct(self, seed=0, **kwargs)
        # What an episode's beginning depends on, in the place where gymnasium's environments keep it.
        self._np_random = types.SimpleNamespace(bit_generator=self)
        self._view = tuple(self._view.tolist())  # ``step`` takes its maximum for every object
        width, height = self._size.tolist()
        self.observation_space = gymnasium.spaces.Box(0, 255, (height, width, 3), np.uint8)

    @property
    def state(self) -> int:
        """The state of ``np_random.bit_generator``: how many worlds were made."""
        return self._episode

    @state.setter
    def state(self, episode: int) -> None:
        self._episode = episode

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """A new world, the next of this seed or the first of a new one; see gymnasium.Env.reset."""
        if seed is not None:
            self._seed, self._episode = seed, 0
        observation = _reset(self)
        self._player.distance = functools.partial(_distance, self._player)
        return observation, {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """See gymnasium.Env.step. Raises ValueError for an action that does not exist."""
        if not 0 <= action < self.action_space.n:  # or a list of names would count from its end
            raise ValueError(f"action is {action}; allowed: 0 to {self.action_space.n - 1}")
        observation, reward, _, info = crafter.Env.step(self, action)
        late = bool(self._length and self._step >= self._length)
        return observation, reward, info["discount"] == 0, late, {}
