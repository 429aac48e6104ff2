"""Masks that change while a network learns: what they are at the start, and the methods that evolve them.

``initial`` is NumPy, on the host and once. A ``Topology`` is JAX, inside the compiled update: at most of its
ticks a comparison, and every so often a new mask of exact counts.
"""

import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from engine.sparse import masks, pruning

DISTRIBUTIONS = ("erk", "uniform", "global")


def initial(parameters: Mapping[str, Any], sparsity: float, distribution: str) -> masks.Mask:
    """The mask that a sparse network begins with: the largest weights of each kernel; ties to lower indices.

    sparsity: of all n prunable weights together. distribution: of the kept weights over the kernels. "erk"
        gives a kernel the Erdős-Rényi density eps (in + out) / (in out); while the largest is above 1, that
        kernel is dense and eps solved again (Mocanu et al. 2018; Evci et al. 2020, section 3). "uniform"
        gives every kernel the same. With both, a kernel of size m and sparsity s keeps m - int(s m). "global"
        keeps the largest of all kernels together.
    Raises ValueError for a sparsity outside [0, 1), for another distribution, and naming every kernel of
        which nothing would be left.
    """
    pruning.check_sparsity("sparsity", sparsity)
    if distribution not in DISTRIBUTIONS:
        raise ValueError(f"distribution is {distribution!r}, must be one of {', '.join(DISTRIBUTIONS)}")
    scores = pruning.scores("magnitude", parameters)
    if distribution == "global":
        mask = pruning.prune({}, scores, sparsity, "global", min_kept=0)
    else:
        sizes = np.array([score.size for score in scores.values()])
        kept = (1 - sparsity) * sizes
        if distribution == "erk":
            sums = np.array([sum(score.shape) for score in scores.values()], np.float64)
            kept = pruning.proportional(sums, np.zeros_like(kept), sizes, kept.sum())
        # A hair more, for what is an integer but for its rounding.
        ones = sizes - (sizes - kept + 1e-6).astype(int)
        mask = {
            name: pruning.best(score, np.ones(score.shape, bool), count)
            for (name, score), count in zip(scores.items(), ones, strict=True)
        }
    if empty := [name for name, count in masks.counts(mask)[0].items() if not count]:
        raise ValueError(f"sparsity is {sparsity}, which leaves nothing of {', '.join(empty)}")
    return mask


class Layer(NamedTuple):
    """One kernel at a tick that is due; arrays of its shape."""

    name: str
    kept: jax.Array
    """bool."""
    weight: jax.Array
    gradient: jax.Array
    """Dense: of pruned weights, too."""
    key: jax.Array
    """Random numbers of its own."""


class Topology(struct.PyTreeNode):
    """How the mask of one network evolves.

    Each of the network's own updates is a tick. Those that are ``due`` change the mask, in place of a step of
    the optimizer. method: one of TOPOLOGIES. interval, begin, end: int32, ticks; due is every interval after
    begin and before end. drop_share: float32, the share of the kept weights that moves at the start.
    updates: int32, ticks so far. final: kernel name -> int32, how many of its weights a method that only
    prunes ends with, which is due at the end as well, to get there.
    """

    method: str = struct.field(pytree_node=False)
    interval: jax.Array
    begin: jax.Array
    end: jax.Array
    drop_share: jax.Array
    updates: jax.Array
    final: dict[str, jax.Array]

    @classmethod
    def make(
        cls,
        method: str,
        *,
        interval: int,
        end: int,
        begin: int = 0,
        drop_share: float = 0.5,
        final: Mapping[str, int] | None = None,
    ) -> "Topology":
        """Before its first tick. Raises ValueError naming every value that cannot be."""
        problems = [] if method in TOPOLOGIES else [f"method is {method!r}, not of {', '.join(TOPOLOGIES)}"]
        if interval < 1:
            problems.append(f"interval is {interval}, must be 1 or more")
        if not 0 <= begin < end:
            problems.append(f"begin is {begin} and end {end}, must be 0 <= begin < end")
        if not 0 <= drop_share <= 1:
            problems.append(f"drop_share is {drop_share}, must be in [0, 1]")
        if (method == "gmp") != bool(final):
            problems.append(f"method is {method!r} with {'' if final else 'no '}final counts")
        if problems:
            raise ValueError("; ".join(problems))
        return cls(
            method=method,
            interval=jnp.int32(interval),
            begin=jnp.int32(begin),
            end=jnp.int32(end),
            drop_share=jnp.float32(drop_share),
            updates=jnp.int32(0),
            final={name: jnp.int32(count) for name, count in (final or {}).items()},
        )

    def changes(self, ticks: int) -> int:
        """How many of the first ``ticks`` are due; for leaves on the host."""
        within = max(0, min(ticks, int(self.end) - 1) - int(self.begin)) // int(self.interval)
        return within + (bool(self.final) and ticks >= int(self.end))

    def tick(
        self,
        network: str,
        seed: jax.Array,
        mask: Mapping[str, jax.Array],
        weights: Mapping[str, jax.Array],
        gradient: Mapping[str, jax.Array],
    ) -> tuple["Topology", Mapping[str, jax.Array], jax.Array]:
        """The topology a tick later, the mask that holds from then on, and whether this tick was due.

        network, seed: what random numbers are a function of, together with the tick. weights, gradient: of
        the network; the gradient is that of the minibatch's loss with respect to pruned weights, too. What a
        new mask no longer keeps is still to be zeroed; what it newly keeps is zero already.
        """
        later = self.replace(updates=self.updates + 1)
        since = later.updates - self.begin
        due = (since > 0) & (since % self.interval == 0) & (later.updates < self.end)
        if self.final:
            due |= later.updates == self.end
        kernels = [{name: tree[name] for name in mask} for tree in (mask, weights, gradient)]

        def evolve(mask: dict, weights: dict, gradient: dict) -> dict[str, jax.Array]:
            method = TOPOLOGIES[self.method]
            key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(network.encode()))
            keys = jax.random.split(jax.random.fold_in(key, later.updates), len(mask))
            return {
                name: method(later, Layer(name, mask[name], weights[name], gradient[name], own))
                for name, own in zip(sorted(mask), keys, strict=True)
            }

        # Nothing larger than a mask goes through: what a branch returns is copied when it is not due.
        return later, jax.lax.cond(due, evolve, lambda mask, *_: mask, *kernels), due


def _set(topology: Topology, layer: Layer) -> jax.Array:
    """Growth by chance: sparse evolutionary training (Mocanu et al. 2018)."""
    return _moved(topology, layer, jax.random.uniform(layer.key, layer.kept.shape))


def _rigl(topology: Topology, layer: Layer) -> jax.Array:
    """Growth where the loss would fall fastest (Evci et al. 2020, algorithm 1)."""
    return _moved(topology, layer, jnp.abs(layer.gradient))


def _gmp(topology: Topology, layer: Layer) -> jax.Array:
    """Pruned by magnitude along a cubic curve, and never revived (Zhu and Gupta 2017, equation 1)."""
    left = 1 - (topology.updates - topology.begin) / (topology.end - topology.begin)
    pruned = _whole((layer.kept.size - topology.final[layer.name]) * (1 - left**3))
    return layer.kept & _best(jnp.abs(layer.weight), layer.kept, layer.kept.size - pruned)


TOPOLOGIES: dict[str, Callable[[Topology, Layer], jax.Array]] = {"set": _set, "rigl": _rigl, "gmp": _gmp}
"""Every method, by its name: a kernel's new mask at a tick that is due (``topology.updates``)."""


def _moved(topology: Topology, layer: Layer, scores: jax.Array) -> jax.Array:
    """As many kept as before: the smallest weights dropped, and as many grown by the scores.

    The share that moves falls as a half cosine. What was just dropped may grow, and then never left.
    """
    kept = jnp.count_nonzero(layer.kept)
    share = topology.drop_share / 2 * (1 + jnp.cos(jnp.pi * topology.updates / topology.end))
    moving = _whole(kept * share)
    stays = _best(jnp.abs(layer.weight), layer.kept, kept - moving)
    return stays | _best(scores, ~stays, moving)


def _whole(number: jax.Array) -> jax.Array:
    """int(number) but for rounding: float32 must not make an integer one less."""
    return jnp.floor(number + jnp.minimum(1e-6 * number, 0.5)).astype(jnp.int32)


def _best(scores: jax.Array, candidates: jax.Array, count: jax.Array) -> jax.Array:
    """``pruning.best`` for scores from 0 and a traced count; nan counts as less than all others.

    Found by halving, first among scores and then among the places of equal ones: XLA for CPUs takes ten
    times longer to sort them.
    """
    # The bits of floats from 0 are ordered as the floats are.
    bits = jax.lax.bitcast_convert_type(scores.astype(jnp.float32), jnp.int32)
    ranked = jnp.where(candidates, jnp.where(jnp.isnan(scores), -1, bits), -2).ravel()
    places = jnp.arange(ranked.size)
    least = _last(lambda rank: jnp.count_nonzero(ranked >= rank) >= count, -2, 2**31 - 3)
    above, equal = ranked > least, ranked == least
    left = count - jnp.count_nonzero(above)
    end = _last(lambda place: jnp.count_nonzero(equal & (places < place)) <= left, 0, ranked.size + 1)
    return (above | (equal & (places < end))).reshape(scores.shape)


def _last(holds: Callable[[jax.Array], jax.Array], low: int, high: int) -> jax.Array:
    """The last number for which it holds, from ``low``, where it does, to ``high``, where it does not."""

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = low + (high - low) // 2
        enough = holds(middle)
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    steps = (high - low).bit_length()
    return jax.lax.fori_loop(0, steps, halve, (jnp.int32(low), jnp.int32(high)))[0]
