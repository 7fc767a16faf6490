import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box

from diffcps.evaluation.rollout import record_video, roll_out
from diffcps.types import UserError

COUNTDOWN = "DiffcpsTestCountdown-v0"
ENDLESS = "DiffcpsTestEndless-v0"
LIMITLESS = "DiffcpsTestLimitless-v0"


class Countdown(gymnasium.Env):
    """Reset with seed s it lasts s mod 3 + 1 steps (for ever, where `endless`); a reward is s + 10 a_0 + a_1.

    Observations are (s, steps made). Everything that is done to an instance is written down.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 60}  # noqa: RUF012
    instances: list["Countdown"] = []  # noqa: RUF012
    render_error: Exception | None = None

    def __init__(self, endless: bool = False, render_mode: str | None = None):
        self.observation_space = Box(-np.inf, np.inf, (2,))
        self.action_space = Box(np.array([-1, -2], np.float32), np.array([1, 2], np.float32))
        self.endless, self.render_mode = endless, render_mode
        self.seeds: list[int | None] = []
        self.actions: list[np.ndarray] = []
        self.num_closed = 0
        Countdown.instances.append(self)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        self.seeds.append(seed)
        self.start, self.remaining = seed or 0, (seed or 0) % 3 + 1
        return np.array([self.start, 0], np.float32), {}

    def step(self, action: np.ndarray):
        assert self.remaining > 0 or self.endless, "stepped after its end"
        assert self.action_space.contains(action)
        self.actions.append(action)
        self.remaining -= 1
        reward = self.start + 10 * float(action[0]) + float(action[1])
        return np.array([self.start, len(self.actions)]), reward, self.remaining == 0 and not self.endless, False, {}

    def render(self):
        if Countdown.render_error is not None:
            raise Countdown.render_error
        return np.full((32, 48, 3), 20 * len(self.actions), np.uint8)

    def close(self):
        self.num_closed += 1


@pytest.fixture(autouse=True)
def countdown() -> Iterator[list[Countdown]]:
    gymnasium.register(COUNTDOWN, entry_point=f"{__name__}:Countdown", max_episode_steps=50)
    gymnasium.register(ENDLESS, entry_point=f"{__name__}:Countdown", max_episode_steps=4, kwargs={"endless": True})
    gymnasium.register(LIMITLESS, entry_point=f"{__name__}:Countdown")
    Countdown.instances.clear()
    Countdown.render_error = None
    yield Countdown.instances
    for environment_id in (COUNTDOWN, ENDLESS, LIMITLESS):
        del gymnasium.registry[environment_id]


def member_and_step(observation: np.ndarray, step: int) -> np.ndarray:
    """a_0 = 0.1 for member 1 (0 for member 0), a_1 = step."""
    action = np.zeros((*observation.shape[:2], 2))
    action[..., 0] = 0.1 * np.arange(observation.shape[0])[:, None]
    action[..., 1] = step
    return action


def test_returns_by_hand() -> None:
    episodes = roll_out(member_and_step, COUNTDOWN, 2, 3)
    # Seeds 100, 101, 102 last 2, 3, 1 steps: 2 * 100 + (0 + 1), 3 * 101 + (0 + 1 + 2), 102; member 1 adds 1 a step.
    np.testing.assert_allclose(episodes.returns, [[201, 306, 102], [203, 309, 103]], rtol=1e-7)
    np.testing.assert_array_equal(episodes.lengths, [[2, 3, 1], [2, 3, 1]])
    assert episodes.successes is None  # the environment does not say


def test_success_is_what_the_environment_says_at_the_last_step(monkeypatch) -> None:
    step = Countdown.step

    def telling(self, action):
        observation, reward, terminated, truncated, _ = step(self, action)
        # Episodes of 1 and 3 steps end in success; the one of 2 has a success that does not last.
        return observation, reward, terminated, truncated, {"success": len(self.actions) in (1, 3)}

    monkeypatch.setattr(Countdown, "step", telling)
    np.testing.assert_array_equal(roll_out(member_and_step, COUNTDOWN, 2, 3).successes, [[0, 1, 1], [0, 1, 1]])


def test_members_meet_the_same_starts_and_finished_episodes_rest(countdown: list[Countdown]) -> None:
    roll_out(member_and_step, COUNTDOWN, 2, 3, seed=7)
    assert [environment.seeds for environment in countdown] == [[7], [8], [9], [7], [8], [9]]
    assert [len(environment.actions) for environment in countdown] == [2, 3, 1, 2, 3, 1]
    assert [environment.num_closed for environment in countdown] == [1] * 6


def test_what_the_policy_and_the_progress_bar_see() -> None:
    seen, progress = [], []

    def act(observation: np.ndarray, step: int) -> np.ndarray:
        seen.append((step, observation))
        return np.zeros((1, 3, 2))

    roll_out(act, COUNTDOWN, 1, 3, on_step=lambda step, num_alive: progress.append((step, num_alive)))
    assert [step for step, _ in seen] == [0, 1, 2]
    assert all(observation.dtype == np.float32 for _, observation in seen)
    np.testing.assert_array_equal(
        [observation for _, observation in seen],
        [
            [[[100, 0], [101, 0], [102, 0]]],
            [[[100, 1], [101, 1], [102, 1]]],
            [[[100, 2], [101, 2], [102, 1]]],  # the last one ended after one step
        ],
    )
    assert progress == [(0, 3), (1, 2), (2, 1)]


def test_actions_are_clipped_to_the_box(countdown: list[Countdown]) -> None:
    roll_out(lambda observation, step: np.array([[[5.0, -5.0]]]), COUNTDOWN, 1, 1)
    np.testing.assert_array_equal(countdown[0].actions, [[1, -2], [1, -2]])


def test_time_limit_ends_an_episode() -> None:
    episodes = roll_out(member_and_step, ENDLESS, 1, 2)
    np.testing.assert_array_equal(episodes.lengths, [[4, 4]])
    np.testing.assert_allclose(episodes.returns, [[400 + 0 + 1 + 2 + 2, 404 + 0 + 1 + 2 + 2]])


def test_environment_without_time_limit_is_refused(countdown: list[Countdown]) -> None:
    with pytest.raises(UserError, match="no time limit"):
        roll_out(member_and_step, LIMITLESS, 1, 2)
    assert [environment.num_closed for environment in countdown] == [1, 1]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_diverged_member_is_named(countdown: list[Countdown], bad: float) -> None:
    def act(observation: np.ndarray, step: int) -> np.ndarray:
        action = np.zeros((2, 3, 2))
        action[1, 1, 0] = bad if step == 2 else 0.0
        return action

    with pytest.raises(UserError, match=f"^member 1 gave an action that is not finite at step 2 of {COUNTDOWN}: .*$"):
        roll_out(act, COUNTDOWN, 2, 3)
    assert [environment.num_closed for environment in countdown] == [1] * 6


def test_actions_of_finished_episodes_are_ignored() -> None:
    def act(observation: np.ndarray, step: int) -> np.ndarray:
        action = np.zeros((1, 3, 2))
        action[0, 2] = np.nan if step > 0 else 0.0  # that episode ended after one step
        return action

    np.testing.assert_array_equal(roll_out(act, COUNTDOWN, 1, 3).returns, [[200, 303, 102]])


def test_actions_of_the_wrong_shape() -> None:
    with pytest.raises(UserError, match=r"shape \(2, 1, 3\).*expected \[members, episodes, act\] = \(2, 1, 2\)"):
        roll_out(lambda observation, step: np.zeros((2, 1, 3)), COUNTDOWN, 2, 1)


def test_an_evaluation_needs_an_episode() -> None:
    with pytest.raises(UserError, match="at least 1 member and 1 episode"):
        roll_out(member_and_step, COUNTDOWN, 2, 0)


def test_hopper_as_in_a_plain_loop() -> None:
    """Random actions make Hopper fall within some tens of steps; member m plays row m of the same random numbers."""
    actions = np.random.default_rng(0).uniform(-1, 1, (200, 2, 2, 3)).astype(np.float32)
    seen = []

    def act(observation: np.ndarray, step: int) -> np.ndarray:
        seen.append(observation)
        return actions[step]

    episodes = roll_out(act, "Hopper-v5", 2, 2, seed=5)

    environment = gymnasium.make("Hopper-v5")
    for member, episode in np.ndindex(2, 2):
        observation, _ = environment.reset(seed=5 + episode)
        total, step, ended = 0.0, 0, False
        while not ended:
            np.testing.assert_array_equal(seen[step][member, episode], observation.astype(np.float32))
            observation, reward, terminated, truncated, _ = environment.step(actions[step, member, episode])
            total, step, ended = total + float(reward), step + 1, terminated or truncated
        assert episodes.returns[member, episode] == total
        assert episodes.lengths[member, episode] == step
    environment.close()
    assert len(np.unique(episodes.returns)) == 4


# Videos


def last_action_counts(observation: np.ndarray, step: int) -> np.ndarray:
    assert observation.shape == (1, 1, 2)
    return np.ones((1, 1, 2))


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


def test_half_a_video_is_not_left_behind(tmp_path: Path, countdown: list[Countdown]) -> None:
    pytest.importorskip("imageio_ffmpeg")

    def act(observation: np.ndarray, step: int) -> np.ndarray:
        return np.full((1, 1, 2), np.nan if step == 3 else 0.0)

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
        record_video(lambda observation, step: np.zeros((1, 1, 3)), "Hopper-v5", path, max_steps=12)
    except UserError as error:
        if "cannot draw" not in str(error):
            raise
        pytest.skip(str(error))
    frames, _ = read_video(path, 480, 480)
    assert len(frames) == 4  # the start, and every fourth of 12 steps at 125 a second
    assert all(frame.std() > 10 for frame in frames)  # a picture, not a black field
