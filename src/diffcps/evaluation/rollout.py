"""Whole episodes of a policy in its environment: all seeds and all episodes step together, one policy call a step."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffcps.envs.make import make_environment
from diffcps.types import UserError

Act = Callable[[np.ndarray, int], np.ndarray]
"""`act(observation, step)`: float32 [members, episodes, obs] to [members, episodes, act] in the environment's units."""


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

        observation = np.zeros((*shape, *first.observation_space.shape), np.float32)  # pyright: ignore[reportOptionalIterable]
        for member, episode in np.ndindex(shape):
            observation[member, episode], _ = environments[member, episode].reset(seed=seed + episode)

        step = 0
        while alive.any():
            if on_step is not None:
                on_step(step, int(alive.sum()))
            action = _box_action(act(observation.copy(), step), first.action_space, alive, environment_id, step)
            for index in map(tuple, np.argwhere(alive)):
                observation[index], reward, terminated, truncated, info = environments[index].step(action[index])
                returns[index] += float(reward)
                lengths[index] += 1
                successes[index] = info.get("success", np.nan)
                alive[index] = not (terminated or truncated)
            step += 1

    return Episodes(returns, lengths, None if np.isnan(successes).any() else successes)


def record_video(act: Act, environment_id: str, path: str | Path, *, seed: int = 100, max_steps: int = 1000) -> float:
    """Films one episode (its first `max_steps` steps) as mp4 at real speed; returns the sum of the rewards filmed.

    `act` is the same function as in `roll_out`, here for one member and one episode: [1, 1, obs] to [1, 1, act].
    Frames above about 30 per second are left out. The file appears under its name only when it is complete.

    Raises `UserError` where the extra `video` is missing, nothing can be drawn, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".mp4":
        raise UserError(f"videos are written as mp4: name {path} with the ending .mp4")
    try:
        import imageio.v2 as imageio
        import imageio_ffmpeg

        imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        raise UserError("writing a video needs imageio with ffmpeg: pip install 'diffcps[video]'") from error

    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial.mp4")
    with warnings.catch_warnings(), closing(make_environment(environment_id, render_mode="rgb_array")) as environment:
        # JAX warns of forks; the child becomes ffmpeg at once.
        warnings.filterwarnings("ignore", message=r"os\.fork\(\) was called", category=RuntimeWarning)
        observation, _ = environment.reset(seed=seed)
        frame = _first_frame(environment, environment_id)
        frames_per_second = environment.metadata.get("render_fps", 30)
        stride = max(1, round(frames_per_second / 30))
        total, alive = 0.0, np.ones((1, 1), bool)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # macro_block_size: the codec needs even sides; imageio's default of 16 would rescale most pictures.
            # closing: the writer's own `with` leaves ffmpeg running after an exception.
            with closing(imageio.get_writer(partial, fps=frames_per_second / stride, macro_block_size=2)) as writer:
                writer.append_data(frame)  # pyright: ignore[reportAttributeAccessIssue]
                for step in range(max_steps):
                    batch = np.asarray(observation, np.float32)[None, None]
                    action = _box_action(act(batch, step), environment.action_space, alive, environment_id, step)
                    observation, reward, terminated, truncated, _ = environment.step(action[0, 0])
                    total += float(reward)
                    ended = terminated or truncated
                    if ended or (step + 1) % stride == 0:
                        writer.append_data(np.asarray(environment.render()))  # pyright: ignore[reportAttributeAccessIssue]
                    if ended:
                        break
            os.replace(partial, path)
        except OSError as error:
            raise UserError(f"cannot write the video {path}: {_first_line(error)}") from error
        finally:
            with suppress(OSError):  # it is not there when all went well
                partial.unlink()
    return total


def _box_action(action, box, alive: np.ndarray, environment_id: str, step: int) -> np.ndarray:
    """The policy's answer, checked where episodes are alive and clipped to the box: [members, episodes, act]."""
    action = np.asarray(action)
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
    return np.clip(action, box.low, box.high).astype(box.dtype)


def _first_frame(environment, environment_id: str) -> np.ndarray:
    """The first picture: where OpenGL cannot work, it fails here, with an exception that depends on the driver."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # glfw warns about the display before it fails
            frame = environment.render()
    except Exception as error:
        raise UserError(
            f"cannot draw {environment_id} here ({_first_line(error)}): without a display set MUJOCO_GL=egl "
            "(apt-get install libegl1) or MUJOCO_GL=osmesa (apt-get install libosmesa6)"
        ) from error
    if not isinstance(frame, np.ndarray):
        raise UserError(f"environment {environment_id} draws no pictures in render mode 'rgb_array'")
    return frame


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
