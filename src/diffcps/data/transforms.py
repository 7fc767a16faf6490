"""Changes made to a dataset on the way in: rewards, observations, actions. All are pure functions."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np

from diffcps.data.scaling import Scaling
from diffcps.types import Dataset, EnvObservation, UserError

RewardTransform = Literal["none", "cql_antmaze", "iql_antmaze", "iql_locomotion", "standardise"]


def transform_reward(dataset: Dataset, name: RewardTransform) -> Dataset:
    """The dataset with the rewards changed as `name` says; each transform is the function of that name.

    Raises `UserError` where a transform is undefined on these rewards, or the name is unknown.
    """
    reward = np.asarray(dataset.reward)
    try:
        match name:
            case "none":
                return dataset
            case "cql_antmaze":
                changed = cql_antmaze(reward)
            case "iql_antmaze":
                changed = iql_antmaze(reward)
            case "iql_locomotion":
                changed = iql_locomotion(reward, np.asarray(dataset.terminal) | np.asarray(dataset.timeout))
            case "standardise":
                changed = standardise(reward)
            case _:
                raise UserError(
                    f"unknown reward transform {name!r}; "
                    "take none, cql_antmaze, iql_antmaze, iql_locomotion or standardise"
                )
    except UserError as error:
        raise UserError(f"{dataset.info.source}: {error}") from None
    return replace(dataset, reward=changed)


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


def standardise(reward: np.ndarray) -> np.ndarray:
    """(r - mean) / std over all rows, (n,) -> (n,). Raises `UserError` where the rewards are constant."""
    if (reward == reward[0]).all():
        raise UserError("reward transform standardise divides by the standard deviation; all rewards are equal")
    exact = reward.astype(np.float64)
    return ((exact - exact.mean()) / exact.std()).astype(np.float32)


def episode_sums(value: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Sum of `value` (n,) over each episode cut at `end` (n,) bool, in float64 -> (episodes,)."""
    starts = np.flatnonzero(np.append(True, end[:-1]))
    return np.add.reduceat(value.astype(np.float64), starts)


def normalise_observation(dataset: Dataset) -> Dataset:
    """x -> (x - mean) / (std + 1e-3) on observation and next_observation, mean and std being those of observation.

    `info.observation_mean` and `info.observation_std` hold what the policy has to apply, the 1e-3 included.
    Raises `UserError` where the observations were normalised before.
    Reference: TD3+BC (arXiv:2106.06860), section 5.1.
    """
    if dataset.info.observation_mean is not None:
        raise UserError(f"{dataset.info.source}: the observations are already normalised; do it once")
    observation = np.asarray(dataset.observation)
    mean = observation.mean(axis=0, dtype=np.float64).astype(np.float32)
    std = (observation.std(axis=0, dtype=np.float64) + 1e-3).astype(np.float32)
    info = replace(dataset.info, observation_mean=tuple(mean.tolist()), observation_std=tuple(std.tolist()))
    scaling = Scaling.of(info)
    return replace(
        dataset,
        observation=scaling.observation(EnvObservation(observation)),
        next_observation=scaling.observation(EnvObservation(np.asarray(dataset.next_observation))),
        info=info,
    )


def normalise_with(dataset: Dataset, mean: tuple[float, ...], std: tuple[float, ...]) -> Dataset:
    """x -> (x - mean) / std on observation and next_observation, with numbers of other data, (obs,) each.

    Raises `UserError` where the observations were normalised before, or have another size.
    """
    if dataset.info.observation_mean is not None:
        raise UserError(f"{dataset.info.source}: the observations are already normalised; do it once")
    if len(mean) != dataset.spec.observation_size:
        raise UserError(
            f"{dataset.info.source}: observations have {dataset.spec.observation_size} numbers, and are to be "
            f"normalised by {len(mean)}; take data of the same task"
        )
    info = replace(dataset.info, observation_mean=mean, observation_std=std)
    scaling = Scaling.of(info)
    return replace(
        dataset,
        observation=scaling.observation(EnvObservation(np.asarray(dataset.observation))),
        next_observation=scaling.observation(EnvObservation(np.asarray(dataset.next_observation))),
        info=info,
    )
