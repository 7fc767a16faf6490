"""Steps in an environment, written down in D4RL's layout."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from diffcps.experiments.collect.files import Rows

if TYPE_CHECKING:
    import gymnasium


def walk(environment: gymnasium.Env, act: Callable[[np.ndarray, int], np.ndarray], *, steps: int, seed: int) -> Rows:
    """`steps` steps from `reset(seed=seed)` on, episode after episode; the last one is cut where the steps end.

    `act(observation, step)` is asked with a float32 observation (obs,) and the number of the step, from 0. Every array
    of the answer has `steps` rows. `terminals` is true termination; `timeouts` marks the other ends, by the time limit
    and by the cut. MuJoCo environments add `infos/qpos` and `infos/qvel`, float64, of the state before the step.
    """
    data = getattr(environment.unwrapped, "data", None)
    names = ["observations", "actions", "rewards", "next_observations", "terminals", "timeouts"]
    names += ["infos/qpos", "infos/qvel"] if hasattr(data, "qpos") else []
    columns: dict[str, list] = {name: [] for name in names}

    observation, _ = environment.reset(seed=seed)
    for step in range(steps):
        observation = np.asarray(observation, np.float32)
        action = act(observation, step)
        if "infos/qpos" in columns:
            columns["infos/qpos"].append(environment.unwrapped.data.qpos.copy())  # pyright: ignore[reportAttributeAccessIssue]
            columns["infos/qvel"].append(environment.unwrapped.data.qvel.copy())  # pyright: ignore[reportAttributeAccessIssue]
        next_observation, reward, terminated, truncated, _ = environment.step(action)
        timeout = not terminated and (truncated or step == steps - 1)
        row = (observation, action, reward, np.asarray(next_observation, np.float32), terminated, timeout)
        for name, value in zip(names, row, strict=False):
            columns[name].append(value)
        observation = environment.reset()[0] if terminated or truncated else next_observation

    kinds = {"terminals": bool, "timeouts": bool, "infos/qpos": np.float64, "infos/qvel": np.float64}
    return {name: np.asarray(column, kinds.get(name, np.float32)) for name, column in columns.items()}
