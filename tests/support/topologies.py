"""Evolving topologies, read literally."""

import math

import numpy as np


def strongest(score, among, count):
    """The ``count`` indices of the highest scores among these, lower ones first; nan is the lowest score."""
    value = np.where(np.isnan(score), -np.inf, score).ravel()
    return sorted(among, key=lambda i: (-value[i], i))[:count]


def share(drop_share, tick, end):
    """Of the kept weights, how much moves at a tick: half a cosine."""
    return drop_share / 2 * (1 + math.cos(math.pi * tick / end))


def moved(kept, weight, score, moving):
    """(indices that stay, indices that grow), from a mask, after so many weights moved to the best scores."""
    present = np.flatnonzero(kept).tolist()
    stays = strongest(np.abs(weight), present, len(present) - moving)
    return stays, strongest(score, set(range(kept.size)) - set(stays), moving)
