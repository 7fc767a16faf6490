"""Between the units of an environment and those in which networks learn, both ways."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from diffcps.types import DatasetInfo, EnvAction, EnvObservation, NetAction, NetObservation


class Scaling(NamedTuple):
    """Networks see observations shifted and scaled (or as they are) and actions in [-1, 1], in float32.

    Arrays have any leading axes, observations (..., obs) and actions (..., act).
    """

    mean: np.ndarray
    """Of the observations of the dataset, (obs,) float64; 0 where they are taken as they are."""
    std: np.ndarray
    """Their standard deviation, float64, infinite where a column is constant; 1 where they are taken as they are."""
    low: np.ndarray
    """Lower bounds of the environment's actions, (act,) float32."""
    high: np.ndarray

    @classmethod
    def of(cls, info: DatasetInfo) -> Scaling:
        """The scaling that a dataset was loaded with."""
        mean = np.zeros(1) if info.observation_mean is None else np.asarray(info.observation_mean)
        std = np.ones(1) if info.observation_std is None else np.asarray(info.observation_std)
        return cls(mean, std, np.asarray(info.action_low, np.float32), np.asarray(info.action_high, np.float32))

    def observation(self, observation: EnvObservation) -> NetObservation:
        """(x - mean) / std: as the networks see it, in training and when they act. 0 in a constant column.

        In float64, so that a large offset costs nothing.
        """
        return NetObservation(((observation - self.mean) / self.std).astype(np.float32))

    def action(self, action: NetAction) -> EnvAction:
        """From [-1, 1] to the environment's box: what an environment is given."""
        return EnvAction(self.low + (action + 1.0) / 2.0 * (self.high - self.low))

    def scaled_action(self, action: EnvAction) -> NetAction:
        """From the environment's box to [-1, 1], the inverse: what is learnt from. Rounding beyond it is cut off.

        0 in a dimension whose box has no width.
        """
        if (self.low == -1).all() and (self.high == 1).all():
            return NetAction(np.clip(action, -1.0, 1.0))
        width = self.high - self.low
        scaled = 2.0 * (action - self.low) / np.where(width > 0, width, 1.0) - 1.0
        return NetAction(np.where(width > 0, np.clip(scaled, -1.0, 1.0), 0.0).astype(np.float32))
