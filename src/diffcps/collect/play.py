"""Episodes of a behaviour policy in an environment, recorded in D4RL's layout."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

import numpy as np

from diffcps.collect.files import SIMULATOR_STATE, TRANSITION, Columns, as_columns

if TYPE_CHECKING:
    import gymnasium


BehaviourPolicy: TypeAlias = Callable[[np.ndarray, int], np.ndarray]
"""`policy(observation, step)`: float32 (obs,) and the number of the step, from 0, to an action (act,)."""


@runtime_checkable
class SimulatorState(Protocol):
    """What MuJoCo holds; the arrays change with each step."""

    qpos: np.ndarray
    qvel: np.ndarray


def simulator_state(environment: gymnasium.Env) -> SimulatorState | None:
    """The state of a MuJoCo environment, which changes with it; None for any other environment."""
    data = getattr(environment.unwrapped, "data", None)
    return data if isinstance(data, SimulatorState) else None


def play(environment: gymnasium.Env, policy: BehaviourPolicy, *, steps: int, seed: int, whole: bool = False) -> Columns:
    """`steps` steps from `reset(seed=seed)` on, episode after episode; the last one is cut where the steps end.

    With `whole` it is played to its end instead, so that there may be some steps more. `terminals` is true termination;
    `timeouts` marks the other ends, by the time limit and by the cut. MuJoCo environments add `infos/qpos` and
    `infos/qvel`, float64, of the state before the step.
    """
    state = simulator_state(environment)
    rows: list[tuple[object, ...]] = []
    observation, _ = environment.reset(seed=seed)
    for step in itertools.count():
        observation = np.asarray(observation, np.float32)
        action = policy(observation, step)
        before = () if state is None else (state.qpos.copy(), state.qvel.copy())
        next_observation, reward, terminated, truncated, _ = environment.step(action)
        ended = terminated or truncated
        last = step + 1 >= steps and (ended or not whole)
        timeout = not terminated and (truncated or last)
        following = np.asarray(next_observation, np.float32)
        rows.append((observation, action, reward, following, terminated, timeout, *before))
        if last:
            break
        observation = environment.reset()[0] if ended else next_observation

    return as_columns(TRANSITION if state is None else TRANSITION + SIMULATOR_STATE, rows)
