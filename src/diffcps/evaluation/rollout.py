"""Whole episodes of a policy in its environment: all seeds and all episodes step together, one policy call a step."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from diffcps.envs.make import boxes, make_environment
from diffcps.types import EnvAction, EnvObservation, UserError

if TYPE_CHECKING:
    from gymnasium.spaces import Box

Act = Callable[[EnvObservation, int], EnvAction]
"""`act(observation, step)`: float32 "members episodes obs" to "members episodes act", in the environment's units."""


class Episodes(NamedTuple):
    """One row per member, one column per episode. Returns are undiscounted sums of raw rewards; lengths are steps."""

    returns: np.ndarray
    lengths: np.ndarray
    successes: np.ndarray | None = None
    """1 or 0: the environment's `info["success"]` at the episode's last step. None where it does not say."""


def roll_out(
    act: Act,
    environment_id: str,
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
    successes = np.full(shape, np.nan)

    with ExitStack() as stack:
        environments = {
            index: stack.enter_context(closing(make_environment(environment_id))) for index in np.ndindex(shape)
        }
        first = environments[0, 0]
        if first.spec is None or first.spec.max_episode_steps is None:
            raise UserError(
                f"environment {environment_id} has no time limit, so an episode might never end: "
                "register it with max_episode_steps"
            )

        spaces = boxes(first)
        observation = np.zeros((*shape, *spaces.observation.shape), np.float32)
        for member, episode in np.ndindex(shape):
            observation[member, episode], _ = environments[member, episode].reset(seed=seed + episode)

        step = 0
        while alive.any():
            if on_step is not None:
                on_step(step, int(alive.sum()))
            action = act(EnvObservation(observation.copy()), step)
            action = box_action(action, spaces.action, alive, environment_id, step)
            for index in map(tuple, np.argwhere(alive)):
                observation[index], reward, terminated, truncated, info = environments[index].step(action[index])
                returns[index] += float(reward)
                lengths[index] += 1
                successes[index] = info.get("success", np.nan)
                alive[index] = not (terminated or truncated)
            step += 1

    return Episodes(returns, lengths, None if np.isnan(successes).any() else successes)


def box_action(action: EnvAction, box: Box, alive: np.ndarray, environment_id: str, step: int) -> EnvAction:
    """The policy's actions "members episodes act", clipped to the box.

    Raises `UserError` for another shape, and for an action that is not finite in an episode that is `alive`.
    """
    action = EnvAction(np.asarray(action))
    expected = (*alive.shape, *box.shape)
    if action.shape != expected:
        raise UserError(
            f"the policy returned actions of shape {action.shape} for {environment_id}; "
            f"expected [members, episodes, act] = {expected}"
        )
    bad = alive & ~np.isfinite(action).all(-1)
    if bad.any():
        raise UserError(
            f"member {np.argwhere(bad)[0, 0]} gave an action that is not finite at step {step} of {environment_id}: "
            "its training has diverged; look at its losses, or evaluate an earlier checkpoint"
        )
    return EnvAction(np.clip(action, box.low, box.high).astype(box.dtype))
