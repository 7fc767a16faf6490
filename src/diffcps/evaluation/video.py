"""One episode of a policy as an mp4 (extra `video`)."""

from __future__ import annotations

import os
import warnings
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast, runtime_checkable

import numpy as np

from diffcps.envs.make import boxes, make_environment
from diffcps.evaluation.rollout import Act, box_action
from diffcps.storage import VIDEO_COMMENT, check_ours
from diffcps.types import EnvironmentSpec, EnvObservation, UserError

if TYPE_CHECKING:
    import gymnasium


@runtime_checkable
class _Frames(Protocol):
    """What `imageio` writes a video with; it leaves the type open."""

    def append_data(self, frame: np.ndarray, /) -> None: ...
    def close(self) -> None: ...


def record_video(
    act: Act, environment: EnvironmentSpec | str, path: str | Path, *, seed: int = 100, max_steps: int = 1000
) -> float:
    """Films one episode (its first `max_steps` steps) as mp4 at real speed; returns the sum of the rewards filmed.

    `act` is the same function as in `roll_out`, here for one member and one episode: [1, 1, obs] to [1, 1, act].
    Frames above about 30 per second are left out. The file appears under its name only when it is complete.

    Raises `UserError` where the extra `video` is missing, nothing can be drawn, or the file cannot be written, or would
    replace one that is not ours.
    """
    path = Path(path)
    if path.suffix != ".mp4":
        raise UserError(f"videos are written as mp4: name {path} with the ending .mp4")
    check_ours(path)
    _check_extra()
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial.mp4")
    with warnings.catch_warnings(), closing(make_environment(environment, "rgb_array")) as made:
        # JAX warns of forks; the child becomes ffmpeg at once.
        warnings.filterwarnings("ignore", message=r"os\.fork\(\) was called", category=RuntimeWarning)
        observation, _ = made.reset(seed=seed)
        frame = _first_frame(made, environment)
        frames_per_second = made.metadata.get("render_fps", 30)
        stride = max(1, round(frames_per_second / 30))
        total, alive = 0.0, np.ones((1, 1), bool)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # closing: the writer's own `with` leaves ffmpeg running after an exception.
            with closing(_writer(partial, frames_per_second / stride)) as writer:
                writer.append_data(frame)
                for step in range(max_steps):
                    action = act(EnvObservation(np.asarray(observation, np.float64)[None, None]), step)
                    action = box_action(action, boxes(made).action, alive, environment, step)
                    observation, reward, terminated, truncated, _ = made.step(action[0, 0])
                    total += float(reward)
                    ended = terminated or truncated
                    if ended or (step + 1) % stride == 0:
                        writer.append_data(np.asarray(made.render()))
                    if ended:
                        break
            os.replace(partial, path)
        except OSError as error:
            raise UserError(f"cannot write the video {path}: {_first_line(error)}") from error
        finally:
            with suppress(OSError):  # it is not there when all went well
                partial.unlink()
    return total


def _check_extra() -> None:
    try:
        import imageio  # noqa: F401
        import imageio_ffmpeg

        imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        raise UserError("writing a video needs imageio with ffmpeg: pip install 'diffcps[video]'") from error


def _writer(path: Path, frames_per_second: float) -> _Frames:
    import imageio.v2 as imageio

    # macro_block_size: the codec needs even sides; imageio's default of 16 would rescale most pictures.
    comment = ["-metadata", f"comment={VIDEO_COMMENT}"]
    writer = imageio.get_writer(path, fps=frames_per_second, macro_block_size=2, output_params=comment)
    return cast(_Frames, writer)


def _first_frame(made: gymnasium.Env, environment: EnvironmentSpec | str) -> np.ndarray:
    """The first picture: where OpenGL cannot work, it fails here, with an exception that depends on the driver."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # glfw warns about the display before it fails
            frame = made.render()
    except Exception as error:
        raise UserError(
            f"cannot draw {environment} here ({_first_line(error)}): without a display set MUJOCO_GL=egl "
            "(apt-get install libegl1) or MUJOCO_GL=osmesa (apt-get install libosmesa6)"
        ) from error
    if not isinstance(frame, np.ndarray):
        raise UserError(f"environment {environment} draws no pictures in render mode 'rgb_array'")
    return frame


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
