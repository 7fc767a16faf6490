"""How well generated actions match the data of the ring-shaped bandit: precision, coverage, radius, angle.

The paper's score is "a modified Jaccard Index, which computes how many actions fall into the offline dataset (the
minimum distance is less than 1e-8)" (appendix D). Continuous samples never fall that close: here the distance is a
stated number, DISTANCE, and the share is also given as a curve over distances.

All points are "n 2", in the environment's units.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

DISTANCE = 0.02
"""An action falls into the data when the nearest data action is closer than this. Of 5,000 new
draws from the data's own law 96% do, against 5,000 data actions; of draws spread evenly over the unit disc, 22%."""
MARGIN = 0.15
"""An action is on the ring when its radius differs from 1 by at most this: three standard deviations of the noise."""
INSIDE = 0.8
"""An action with a smaller radius is inside the ring, where there are no data."""
BINS = 36
"""Angular bins, of 10 degrees each."""
FAIR_SHARE = 0.1
"""A bin is covered when the ring's actions in it are at least this share of (number of actions) / BINS."""
BLOCK = 500
"""Actions compared with all data at once."""

Points = Float[np.ndarray, "n 2"]


class RingScores(NamedTuple):
    """Shares, all between 0 and 1."""

    on_data: float
    """Actions nearer than `distance` to a data action: precision, the paper's score."""
    covered_data: float
    """Data actions nearer than `distance` to an action: coverage of the data's support."""
    on_ring: float
    """Actions with a radius within MARGIN of 1."""
    inside: float
    """Actions with a radius below INSIDE."""
    covered_angles: float
    """Angular bins that the actions on the ring cover."""


def ring_scores(action: Points, data: Float[np.ndarray, "m 2"], distance: float = DISTANCE) -> RingScores:
    """All scores of a set of actions against the data's actions."""
    to_data, to_action = nearest_distances(action, data)
    radius = np.linalg.norm(action, axis=1)
    return RingScores(
        on_data=float(np.mean(to_data < distance)),
        covered_data=float(np.mean(to_action < distance)),
        on_ring=float(np.mean(_on_ring(action))),
        inside=float(np.mean(radius < INSIDE)),
        covered_angles=covered_angles(action),
    )


def share_within(to_data: Float[np.ndarray, " n"], distances: Float[np.ndarray, " k"]) -> Float[np.ndarray, " k"]:
    """The share of actions nearer to the data than each of the distances: the score as a curve over its threshold."""
    return np.mean(to_data[:, None] < distances, axis=0)


def nearest_distances(
    action: Points, data: Float[np.ndarray, "m 2"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " m"]]:
    """From each action to its nearest data action, and from each data action to its nearest action."""
    to_data, to_action = np.empty(len(action)), np.full(len(data), np.inf)
    for first in range(0, len(action), BLOCK):
        block = action[first : first + BLOCK]
        squared = (block[:, :1] - data[:, 0]) ** 2 + (block[:, 1:] - data[:, 1]) ** 2
        to_data[first : first + BLOCK] = squared.min(axis=1)
        to_action = np.minimum(to_action, squared.min(axis=0))
    return np.sqrt(to_data), np.sqrt(to_action)


def covered_angles(action: Points) -> float:
    """The share of the BINS in which the actions on the ring reach FAIR_SHARE of an even distribution."""
    on_ring = action[_on_ring(action)]
    angle = np.arctan2(on_ring[:, 1], on_ring[:, 0])
    count, _ = np.histogram(angle, bins=BINS, range=(-np.pi, np.pi))
    return float(np.mean(count >= np.maximum(FAIR_SHARE * len(action) / BINS, 1)))


def _on_ring(action: Points) -> np.ndarray:
    return np.abs(np.linalg.norm(action, axis=1) - 1.0) <= MARGIN
