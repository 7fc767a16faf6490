import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from diffcps.evaluation.video import record_video
from diffcps.types import EnvAction, EnvObservation, UserError
from tests.evaluation.conftest import ENDLESS, Countdown


def last_action_counts(observation: EnvObservation, step: int) -> EnvAction:
    assert observation.shape == (1, 1, 2)
    return EnvAction(np.ones((1, 1, 2)))


def read_video(path: Path, height: int, width: int) -> tuple[np.ndarray, str]:
    """Frames [n, height, width, 3], and what ffmpeg says about the file."""
    import imageio_ffmpeg

    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    done = subprocess.run(command, capture_output=True, check=True)
    return np.frombuffer(done.stdout, np.uint8).reshape(-1, height, width, 3), done.stderr.decode()


def test_video_holds_every_second_frame_of_sixty_a_second(tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg")
    path = tmp_path / "new folder" / "episode.mp4"
    total = record_video(last_action_counts, ENDLESS, path, seed=3)
    assert total == 4 * (3 + 10 + 1)
    assert [file.name for file in path.parent.iterdir()] == ["episode.mp4"]
    frames, description = read_video(path, 32, 48)
    assert "48x32" in description and " 30 fps" in description
    np.testing.assert_allclose(frames.mean((1, 2, 3)), [0, 40, 80], atol=5)  # before step 0, after steps 2 and 4


def test_video_stops_at_max_steps(tmp_path: Path, countdown: list[Countdown]) -> None:
    pytest.importorskip("imageio_ffmpeg")
    assert record_video(last_action_counts, ENDLESS, tmp_path / "short.mp4", seed=3, max_steps=2) == 2 * 14
    assert len(countdown[0].actions) == 2 and countdown[0].num_closed == 1


def test_a_video_replaces_one_of_ours_only(tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg")
    path = tmp_path / "episode.mp4"
    for _ in range(2):
        record_video(last_action_counts, ENDLESS, path, max_steps=2)
    path.write_bytes(b"a film of mine")
    with pytest.raises(UserError, match=r"episode\.mp4: is there already and was not written by diffcps; name another"):
        record_video(last_action_counts, ENDLESS, path, max_steps=2)
    assert path.read_bytes() == b"a film of mine"


def test_half_a_video_is_not_left_behind(tmp_path: Path, countdown: list[Countdown]) -> None:
    pytest.importorskip("imageio_ffmpeg")

    def act(observation: EnvObservation, step: int) -> EnvAction:
        return EnvAction(np.full((1, 1, 2), np.nan if step == 3 else 0.0))

    with pytest.raises(UserError, match="not finite at step 3"):
        record_video(act, ENDLESS, tmp_path / "bad.mp4")
    assert list(tmp_path.iterdir()) == []
    assert countdown[0].num_closed == 1


def test_video_that_cannot_be_drawn(tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg")
    Countdown.render_error = RuntimeError("no OpenGL\nsecond line")
    with pytest.raises(UserError) as caught:
        record_video(last_action_counts, ENDLESS, tmp_path / "dark.mp4")
    text = str(caught.value)
    assert "(no OpenGL)" in text and "MUJOCO_GL=egl" in text and "libosmesa6" in text and "\n" not in text
    assert list(tmp_path.iterdir()) == []


def test_video_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(UserError, match=r"pip install 'diffcps\[video\]'"):
        record_video(last_action_counts, ENDLESS, tmp_path / "none.mp4")


def test_video_paths_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\.mp4"):
        record_video(last_action_counts, ENDLESS, tmp_path / "episode.gif")
    pytest.importorskip("imageio_ffmpeg")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write the video"):
        record_video(last_action_counts, ENDLESS, tmp_path / "file" / "episode.mp4")


def test_video_of_hopper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With real OpenGL: skipped, with the library's own reason, on a machine that has none."""
    pytest.importorskip("imageio_ffmpeg")
    import mujoco  # noqa: F401  # before MUJOCO_GL is set: Gymnasium reads it later, when it draws

    if sys.platform == "linux" and "DISPLAY" not in os.environ and "MUJOCO_GL" not in os.environ:
        monkeypatch.setenv("MUJOCO_GL", "egl")
    path = tmp_path / "hopper.mp4"
    try:
        record_video(lambda observation, step: EnvAction(np.zeros((1, 1, 3))), "Hopper-v5", path, max_steps=12)
    except UserError as error:
        if "cannot draw" not in str(error):
            raise
        pytest.skip(str(error))
    frames = read_video(path, 480, 480)[0].astype(float)
    assert len(frames) == 4  # the start, and every fourth of 12 steps at 125 a second
    assert all(frame.std() > 10 for frame in frames)  # a picture, not a black field
    assert all(np.abs(after - before).max() > 50 for before, after in itertools.pairwise(frames))  # the robot moves
