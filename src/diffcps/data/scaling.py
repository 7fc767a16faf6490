"""Between the units of an environment and those in which networks learn."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from diffcps.types import DatasetInfo, EnvAction, EnvObservation, NetAction, NetObservation


class Scaling(NamedTuple):
    """Observations were normalised (or not), actions scaled from their box to [-1, 1], when the data were loaded."""

    mean: np.ndarray
    std: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def of(cls, info: DatasetInfo) -> Scaling:
        """The scaling that a dataset was loaded with."""
        mean = np.zeros(1) if info.observation_mean is None else info.observation_mean
        std = np.ones(1) if info.observation_std is None else info.observation_std
        return cls(*(np.asarray(x, np.float32) for x in (mean, std, info.action_low, info.action_high)))

    def observation(self, observation: EnvObservation) -> NetObservation:
        """As the policy saw it in training."""
        return NetObservation((observation - self.mean) / self.std)

    def action(self, action: NetAction) -> EnvAction:
        """From [-1, 1] to the environment's box."""
        return EnvAction(self.low + (action + 1.0) / 2.0 * (self.high - self.low))
