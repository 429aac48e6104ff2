"""Crafter's worlds as ``crafter.worldgen`` makes them, bit for bit, a whole map at a time.

Where a field lies among the lattice points of the noise, and with which weight each of them counts, is
the same in all worlds of one size. This is noted once, so that a new world needs only the lattice points'
gradients. What is drawn at random depends on the draws before, and is drawn field by field.
"""

from __future__ import annotations

import functools
import operator
from typing import NamedTuple

import numpy as np
from crafter import constants, engine, objects
from opensimplex import OpenSimplex
from opensimplex.constants import GRADIENTS3, NORM_CONSTANT3, SQUISH_CONSTANT3, STRETCH_CONSTANT3

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
    """Which lattice points count at each of n places, in the order in which they are added up."""

    lattice: np.ndarray
    """(3, l) int64: the lattice points' coordinates modulo 256, with which the noise repeats."""
    point: np.ndarray
    """(c,) int64: the lattice point of each contribution."""
    place: np.ndarray
    """(c,) int64: the place to which it counts."""
    weight: np.ndarray
    """(c,) float64."""
    offset: np.ndarray
    """(3, c) float64: the way from the lattice point to the place."""
    num_places: int
    """n."""


def _list_corners() -> dict[int, list[np.ndarray]]:
    """By the code of a region, which lattice points count there, relative to the cell's lowest, in order.

    In codes a point is a bit field of its axes. Codes below 8: near the lowest corner; below 16: near the
    highest; below 24: between, next to two points on the same side; the others next to one on each.
    """
    x, y, z = axes = np.eye(3, dtype=np.int64)
    none, every = x - x, x + y + z
    low, middle, high = [none, x, y, z], [x, y, z, x + y, x + z, y + z], [x + y, x + z, y + z, every]
    regions = {}
    for code in range(1, 7):
        ins = [axis for i, axis in enumerate(axes) if code >> i & 1]
        outs = [axis for i, axis in enumerate(axes) if not code >> i & 1]
        if len(ins) == 1:
            regions[code] = [*low, ins[0] - outs[0], ins[0] - outs[1]]
            regions[8 + code] = [*high, ins[0], 2 * ins[0]]
            regions[16 + code] = [*middle, every, 2 * ins[0]]
        else:
            pair, beyond = every - outs[0], every - 2 * outs[0]
            regions[code] = [*low, pair, beyond]
            regions[8 + code] = [*high, pair + ins[0], pair + ins[1]]
            regions[16 + code] = [*middle, none, beyond]
            for axis in ins:
                regions[24 + 8 * code + int(axis @ (1, 2, 4))] = [*middle, beyond, 2 * axis]
    return regions


_CORNERS = _list_corners()


def _near_corner(
    inside: np.ndarray, own: np.ndarray, points: tuple[int, int, int], join: np.ufunc
) -> np.ndarray:
    """The code in a tetrahedron of the corner itself and three points with the scores ``inside``."""
    x, y, z = inside
    takes_first, takes_second = (x < y) & (z > x), (x >= y) & (z > y)
    first, second = np.where(takes_first, points[2], points[0]), np.where(takes_second, points[2], points[1])
    a, b = np.where(takes_first, z, x), np.where(takes_second, z, y)
    return np.where((own > a) | (own > b), np.where(b > a, second, first), join(first, second))


def _between(inside: np.ndarray) -> np.ndarray:
    """The code in the octahedron between the two tetrahedra."""
    x, y, z = inside
    sums = (x + y, x + z, y + z)
    a, b, c = (np.where(p > 1, p - 1, 1 - p) for p in sums)
    first, second, third = (
        np.where(p > 1, far, near) for p, far, near in zip(sums, (3, 5, 6), (4, 2, 1), strict=True)
    )
    first, second = np.where((a <= b) & (a < c), third, first), np.where((a > b) & (b < c), third, second)
    # Two far points are known by the axis that they share, two near ones by the axis that they lack.
    far, other = (np.isin(point, (3, 5, 6)) for point in (first, second))
    mixed = 24 + 8 * np.where(far, first, second) + np.where(far, second, first)
    return np.where(far != other, mixed, 16 + np.where(far, first & second, first | second))


def note_places(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> Places:
    """What the noise at some places is made of, whatever its seed; x, y, z: (n,) float64."""
    skewed = np.stack([x, y, z]) + (x + y + z) * STRETCH_CONSTANT3
    lowest = np.floor(skewed)
    inside = skewed - lowest
    squish = (lowest[0] + lowest[1] + lowest[2]) * SQUISH_CONSTANT3
    rest = np.stack([x, y, z]) - (lowest + squish)
    total = inside[0] + inside[1] + inside[2]
    regions = np.where(
        total <= 1,
        _near_corner(inside, 1 - total, (1, 2, 4), np.bitwise_or),
        # The highest corner's tetrahedron is the lowest one's with all comparisons turned round.
        np.where(
            total >= 2, 8 + _near_corner(-inside, total - 3, (6, 5, 3), np.bitwise_and), _between(inside)
        ),
    )
    place, points, weights, offset = [], [], [], []
    for region, corners in _CORNERS.items():
        at = np.flatnonzero(regions == region)
        for corner in corners:
            # The library subtracts some twos last. That gives the same bits wherever the point counts.
            way = rest[:, at] - corner[:, None] - corner.sum() * SQUISH_CONSTANT3
            reach = 2 - way[0] * way[0] - way[1] * way[1] - way[2] * way[2]
            counts = reach > 0
            place.append(at[counts])
            weights.append(reach[counts])
            offset.append(way[:, counts])
            points.append(lowest[:, at[counts]].astype(np.int64) + corner[:, None])
    weight = np.concatenate(weights)
    weight *= weight
    weight *= weight
    i, j, k = np.concatenate(points, axis=1) & 0xFF
    keys, point = np.unique(i << 16 | j << 8 | k, return_inverse=True)
    lattice = np.stack([keys >> 16, keys >> 8 & 0xFF, keys & 0xFF])
    return Places(lattice, point, np.concatenate(place), weight, np.concatenate(offset, axis=1), len(x))


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

    Larger worlds than 16 strips are noted again for each world, which takes longer and no more memory.
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
    for field, name in _win(world.random, chances):
        if name == "cow":
            world.add(objects.Cow(world, field))
        else:
            kind = objects.Zombie if name == "zombie" else objects.Skeleton
            world.add(kind(world, field, player))


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
