"""What is legal in a dataset, suspicious, and worth a word to its owner."""

from __future__ import annotations

import numpy as np

from diffcps.data.checks import mean_and_deviation
from diffcps.readers.rows import PIECE_ROWS
from diffcps.types import Dataset

SHORTEST_TIME_LIMIT = 20
"""Terminal episodes that share the greatest length are taken for cut by a time limit from here on."""

SMALLEST_DEVIATION, LARGEST_OBSERVATION = 0.02, 1e3
"""Outside of these, observations are far from what networks are initialised for."""


def find_warnings(dataset: Dataset, absent: tuple[str, ...] = ()) -> list[str]:
    """What is suspicious in the transitions of a source, a line each, with what to do about it.

    `absent` are the fields that the source does not have.
    """
    reward, terminal, timeout = (np.asarray(x) for x in (dataset.reward, dataset.terminal, dataset.timeout))
    end = terminal | timeout
    found = []
    if absent:
        found.append(f"no {'s and no '.join(absent)}s: only methods that clone behaviour can be trained on them")
    if "reward" not in absent and (reward == reward[0]).all():
        kind = "zero" if reward[0] == 0 else f"the same ({reward[0]:g})"
        found.append(f"every reward is {kind}: there is nothing to maximise; clone the behaviour, or store the rewards")

    lengths = np.diff(np.flatnonzero(end), prepend=-1)
    longest = int(lengths.max()) if len(lengths) else 0
    limits = int((terminal[end] & (lengths == longest)).sum())
    if limits > 1 and longest >= SHORTEST_TIME_LIMIT:
        found.append(
            f"{limits} of {int(terminal.sum())} terminal episodes have the greatest length, {longest} steps: terminal "
            "seems to mark the time limit, too, which teaches that the future is worth nothing there; mark these rows "
            "as timeout, and not as terminal"
        )

    if not end[:-1].any() and not terminal[-1] and len(end) > 1:
        found.append(
            f"no episode end is marked: all {len(end)} rows count as one episode; add `timeouts` where it is more than "
            "one"
        )

    mean, deviation = mean_and_deviation(np.asarray(dataset.observation))
    largest = float((np.abs(mean) + deviation).max())
    if not dataset.info.reading.normalise_observation and deviation.any():
        if deviation.max() < SMALLEST_DEVIATION or largest > LARGEST_OBSERVATION:
            found.append(
                f"observations deviate by at most {deviation.max():.2g} and reach {largest:.2g}: networks learn poorly "
                "from numbers far from 1; add --normalise-observation"
            )

    repeated = _count_repeated(np.asarray(dataset.observation), np.asarray(dataset.action))
    if repeated:
        found.append(
            f"{repeated} rows repeat the observation and action of another row: they count as often as they stand "
            "there; remove copies"
        )
    return found


def _count_repeated(observation: np.ndarray, action: np.ndarray) -> int:
    """Rows that are bit for bit an earlier one, told by 64 bits of each."""
    rows = len(observation)
    numbers = np.zeros(rows, np.uint64)
    for start in range(0, rows, PIECE_ROWS):
        piece = slice(start, start + PIECE_ROWS)
        words = np.concatenate([observation[piece], action[piece]], axis=1).view(np.uint32).astype(np.uint64)
        numbers[piece] = _mixed(words + (np.arange(words.shape[1], dtype=np.uint64) << np.uint64(32))).sum(axis=1)
    return rows - len(np.unique(numbers))


def _mixed(words: np.ndarray) -> np.ndarray:
    """Each word's bits spread over all 64. Reference: the finaliser of SplitMix64 (doi:10.1145/2714064.2660195)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
