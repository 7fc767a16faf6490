"""Whole episodes of a policy in its environment: all seeds and all episodes step together, one policy call a step.

Between two calls the environments are stepped by a pool of threads, a share of the episodes each: MuJoCo, where most of
the time goes, lets go of Python's lock. Every episode has an environment of its own, so that the results are the same.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import cache, partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from diffcps.envs.make import boxes, make_environment, time_limit
from diffcps.types import EnvAction, EnvironmentSpec, EnvObservation, UserError

if TYPE_CHECKING:
    import gymnasium
    from gymnasium.spaces import Box

Act = Callable[[EnvObservation, int], EnvAction]
"""`act(observation, step)`: float64 "members episodes obs" to "members episodes act", in the environment's units."""
SUCCESS_KEYS = ("success", "is_success", "goal_achieved", "solved")
"""Where the `info` of environments says whether a step is a success (OGBench, Meta-World, Gymnasium-Robotics' mazes and
hands, ManiSkill; its Fetch robots, LeRobot; D4RL's Adroit; MyoSuite). The first one that is there counts."""
THREADED = ("gymnasium.envs.mujoco.", "gymnasium.wrappers.", "gymnasium_robotics.", "diffcps.envs.")
"""Where environments come from that share nothing with one another, if MuJoCo moves them. Of others nobody knows."""
A_THREAD = 4
"""Episodes for which a thread is worth its while."""


class Episodes(NamedTuple):
    """One row per member, one column per episode. Returns are undiscounted sums of raw rewards; lengths are steps."""

    returns: np.ndarray
    lengths: np.ndarray
    success_at_last_step: np.ndarray | None = None
    """1 or 0: whether the environment calls the episode's last step a success. None where it never says anything."""
    success_at_any_step: np.ndarray | None = None
    """1 or 0: whether it called any step of the episode so."""


def roll_out(
    act: Act,
    environment: EnvironmentSpec | str,
    num_members: int,
    num_episodes: int,
    *,
    seed: int = 100,
    on_step: Callable[[int, int], None] | None = None,
) -> Episodes:
    """Plays `num_episodes` whole episodes with every member and returns `Episodes` of [num_members, num_episodes].

    `act` is asked once per step for all members and episodes, always at the same shape; rows of finished episodes
    repeat their last observation and their actions are ignored. Actions are clipped to the environment's box.
    Episode e is reset with seed `seed + e` for every member: all members meet the same start states.
    `on_step(step, num_alive)` is called before each step with the number of episodes still running.

    Raises `UserError` where the environment cannot be made or has no time limit, and for actions of the wrong shape
    or not finite.
    """
    if num_members < 1 or num_episodes < 1:
        raise UserError(f"an evaluation needs at least 1 member and 1 episode, got {num_members} and {num_episodes}")

    shape = (num_members, num_episodes)
    returns, lengths, alive = np.zeros(shape), np.zeros(shape, int), np.ones(shape, bool)
    at_last, at_any, said = np.zeros(shape), np.zeros(shape), np.zeros(shape, bool)

    with ExitStack() as stack:
        environments = {
            index: stack.enter_context(closing(make_environment(environment))) for index in np.ndindex(shape)
        }
        first = environments[0, 0]
        check_time_limit(first, environment)
        spaces = boxes(first)
        threads = threads_for(first, num_members * num_episodes)
        at_once = map if threads == 1 else stack.enter_context(ThreadPoolExecutor(threads)).map
        observation = np.zeros((*shape, *spaces.observation.shape))
        for member, episode in np.ndindex(shape):
            observation[member, episode], _ = environments[member, episode].reset(seed=seed + episode)

        def take_step(action: EnvAction, indices: Sequence[tuple[int, int]]) -> None:
            for index in indices:
                observation[index], reward, terminated, truncated, info = environments[index].step(action[index])
                returns[index] += float(reward)
                lengths[index] += 1
                success = success_of(info, environment)
                said[index] |= success is not None
                at_last[index] = bool(success)
                at_any[index] = at_any[index] or bool(success)
                alive[index] = not (terminated or truncated)

        step = 0
        while alive.any():
            if on_step is not None:
                on_step(step, int(alive.sum()))
            action = act(EnvObservation(observation.copy()), step)
            action = box_action(action, spaces.action, alive, environment, step)
            indices = [(int(member), int(episode)) for member, episode in np.argwhere(alive)]
            shares = [indices[thread::threads] for thread in range(threads)]
            list(at_once(partial(take_step, action), shares))
            step += 1

    return Episodes(returns, lengths, at_last, at_any) if said.any() else Episodes(returns, lengths)


def threads_for(environment: gymnasium.Env, episodes: int) -> int:
    """How many threads step so many environments like this one: one where steps might depend on the others' order."""
    layers = [environment]
    while layers[-1] is not environment.unwrapped:
        layers.append(layers[-1].env)  # pyright: ignore[reportAttributeAccessIssue]; it is a wrapper
    known = all(type(layer).__module__.startswith(THREADED) for layer in layers)
    if not known or type(getattr(layers[-1], "model", None)).__name__ != "MjModel":
        return 1
    return max(1, min(len(os.sched_getaffinity(0)), episodes // A_THREAD))


def check_time_limit(made: gymnasium.Env, environment: EnvironmentSpec | str) -> None:
    """Raises `UserError` unless somebody says after how many steps an episode is cut."""
    if time_limit(made) is None:
        raise UserError(
            f"environment {environment} has no time limit, so an episode might never end: give it one with "
            "--max-episode-steps N (if it ends by itself, any N that is large enough), or register it with one"
        )


def success_of(info: Mapping[str, object], environment: EnvironmentSpec | str) -> bool | None:
    """Whether the `info` of a step calls it a success; None where it does not say.

    A truth value may be a bool, the number 0 or 1, or an array of them, of which all must be true. Another value says
    nothing, and is told once as a warning.
    """
    key = next((key for key in SUCCESS_KEYS if info.get(key) is not None), None)
    if key is None:
        return None
    try:
        value = np.asarray(info[key], float)
    except (TypeError, ValueError):
        value = np.empty(0)
    if value.size and np.isin(value, (0, 1)).all():
        return bool(value.all())
    if not np.isnan(value).all() or not value.size:
        _tell_unreadable(key, str(environment))
    return None


@cache
def _tell_unreadable(key: str, environment: str) -> None:
    warnings.warn(
        f"environment {environment}: its `{key}` is neither true nor false, so that successes are not counted there",
        stacklevel=3,
    )


def box_action(
    action: EnvAction, box: Box, alive: np.ndarray, environment: EnvironmentSpec | str, step: int
) -> EnvAction:
    """The policy's actions "members episodes act", clipped to the box.

    Raises `UserError` for another shape, and for an action that is not finite in an episode that is `alive`.
    """
    action = EnvAction(np.asarray(action))
    expected = (*alive.shape, *box.shape)
    if action.shape != expected:
        raise UserError(
            f"the policy returned actions of shape {action.shape} for {environment}; "
            f"expected [members, episodes, act] = {expected}"
        )
    bad = alive & ~np.isfinite(action).all(-1)
    if bad.any():
        raise UserError(
            f"member {np.argwhere(bad)[0, 0]} gave an action that is not finite at step {step} of {environment}: "
            "its training has diverged; look at its losses, or evaluate an earlier checkpoint"
        )
    return EnvAction(np.clip(action, box.low, box.high).astype(box.dtype))
