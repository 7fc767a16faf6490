"""The rows that a reader finds in a file, and how they become a `Dataset`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from diffcps.types import Dataset, DatasetInfo, EnvironmentSpec, UserError

FIELDS = ("observation", "action", "reward", "terminal", "timeout", "next_observation")
"""What a file holds for each step; the last two may be missing."""


class RawRows(NamedTuple):
    """What a file holds, row by row, before the rules about its last rows are applied."""

    observation: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    terminal: np.ndarray
    timeout: np.ndarray | None
    next_observation: np.ndarray | None
    names: dict[str, str]
    """Each of `FIELDS` that the file has -> its name there, for messages."""
    sha256: str
    environment: EnvironmentSpec | None = None
    reference_min: float | None = None
    reference_max: float | None = None
    action_low: np.ndarray | None = None
    """None: the file does not say, [-1, 1] is assumed."""
    action_high: np.ndarray | None = None
    notes: tuple[str, ...] = ()
    """What the reader converted."""


def to_dataset(raw: RawRows, info: DatasetInfo) -> Dataset:
    """Apply the rules about episode ends to a checked record; actions are taken as they are.

    With next observations, every row is a transition. Without, the rule is that of D4RL's `qlearning_dataset`: the next
    row is the next observation, so that rows flagged as timeout and the last row of the file have none and are dropped,
    and the row before a dropped one becomes the last stored step of its episode. The next observation of a terminal row
    is then the start of another episode; nothing may read it, since a terminal row is not bootstrapped.

    Without timeouts, ends are found where next_observation does not chain to the following row. Where there are no next
    observations either, ends are unknown (D4RL would count to the time limit of the environment): the record is
    accepted if its last row is terminal, so that every episode can end by a terminal, and refused otherwise.

    Raises `UserError` in that case and where no row is left.
    Reference: https://github.com/Farama-Foundation/D4RL, `d4rl/__init__.py`, `qlearning_dataset`.
    """
    if raw.next_observation is not None:
        timeout = ~raw.terminal & ~chains(raw.observation, raw.next_observation) if raw.timeout is None else raw.timeout
        timeout = timeout.copy()
        timeout[-1] |= ~raw.terminal[-1]
        return Dataset(raw.observation, raw.action, raw.reward, raw.next_observation, raw.terminal, timeout, info)

    if raw.timeout is None and not raw.terminal[-1]:
        raise UserError(
            f"{info.source}: the ends of the episodes are unknown, for there is neither `timeouts` nor "
            "`next_observations` and the last row is not terminal; add a boolean field `timeouts` that marks the last "
            "row of each episode cut by a time limit (all False if it is one unbroken trajectory)"
        )
    dropped = np.zeros_like(raw.terminal) if raw.timeout is None else raw.timeout.copy()
    dropped[-1] = True
    if dropped.all():
        raise UserError(
            f"{info.source}: no transition is left, for without `next_observations` the last row and every row flagged "
            "as timeout are dropped; store `next_observations`"
        )
    kept = np.flatnonzero(~dropped)
    timeout = dropped[kept + 1] & ~raw.terminal[kept]
    return Dataset(
        raw.observation[kept], raw.action[kept], raw.reward[kept], raw.observation[kept + 1], raw.terminal[kept],
        timeout, info,
    )  # fmt: skip


def chains(observation: np.ndarray, next_observation: np.ndarray) -> np.ndarray:
    """Whether next_observation[i] is observation[i + 1], up to rounding: (n, obs), (n, obs) -> (n,) bool.

    The last row has no follower and counts as chained.
    """
    follower = observation[1:]
    close = np.abs(next_observation[:-1] - follower) <= 1e-5 * (1.0 + np.abs(follower))
    return np.append(close.all(axis=1), True)
