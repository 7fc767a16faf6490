"""Reference returns, and the normalised score that papers report against them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from diffcps.tasks.catalogue import catalogue
from diffcps.tasks.names import unversioned
from diffcps.types import EnvironmentSpec, UserError


def normalised_score(returns: float | Sequence[float] | np.ndarray, reference: tuple[float, float]) -> np.ndarray:
    """100 (x - min) / (max - min): 0 is a random policy, 100 an expert. `reference` is (min, max) in raw returns.

    Takes a number, a list or an array of any shape and returns an array of that shape. Raises `UserError` unless
    min < max.

    Reference: Fu et al., D4RL: Datasets for Deep Data-Driven Reinforcement Learning (arXiv:2004.07219).
    """
    low, high = reference
    if not low < high:
        raise UserError(f"reference scores must be (min, max) with min < max, got ({low}, {high})")
    return np.asarray(100.0 * (np.asarray(returns, float) - low) / (high - low))


def reference_scores(environment: EnvironmentSpec | str) -> tuple[float, float] | None:
    """D4RL's reference returns (random policy, expert) of its environments, whatever their version; None for others.

    They hold for an id with its default arguments only: other arguments, another time limit and wrappers change what a
    return is. D4RL measured them under mujoco-py (locomotion: the `-v2` tasks); later versions keep them by convention.

    Reference: https://github.com/Farama-Foundation/D4RL, d4rl/infos.py.
    """
    if isinstance(environment, EnvironmentSpec):
        return reference_scores(environment.id) if environment.is_default else None
    return _d4rl_references().get(unversioned(environment))


@cache
def _d4rl_references() -> dict[str, tuple[float, float]]:
    """The catalogue's reference returns, by the environment's name without its version."""
    return {
        unversioned(task.environment): (task.reference_min, task.reference_max)
        for task in catalogue().values()
        if task.source == "D4RL" and task.reference_min is not None and task.reference_max is not None
    }
