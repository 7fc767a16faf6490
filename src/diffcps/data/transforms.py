"""Changes made to a dataset on the way in: rewards, observations, actions. All are pure functions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from diffcps.data.checks import mean_and_deviation
from diffcps.readers.rows import PIECE_ROWS
from diffcps.types import Dataset, DatasetInfo, RewardTransform, UserError

MeanAndStd = tuple[np.ndarray, np.ndarray]
"""Of observations: (obs,) float64 each, std infinite where a column is constant."""


def transform_reward(dataset: Dataset, name: RewardTransform, factor: float = 1.0) -> Dataset:
    """The dataset with the rewards changed as `name` says, times `factor`; each transform is the function of that name.

    Raises `UserError` where a transform is undefined on these rewards, the name is unknown, or the factor is not a
    positive number.
    """
    if not 0 < factor < np.inf:
        raise UserError(f"{dataset.info.source}: the reward scale is {factor:g}; it must be above 0")
    reward = np.asarray(dataset.reward)
    try:
        match name:
            case "none":
                changed = reward
            case "corl_antmaze":
                changed = corl_antmaze(reward)
            case "cql_antmaze":
                changed = cql_antmaze(reward)
            case "iql_antmaze":
                changed = iql_antmaze(reward)
            case "iql_locomotion":
                changed = iql_locomotion(reward, np.asarray(dataset.terminal) | np.asarray(dataset.timeout))
            case "min_max":
                changed = min_max(reward)
            case "standardise":
                changed = standardise(reward)
            case _:
                raise UserError(
                    f"unknown reward transform {name!r}; "
                    "take none, corl_antmaze, cql_antmaze, iql_antmaze, iql_locomotion, min_max or standardise"
                )
    except UserError as error:
        raise UserError(f"{dataset.info.source}: {error}") from None
    return replace(dataset, reward=changed if factor == 1 else (changed * factor).astype(np.float32))


def corl_antmaze(reward: np.ndarray) -> np.ndarray:
    """10 r - 5, (n,) -> (n,): rewards of 0 and 1 become -5 and 5. Reference: CQL as run by CORL (arXiv:2210.07105)."""
    return 10.0 * reward - np.float32(5.0)


def cql_antmaze(reward: np.ndarray) -> np.ndarray:
    """4 (r - 0.5), (n,) -> (n,): rewards of 0 and 1 become -2 and 2. Reference: the code of CQL (arXiv:2006.04779)."""
    return 4.0 * (reward - np.float32(0.5))


def iql_antmaze(reward: np.ndarray) -> np.ndarray:
    """r - 1, (n,) -> (n,): minus one for every step until the goal. Reference: IQL (arXiv:2110.06169), section 5."""
    return reward - np.float32(1.0)


def iql_locomotion(reward: np.ndarray, end: np.ndarray) -> np.ndarray:
    """r * 1000 / (max episode return - min episode return), (n,) and episode ends (n,) bool -> (n,).

    Episodes are cut at `end`; an unfinished one at the end of the file counts. Raises `UserError` where all returns are
    equal. Reference: IQL (arXiv:2110.06169), section 5; the authors cut where observations jump.
    """
    returns = episode_sums(reward, end)
    span = returns.max() - returns.min()
    if span == 0:
        raise UserError("reward transform iql_locomotion needs episodes of different return; all are equal, take none")
    return (reward * (1000.0 / span)).astype(np.float32)


def min_max(reward: np.ndarray) -> np.ndarray:
    """2 (r - min) / (max - min) - 1 over all rows, (n,) -> (n,): from -1 to 1.

    Raises `UserError` where the rewards are constant. Reference: the program of EDP (arXiv:2305.20081).
    """
    exact = reward.astype(np.float64)
    low, high = exact.min(), exact.max()
    if low == high:
        raise UserError("reward transform min_max divides by the range of the rewards; all rewards are equal")
    return (2.0 * (exact - low) / (high - low) - 1.0).astype(np.float32)


def standardise(reward: np.ndarray) -> np.ndarray:
    """(r - mean) / std over all rows, (n,) -> (n,). Raises `UserError` where the rewards are constant."""
    if (reward == reward[0]).all():
        raise UserError("reward transform standardise divides by the standard deviation; all rewards are equal")
    exact = reward.astype(np.float64)
    return ((exact - exact.mean()) / exact.std()).astype(np.float32)


def episode_sums(value: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Sum of `value` (n,) over each episode cut at `end` (n,) bool, in float64 -> (episodes,)."""
    return np.add.reduceat(value.astype(np.float64), episode_starts(end))


def episode_starts(end: np.ndarray) -> np.ndarray:
    """(episodes,) int: the row with which each episode begins, of their ends (n,) bool."""
    return np.flatnonzero(np.append(True, end[:-1]))


def mean_and_std(info: DatasetInfo) -> MeanAndStd | None:
    """By which the observations of a dataset were normalised; None where they are as they were."""
    if info.observation_mean is None or info.observation_std is None:
        return None
    return np.asarray(info.observation_mean), np.asarray(info.observation_std)


def normalise_observation(
    dataset: Dataset, shift: np.ndarray | float = 0.0, scale: np.ndarray | float = 1.0
) -> Dataset:
    """x -> (x - mean) / std on observation and next_observation, mean and std being those of observation.

    `info.observation_mean` and `info.observation_std` hold what the policy has to apply, where its observations are
    shift + scale * x. std is infinite where a column is constant: such a column stays 0 for the networks even when it
    moves in use. Nothing is added to std, so that neither scale nor offset of the observations matters (TD3+BC adds
    1e-3). The result takes the arrays of `dataset` over.

    Raises `UserError` where the observations were normalised before.
    Reference: TD3+BC (arXiv:2106.06860), section 5.1.
    """
    if dataset.info.observation_mean is not None:
        raise UserError(f"{dataset.info.source}: the observations are already normalised; do it once")
    mean, std = mean_and_deviation(np.asarray(dataset.observation))
    std = np.where(std > 0, std, np.inf)
    for array in (np.asarray(dataset.observation), np.asarray(dataset.next_observation)):
        rescale(array, mean, std)
    of_policy = (tuple((shift + scale * mean).tolist()), tuple((scale * std).tolist()))
    return replace(dataset, info=replace(dataset.info, observation_mean=of_policy[0], observation_std=of_policy[1]))


def normalise_with(
    dataset: Dataset,
    known: MeanAndStd,
    shift: np.ndarray | float = 0.0,
    scale: np.ndarray | float = 1.0,
) -> Dataset:
    """x -> (x - mean) / std on observation and next_observation, with the numbers of other data.

    The observations of the source are shift + scale * those of `dataset`, whose arrays the result takes over.

    Raises `UserError` where the observations were normalised before, or have another size.
    """
    if dataset.info.observation_mean is not None:
        raise UserError(f"{dataset.info.source}: the observations are already normalised; do it once")
    mean, std = known
    if len(mean) != dataset.spec.observation_size:
        raise UserError(
            f"{dataset.info.source}: observations have {dataset.spec.observation_size} numbers, and are to be "
            f"normalised by {len(mean)}; take data of the same task"
        )
    for array in (np.asarray(dataset.observation), np.asarray(dataset.next_observation)):
        rescale(array, (mean - shift) / scale, std / scale)
    of_policy = (tuple(mean.tolist()), tuple(std.tolist()))
    return replace(dataset, info=replace(dataset.info, observation_mean=of_policy[0], observation_std=of_policy[1]))


def rescale(array: np.ndarray, mean: np.ndarray, std: np.ndarray) -> None:
    """(x - mean) / std in place, (n, size) float32, worked out in float64 piece by piece."""
    for start in range(0, len(array), PIECE_ROWS):
        array[start : start + PIECE_ROWS] = (array[start : start + PIECE_ROWS] - mean) / std
