"""Crafter's worlds as ``crafter.worldgen`` makes them, bit for bit, a whole map at a time.

Where a field lies among the lattice points of the noise, and with which weight each of them counts, is
the same in all worlds of one size. This is noted once, so that a new world needs only the lattice points'
gradients. What is drawn at random depends on the draws before, and is drawn field by field.
"""

import functools
import inspect
import operator
import types
from array import array
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from crafter import constants, engine, objects
from opensimplex import OpenSimplex
from opensimplex.constants import GRADIENTS3, NORM_CONSTANT3
from opensimplex.internals import _noise3

_NOISES = {
    # z, the size of the noise's features, and what x and y are divided by before
    "start": (8, 3, 1, 1),
    "water": (3, 15, 1, 1),
    "ripple": (3, 5, 1, 1),
    "mountain": (0, 15, 1, 1),
    "ridge": (0, 5, 1, 1),
    "cave": (6, 7, 1, 1),
    "across": (7, 3, 0.5, 5),
    "along": (7, 3, 5, 0.5),
    "coal": (1, 8, 1, 1),
    "iron": (2, 6, 1, 1),
    "lava": (6, 5, 1, 1),
    "sand": (4, 9, 1, 1),
    "tree": (5, 7, 1, 1),
}
_STRIP = 64 * 64
"""Fields that are looked at together: their places take 15 MB."""


class Places(NamedTuple):
    """What the noise at n places is made of: c contributions of l lattice points, in the order of adding up.

    lattice: (3, l) int64, coordinates modulo 256, with which the noise repeats. point, place: (c,) int64, the
    lattice point of each contribution and the place to which it counts. weight: (c,) float64. offset: (3, c)
    float64, the way from the lattice point to the place.
    """

    lattice: np.ndarray
    point: np.ndarray
    place: np.ndarray
    weight: np.ndarray
    offset: np.ndarray
    num_places: int


def with_globals(function: Callable[..., Any], **names: Any) -> Callable[..., Any]:
    """The same code with other meanings of some global names; the original keeps its own."""
    return types.FunctionType(
        function.__code__, {**function.__globals__, **names}, function.__name__, function.__defaults__
    )


def note_places(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> Places:
    """What the noise at some places is made of, whatever its seed; x, y, z: (n,) float64.

    The library's own function tells, run with a note taken in place of each contribution. This takes as long
    as the library takes for one world.
    """
    notes, counts = array("d"), [0]

    def contribute(perm: None, gradients: None, *note: float) -> float:
        notes.extend(note)  # the lattice point and the way from it
        return 0.0

    visit = with_globals(inspect.unwrap(_noise3), _extrapolate3=contribute)
    for place in zip(x.tolist(), y.tolist(), z.tolist(), strict=True):
        visit(*place, None, None)
        counts.append(len(notes) // 6)
    columns = np.frombuffer(notes).reshape(-1, 6).T.copy()
    offset = columns[3:]
    weight = 2 - offset[0] * offset[0] - offset[1] * offset[1] - offset[2] * offset[2]
    weight *= weight
    weight *= weight
    i, j, k = columns[:3].astype(np.int64) & 0xFF
    keys, point = np.unique(i << 16 | j << 8 | k, return_inverse=True)
    lattice = np.stack([keys >> 16, keys >> 8 & 0xFF, keys & 0xFF])
    return Places(lattice, point, np.repeat(np.arange(len(x)), np.diff(counts)), weight, offset, len(x))


def noise(simplex: OpenSimplex, places: Places) -> np.ndarray:
    """``simplex.noise3`` at all places: (n,) float64, bit for bit."""
    perm = simplex._perm
    i, j, k = places.lattice
    index = simplex._perm_grad_index3[(perm[(perm[i] + j) & 0xFF] + k) & 0xFF]
    gradients = GRADIENTS3.astype(np.float64)
    x, y, z = (gradients[index + axis][places.point] * way for axis, way in enumerate(places.offset))
    x += y
    x += z
    x *= places.weight
    # ``bincount`` adds one after the other in the order given, as the library does.
    return np.bincount(places.place, x, places.num_places) / NORM_CONSTANT3


@functools.lru_cache(16)
def _strip(first: int, last: int, height: int) -> Places:
    """The fields of some columns, x-major, for one of the noises after the other.

    Larger worlds than 16 strips are noted again for each world, which takes longer but no more memory.
    """
    x, y = np.mgrid[first:last, 0:height]
    scaled = ((x / across / size, y / down / size, z) for z, size, across, down in _NOISES.values())
    return note_places(*np.stack([np.broadcast_arrays(*axes) for axes in scaled], axis=1).reshape(3, -1))


def _noises(simplex: OpenSimplex, area: tuple[int, int]) -> dict[str, np.ndarray]:
    """Each of the noises, (width, height) float64."""
    width, height = area
    columns = max(_STRIP // height, 1)
    strips = [
        noise(simplex, _strip(first, min(first + columns, width), height)).reshape(len(_NOISES), -1, height)
        for first in range(0, width, columns)
    ]
    return dict(zip(_NOISES, np.concatenate(strips, axis=1), strict=True))


def generate_world(world: engine.World, player: objects.Player) -> None:
    """Fill an empty world around its player: ``crafter.worldgen.generate_world``, random state included."""
    simplex = OpenSimplex(seed=world.random.randint(0, 2**31 - 1))
    x, y = np.ogrid[: world.area[0], : world.area[1]]
    distance = np.sqrt((x - player.pos[0]) ** 2 + (y - player.pos[1]) ** 2)
    tunnels = _set_materials(world, distance, _noises(simplex, world.area))
    _add_objects(world, player, distance, tunnels)


def _set_materials(world: engine.World, distance: np.ndarray, noises: dict[str, np.ndarray]) -> np.ndarray:
    """Lay the ground, adding up in stock's order; where the tunnels are, (width, height) bool."""
    # NumPy's exponential of an array is bit for bit that of its numbers as long as they lie side by side.
    start = 1 / (1 + np.exp(-(4 - distance + 2 * noises["start"])))
    water = noises["water"] + 0.15 * noises["ripple"] + 0.1 - 2 * start
    mountain = (noises["mountain"] + 0.3 * noises["ridge"]) / 1.3 - (4 * start + 0.3 * water)
    rock = ~(start > 0.5) & (mountain > 0.15)
    plain = ~(start > 0.5) & ~rock
    cave = (noises["cave"] > 0.15) & (mountain > 0.3)
    tunnels = rock & ~cave & ((noises["across"] > 0.4) | (noises["along"] > 0.4))
    solid = rock & ~cave & ~tunnels
    beach = plain & (water > 0.25) & (water <= 0.35) & (noises["sand"] > -0.2)
    sea = plain & ~beach & (water > 0.3)

    ids, ground = world._mat_ids, world._mat_map
    ground[:] = ids["grass"]
    ground[rock] = ids["path"]
    ground[solid] = ids["stone"]
    ground[solid & (mountain > 0.3) & (noises["lava"] > 0.35)] = ids["lava"]
    ground[beach] = ids["sand"]
    ground[sea] = ids["water"]
    chances = {
        "coal": (solid & (noises["coal"] > 0), 0.85),
        "iron": (solid & (noises["iron"] > 0.4), 0.75),
        "diamond": (solid & (mountain > 0.18), 0.994),
        "tree": (plain & ~beach & ~sea & (noises["tree"] > 0), 0.8),
    }
    for field, name in _win(world.random, chances):
        ground[field] = ids[name]
    return tunnels


def _add_objects(
    world: engine.World, player: objects.Player, distance: np.ndarray, tunnels: np.ndarray
) -> None:
    ground = world._mat_map
    walkable = np.isin(ground, [world._mat_ids[name] for name in constants.walkable])
    chances = {
        "cow": ((ground == world._mat_ids["grass"]) & (distance > 3), 0.985),
        "zombie": (walkable & (distance > 10), 0.993),
        "skeleton": ((ground == world._mat_ids["path"]) & tunnels, 0.95),
    }
    kinds = {"zombie": objects.Zombie, "skeleton": objects.Skeleton}
    for field, name in _win(world.random, chances):
        world.add(kinds[name](world, field, player) if name in kinds else objects.Cow(world, field))


def _win(
    random: np.random.RandomState, chances: dict[str, tuple[np.ndarray, float]]
) -> list[tuple[tuple[int, int], str]]:
    """Draw as stock: the fields where a chance is won, and which, the fields in x-major order.

    chances: by name the fields that have it, (width, height) bool, and what a number in [0, 1) must exceed.
    At each field they are drawn for in this order until one is won.
    """
    names = list(chances)
    which = np.asarray(sum(has.astype(np.intp) << i for i, (has, _) in enumerate(chances.values())))
    limits = [
        [(chances[name][1], name) for i, name in enumerate(names) if code >> i & 1]
        for code in range(1 << len(names))
    ]
    fields = np.argwhere(which)
    won = []
    # Numbers drawn at once are those drawn one by one, which takes most of the time; too many are drawn here.
    state, most = random.get_state(), sum(int(has.sum()) for has, _ in chances.values())
    draws = iter(random.random_sample(most).tolist())
    for (x, y), code in zip(fields.tolist(), which[which > 0].tolist(), strict=True):
        for limit, name in limits[code]:
            if next(draws) > limit:
                won.append(((x, y), name))
                break
    random.set_state(state)
    random.random_sample(most - operator.length_hint(draws))
    return won
