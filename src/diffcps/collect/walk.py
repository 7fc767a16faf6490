"""Steps in an environment, written down in D4RL's layout."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from diffcps.collect.files import Rows, arrays

if TYPE_CHECKING:
    import gymnasium


Act = Callable[[np.ndarray, int], np.ndarray]
"""`act(observation, step)`: float32 (obs,) and the number of the step, from 0, to an action (act,)."""


def walk(environment: gymnasium.Env, act: Act, *, steps: int, seed: int, whole: bool = False) -> Rows:
    """`steps` steps from `reset(seed=seed)` on, episode after episode; the last one is cut where the steps end.

    With `whole` it is played to its end instead, so that there may be some steps more. `terminals` is true termination;
    `timeouts` marks the other ends, by the time limit and by the cut. MuJoCo environments add `infos/qpos` and
    `infos/qvel`, float64, of the state before the step.
    """
    data = getattr(environment.unwrapped, "data", None)
    names = ["observations", "actions", "rewards", "next_observations", "terminals", "timeouts"]
    names += ["infos/qpos", "infos/qvel"] if hasattr(data, "qpos") else []
    columns: dict[str, list] = {name: [] for name in names}

    observation, _ = environment.reset(seed=seed)
    for step in itertools.count():
        observation = np.asarray(observation, np.float32)
        action = act(observation, step)
        if "infos/qpos" in columns:
            columns["infos/qpos"].append(environment.unwrapped.data.qpos.copy())  # pyright: ignore[reportAttributeAccessIssue]
            columns["infos/qvel"].append(environment.unwrapped.data.qvel.copy())  # pyright: ignore[reportAttributeAccessIssue]
        next_observation, reward, terminated, truncated, _ = environment.step(action)
        ended = terminated or truncated
        last = step + 1 >= steps and (ended or not whole)
        timeout = not terminated and (truncated or last)
        row = (observation, action, reward, np.asarray(next_observation, np.float32), terminated, timeout)
        for name, value in zip(names, row, strict=False):
            columns[name].append(value)
        if last:
            break
        observation = environment.reset()[0] if ended else next_observation

    return arrays(columns)
