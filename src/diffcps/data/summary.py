"""A dataset in numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diffcps.data.suspicions import find_warnings
from diffcps.data.transforms import episode_sums
from diffcps.tasks.references import normalised_score
from diffcps.types import Account, Dataset, UserError

AT_BOUND = 0.999
"""An action entry of at least this size (in [-1, 1]) counts as being at the bound."""


@dataclass(frozen=True)
class Statistics:
    """Of a column of numbers. `std` divides by their count."""

    mean: float
    std: float
    min: float
    q25: float
    """First quartile."""
    median: float
    q75: float
    max: float


@dataclass(frozen=True)
class ActionStatistics:
    """Of one dimension of the actions, in [-1, 1]."""

    mean: float
    std: float
    min: float
    max: float
    at_bound: float
    """Share of entries of `AT_BOUND` or more in size."""


@dataclass(frozen=True)
class DatasetSummary:
    """What `describe` says of a dataset."""

    source: str
    sha256: str
    environment: str | None
    transitions: int
    episodes: int
    observation_size: int
    action_size: int
    returns: Statistics
    """Of the undiscounted returns of episodes, in the environment's units."""
    normalised_mean: float | None
    """Normalised score of the mean return; None where the reference scores are unknown."""
    lengths: Statistics
    """Of episodes, in stored steps."""
    terminal_share: float
    """Share of episodes that end by terminal; the others end by timeout."""
    actions: tuple[ActionStatistics, ...]
    """One for each dimension."""
    rewards: Statistics
    """Over rows."""
    zero_reward_share: float
    warnings: tuple[str, ...]
    """What is suspicious, and what to do about it."""
    account: Account
    """What became of the rows and fields of the source."""


def episode_returns(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Undiscounted return (episodes,) float64 and number of stored steps (episodes,) int of each episode.

    Rewards are taken as they stand in `dataset`: load it with reward="none" for returns in the environment's units.
    Where the file has no next observations, the dropped last step of a timed-out episode is missing from both.
    """
    end = np.asarray(dataset.terminal) | np.asarray(dataset.timeout)
    return episode_sums(np.asarray(dataset.reward), end), episode_sums(np.ones(len(end)), end).astype(int)


def describe(dataset: Dataset) -> DatasetSummary:
    """A dataset in numbers. Raises `UserError` where its rewards were transformed: returns would mean nothing."""
    info = dataset.info
    if info.reading.reward != "none" or info.reading.reward_scale != 1:
        raise UserError(
            f"{info.source}: its rewards were transformed ({info.reading.reward}, times {info.reading.reward_scale:g}) "
            'when it was loaded; load it with reward="none" for returns in the units of the environment'
        )
    returns, lengths = episode_returns(dataset)
    reward = np.asarray(dataset.reward, dtype=np.float64)
    terminal_ends = int(np.asarray(dataset.terminal).sum())
    normalised = None
    if info.reference_min is not None and info.reference_max is not None:
        normalised = float(normalised_score(returns.mean(), (info.reference_min, info.reference_max)))
    return DatasetSummary(
        source=info.source,
        sha256=info.sha256,
        environment=None if info.environment is None else str(info.environment),
        transitions=dataset.size,
        episodes=len(returns),
        observation_size=dataset.spec.observation_size,
        action_size=dataset.spec.action_size,
        returns=_statistics(returns),
        normalised_mean=normalised,
        lengths=_statistics(lengths),
        terminal_share=terminal_ends / len(returns),
        actions=_action_statistics(np.asarray(dataset.action, dtype=np.float64)),
        rewards=_statistics(reward),
        zero_reward_share=float((reward == 0).mean()),
        warnings=info.account.warnings or tuple(find_warnings(dataset)),
        account=info.account,
    )


def _statistics(value: np.ndarray) -> Statistics:
    quarter, median, three_quarters = np.quantile(value, [0.25, 0.5, 0.75]).tolist()
    return Statistics(
        mean=float(value.mean()),
        std=float(value.std()),
        min=float(value.min()),
        q25=quarter,
        median=median,
        q75=three_quarters,
        max=float(value.max()),
    )


def _action_statistics(action: np.ndarray) -> tuple[ActionStatistics, ...]:
    at_bound = (np.abs(action) >= AT_BOUND).mean(axis=0)
    columns = (action.mean(axis=0), action.std(axis=0), action.min(axis=0), action.max(axis=0), at_bound)
    return tuple(ActionStatistics(*numbers) for numbers in zip(*(column.tolist() for column in columns), strict=True))
