"""Between the units of an environment and those in which networks learn, both ways."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from diffcps.types import DatasetInfo, EnvAction, EnvObservation, NetAction, NetObservation


class Scaling(NamedTuple):
    """Networks see observations shifted and scaled (or as they are), and actions in [-1, 1].

    Arrays have any leading axes, observations (..., obs) and actions (..., act); everything is float32.
    """

    mean: np.ndarray
    """Of the observations of the dataset, (obs,); 0 where they are taken as they are."""
    std: np.ndarray
    """Their standard deviation, with what keeps it from zero; 1 where they are taken as they are."""
    low: np.ndarray
    """Lower bounds of the environment's actions, (act,)."""
    high: np.ndarray

    @classmethod
    def of(cls, info: DatasetInfo) -> Scaling:
        """The scaling that a dataset was loaded with."""
        mean = np.zeros(1) if info.observation_mean is None else info.observation_mean
        std = np.ones(1) if info.observation_std is None else info.observation_std
        return cls(*(np.asarray(x, np.float32) for x in (mean, std, info.action_low, info.action_high)))

    def observation(self, observation: EnvObservation) -> NetObservation:
        """(x - mean) / std: as the networks see it, in training and when they act."""
        return NetObservation((observation - self.mean) / self.std)

    def action(self, action: NetAction) -> EnvAction:
        """From [-1, 1] to the environment's box: what an environment is given."""
        return EnvAction(self.low + (action + 1.0) / 2.0 * (self.high - self.low))

    def scaled_action(self, action: EnvAction) -> NetAction:
        """From the environment's box to [-1, 1], the inverse: what is learnt from. Rounding beyond it is cut off."""
        if (self.low == -1).all() and (self.high == 1).all():
            return NetAction(np.clip(action, -1.0, 1.0))
        scaled = 2.0 * (action - self.low) / (self.high - self.low) - 1.0
        return NetAction(np.clip(scaled, -1.0, 1.0).astype(np.float32))
