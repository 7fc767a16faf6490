"""A dataset in numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from diffcps.data.checks import find_warnings
from diffcps.data.transforms import episode_sums
from diffcps.types import Dataset

AT_BOUND = 0.999
"""An action entry of at least this size (in [-1, 1]) counts as being at the bound."""


def episode_returns(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Undiscounted return (episodes,) float64 and number of stored steps (episodes,) int of each episode.

    Rewards are taken as they stand in `dataset`: load it with reward="none" for returns in the environment's units.
    Where the file has no next observations, the dropped last step of a timed-out episode is missing from both.
    """
    end = np.asarray(dataset.terminal) | np.asarray(dataset.timeout)
    ends = np.append(np.flatnonzero(end[:-1]), len(end) - 1)
    return episode_sums(np.asarray(dataset.reward), end), np.diff(ends, prepend=-1)


def describe(dataset: Dataset) -> dict[str, Any]:
    """Plain numbers, texts and lists (it can be written as JSON) about a dataset loaded with reward="none".

    `return` and `length` are statistics over episodes, with the normalised score of the mean return (None where the
    reference scores are unknown); `end` the shares of episodes that end by terminal and by timeout; `action` lists one
    number per dimension, in [-1, 1], `at_bound` being the share of entries beyond 0.999 in size; `reward` statistics
    over rows; `warnings` the lines of `find_warnings`.
    """
    info = dataset.info
    returns, lengths = episode_returns(dataset)
    reward = np.asarray(dataset.reward, dtype=np.float64)
    action = np.asarray(dataset.action, dtype=np.float64)
    terminal_ends = int(np.asarray(dataset.terminal).sum())
    normalised = None
    if info.reference_min is not None and info.reference_max is not None:
        normalised = float(100.0 * (returns.mean() - info.reference_min) / (info.reference_max - info.reference_min))
    return {
        "source": info.source,
        "sha256": info.sha256,
        "environment": info.environment,
        "transitions": dataset.size,
        "episodes": len(returns),
        "observation_size": dataset.spec.observation_size,
        "action_size": dataset.spec.action_size,
        "return": {**_statistics(returns), "normalised_mean": normalised},
        "length": _statistics(lengths),
        "end": {"terminal": terminal_ends / len(returns), "timeout": 1.0 - terminal_ends / len(returns)},
        "action": {
            "min": action.min(axis=0).tolist(),
            "max": action.max(axis=0).tolist(),
            "mean": action.mean(axis=0).tolist(),
            "std": action.std(axis=0).tolist(),
            "at_bound": (np.abs(action) >= AT_BOUND).mean(axis=0).tolist(),
        },
        "reward": {**_statistics(reward), "zero": float((reward == 0).mean())},
        "warnings": find_warnings(dataset),
    }


def _statistics(value: np.ndarray) -> dict[str, float]:
    quarter, median, three_quarters = np.quantile(value, [0.25, 0.5, 0.75]).tolist()
    return {
        "mean": float(value.mean()),
        "std": float(value.std()),
        "min": float(value.min()),
        "q25": quarter,
        "median": median,
        "q75": three_quarters,
        "max": float(value.max()),
    }
