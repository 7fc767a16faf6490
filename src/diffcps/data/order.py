"""Whether the rows of a source follow one another in time, judged from the observations."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from diffcps.readers.rows import PIECE_ROWS

LEAST_ROWS = 100
"""Below so many rows nothing is said of their order where there are no next observations: chance would speak."""
SAMPLE = 2000
"""Rows that are looked at."""
LARGEST_STRIDE = 256
"""Side by side are at most so many environments."""
FOLLOWS = 0.9
"""A row follows another where it is nearer than this share of the distance between any two. Steps of trajectories are
mostly below a half, chance stays within some hundredths of 1."""


class Steps(NamedTuple):
    """How observations change along the rows, in units of each column's standard deviation."""

    deviation: np.ndarray
    """(obs,), float64."""

    def chained(self, observation: np.ndarray, following: np.ndarray) -> np.ndarray:
        """Whether following[i] is observation[i + 1], up to rounding: (n, obs), (n, obs) -> (n,) bool.

        The last row has no follower and counts as chained. NaN chains to nothing.
        """
        result = np.ones(len(observation), bool)
        for start in range(0, len(observation) - 1, PIECE_ROWS):
            stop = min(start + PIECE_ROWS, len(observation) - 1)
            follower = observation[start + 1 : stop + 1]
            allowed = 1e-5 * self.deviation + 1e-6 * np.abs(follower)
            result[start:stop] = (np.abs(following[start:stop] - follower) <= allowed).all(axis=1)
        return result

    def length(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """Root mean square of each row's change: (n, obs), (n, obs) -> (n,) float64. Constant columns are left out."""
        moving = self.deviation > 0
        result = np.zeros(len(before))
        if moving.any():
            for start in range(0, len(before), PIECE_ROWS):
                piece = slice(start, start + PIECE_ROWS)
                change = (after[piece][:, moving].astype(np.float64) - before[piece][:, moving]) / self.deviation[
                    moving
                ]
                result[piece] = np.sqrt((change**2).mean(axis=1))
        return result


def environments_side_by_side(observation: np.ndarray, following: np.ndarray) -> int | None:
    """How many environments' rows lie side by side, from next observations that are rows further down; None: no such
    number. (n, obs), (n, obs)."""
    places = {row.tobytes(): index for index, row in reversed(list(enumerate(observation[: SAMPLE + LARGEST_STRIDE])))}
    strides = [places[row.tobytes()] - index for index, row in enumerate(following[:SAMPLE]) if row.tobytes() in places]
    forward = [stride for stride in strides if stride > 1]
    if 2 * len(forward) < min(SAMPLE, len(observation)):
        return None
    stride = int(np.bincount(forward).argmax())
    return stride if np.mean(np.equal(forward, stride)) > 0.8 else None


def stride_of_smooth_rows(observation: np.ndarray, steps: Steps) -> tuple[int | None, bool]:
    """The distance at which rows look like one step of one trajectory, and whether rows look like following each other.

    The distance is above 1 where rows of several environments lie side by side, None where nothing but 1 stands out.
    Rows do not follow each other where a row is as far from the next as from any other. (n, obs) -> stride, bool.
    """
    rows = len(observation)
    if rows < LEAST_ROWS:
        return None, True
    random = np.random.default_rng(0)
    largest = min(LARGEST_STRIDE, rows // 4)
    start = np.unique(random.integers(rows - largest, size=SAMPLE))
    here = observation[start]
    distance = np.array([steps.length(here, observation[start + stride]).mean() for stride in range(1, largest + 1)])
    anywhere = steps.length(here, observation[random.integers(rows, size=len(start))]).mean()
    best = int(distance.argmin()) + 1
    if best > 1 and distance[best - 1] < 0.5 * distance[0]:
        smallest = np.flatnonzero(distance < 1.2 * distance[best - 1])[0] + 1  # not a multiple of it
        return int(smallest), False
    return None, bool(distance[0] < FOLLOWS * anywhere)
