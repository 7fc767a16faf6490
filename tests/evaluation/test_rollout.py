import os
import threading
from contextlib import closing

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.mujoco.hopper_v5 import HopperEnv
from gymnasium.envs.mujoco.mujoco_env import MujocoEnv

from diffcps.envs.make import make_environment
from diffcps.evaluation.rollout import _tell_unreadable, roll_out, success_of, threads_for
from diffcps.types import EnvAction, EnvironmentSpec, EnvObservation, UserError
from tests.evaluation.conftest import COUNTDOWN, ENDLESS, LIMITLESS, Countdown


def member_and_step(observation: EnvObservation, step: int) -> EnvAction:
    """a_0 = 0.1 for member 1 (0 for member 0), a_1 = step."""
    action = np.zeros((*observation.shape[:2], 2))
    action[..., 0] = 0.1 * np.arange(observation.shape[0])[:, None]
    action[..., 1] = step
    return EnvAction(action)


def test_returns_by_hand() -> None:
    episodes = roll_out(member_and_step, COUNTDOWN, 2, 3)
    # Seeds 100, 101, 102 last 2, 3, 1 steps: 2 * 100 + (0 + 1), 3 * 101 + (0 + 1 + 2), 102; member 1 adds 1 a step.
    np.testing.assert_allclose(episodes.returns, [[201, 306, 102], [203, 309, 103]], rtol=1e-7)
    np.testing.assert_array_equal(episodes.lengths, [[2, 3, 1], [2, 3, 1]])
    assert (
        episodes.success_at_last_step is None and episodes.success_at_any_step is None
    )  # the environment does not say


@pytest.mark.parametrize(("key", "only_when_true"), [("success", False), ("is_success", True)])
def test_success_at_the_last_and_at_any_step(monkeypatch, key: str, only_when_true: bool) -> None:
    step = Countdown.step

    def telling(self, action):
        observation, reward, terminated, truncated, _ = step(self, action)
        # Episodes of 1 and 3 steps end in success; the one of 2 has a success that does not last.
        success = len(self.actions) in (1, 3)
        return observation, reward, terminated, truncated, {key: success} if success or not only_when_true else {}

    monkeypatch.setattr(Countdown, "step", telling)
    episodes = roll_out(member_and_step, COUNTDOWN, 2, 3)
    np.testing.assert_array_equal(episodes.success_at_last_step, [[0, 1, 1], [0, 1, 1]])
    np.testing.assert_array_equal(episodes.success_at_any_step, [[1, 1, 1], [1, 1, 1]])


@pytest.mark.parametrize(
    ("value", "meaning"),
    [
        (True, True),
        (np.bool_(False), False),
        (1, True),
        (np.float32(0.0), False),
        (np.array(True), True),
        (np.array([1.0]), True),
        ([True, False], False),
        (np.ones((2, 1), bool), True),
        (np.nan, None),
        (None, None),
    ],
)
@pytest.mark.parametrize("key", ["success", "is_success", "goal_achieved", "solved"])
def test_any_shape_of_truth_value(key: str, value: object, meaning: bool | None) -> None:
    assert success_of({key: value, "other": 3}, "X-v0") is meaning


@pytest.mark.parametrize("value", [0.3, "yes", np.zeros(0), {"task": 1.0}])
def test_what_is_no_truth_value_says_nothing_and_is_told_once(value: object) -> None:
    _tell_unreadable.cache_clear()
    with pytest.warns(UserWarning, match="X-v0: its `success` is neither true nor false"):
        assert success_of({"success": value}, "X-v0") is None
    assert success_of({"success": value}, "X-v0") is None  # a second warning would be an error here


def test_members_meet_the_same_starts_and_finished_episodes_rest(countdown: list[Countdown]) -> None:
    roll_out(member_and_step, COUNTDOWN, 2, 3, seed=7)
    assert [environment.seeds for environment in countdown] == [[7], [8], [9], [7], [8], [9]]
    assert [len(environment.actions) for environment in countdown] == [2, 3, 1, 2, 3, 1]
    assert [environment.num_closed for environment in countdown] == [1] * 6


def test_what_the_policy_and_the_progress_bar_see() -> None:
    seen, progress = [], []

    def act(observation: EnvObservation, step: int) -> EnvAction:
        seen.append((step, observation))
        return EnvAction(np.zeros((1, 3, 2)))

    roll_out(act, COUNTDOWN, 1, 3, on_step=lambda step, num_alive: progress.append((step, num_alive)))
    assert [step for step, _ in seen] == [0, 1, 2]
    assert all(observation.dtype == np.float64 for _, observation in seen)
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
    roll_out(lambda observation, step: EnvAction(np.array([[[5.0, -5.0]]])), COUNTDOWN, 1, 1)
    np.testing.assert_array_equal(countdown[0].actions, [[1, -2], [1, -2]])


def test_time_limit_ends_an_episode() -> None:
    episodes = roll_out(member_and_step, ENDLESS, 1, 2)
    np.testing.assert_array_equal(episodes.lengths, [[4, 4]])
    np.testing.assert_allclose(episodes.returns, [[400 + 0 + 1 + 2 + 2, 404 + 0 + 1 + 2 + 2]])


def test_environment_without_time_limit_is_refused(countdown: list[Countdown]) -> None:
    with pytest.raises(UserError, match=r"no time limit.*--max-episode-steps N"):
        roll_out(member_and_step, LIMITLESS, 1, 2)
    assert [environment.num_closed for environment in countdown] == [1, 1]
    limited = roll_out(member_and_step, EnvironmentSpec(LIMITLESS, max_episode_steps=2), 1, 2)  # as the message says
    np.testing.assert_array_equal(limited.lengths, [[2, 2]])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_diverged_member_is_named(countdown: list[Countdown], bad: float) -> None:
    def act(observation: EnvObservation, step: int) -> EnvAction:
        action = np.zeros((2, 3, 2))
        action[1, 1, 0] = bad if step == 2 else 0.0
        return EnvAction(action)

    with pytest.raises(UserError, match=f"^member 1 gave an action that is not finite at step 2 of {COUNTDOWN}: .*$"):
        roll_out(act, COUNTDOWN, 2, 3)
    assert [environment.num_closed for environment in countdown] == [1] * 6


def test_actions_of_finished_episodes_are_ignored() -> None:
    def act(observation: EnvObservation, step: int) -> EnvAction:
        action = np.zeros((1, 3, 2))
        action[0, 2] = np.nan if step > 0 else 0.0  # that episode ended after one step
        return EnvAction(action)

    np.testing.assert_array_equal(roll_out(act, COUNTDOWN, 1, 3).returns, [[200, 303, 102]])


def test_actions_of_the_wrong_shape() -> None:
    with pytest.raises(UserError, match=r"shape \(2, 1, 3\).*expected \[members, episodes, act\] = \(2, 1, 2\)"):
        roll_out(lambda observation, step: EnvAction(np.zeros((2, 1, 3))), COUNTDOWN, 2, 1)


def test_an_evaluation_needs_an_episode() -> None:
    with pytest.raises(UserError, match="at least 1 member and 1 episode"):
        roll_out(member_and_step, COUNTDOWN, 2, 0)


@pytest.mark.parametrize(("episodes", "threads"), [(2, 1), (6, 3)])
def test_hopper_as_in_a_plain_loop(monkeypatch, episodes: int, threads: int) -> None:
    """Random actions make Hopper fall within some tens of steps; member m plays row m of the same random numbers."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
    actions = np.random.default_rng(0).uniform(-1, 1, (200, 2, episodes, 3)).astype(np.float32)
    seen, stepped_by = [], set()
    step_alone = MujocoEnv._step_mujoco_simulation

    def step_and_tell(self, *arguments) -> None:
        stepped_by.add(threading.get_ident())
        step_alone(self, *arguments)

    def act(observation: EnvObservation, step: int) -> EnvAction:
        seen.append(observation)
        return EnvAction(actions[step])

    monkeypatch.setattr(MujocoEnv, "_step_mujoco_simulation", step_and_tell)
    played = roll_out(act, "Hopper-v5", 2, episodes, seed=5)
    main = threading.get_ident()
    assert (stepped_by == {main}) == (threads == 1)
    assert len(stepped_by) <= threads

    environment = gymnasium.make("Hopper-v5")
    for member, episode in np.ndindex(2, episodes):
        observation, _ = environment.reset(seed=5 + episode)
        total, step, ended = 0.0, 0, False
        while not ended:
            np.testing.assert_array_equal(seen[step][member, episode], observation)
            observation, reward, terminated, truncated, _ = environment.step(actions[step, member, episode])
            total, step, ended = total + float(reward), step + 1, terminated or truncated
        assert played.returns[member, episode] == total
        assert played.lengths[member, episode] == step
    environment.close()
    assert len(np.unique(played.returns)) == 2 * episodes


@pytest.mark.parametrize(
    ("environment", "episodes", "threads"),
    [
        ("Hopper-v5", 20, 4),
        ("Hopper-v5", 3, 1),
        ("diffcps/AntMaze-umaze-v2", 9, 2),
        ("diffcps.envs.toy:diffcps/Stitching-v0", 20, 1),  # no MuJoCo
        (COUNTDOWN, 20, 1),  # foreign: it may share what it likes with its like
        (f"{__name__}:wrapped_hopper", 20, 1),
    ],
)
def test_only_environments_that_share_nothing_are_stepped_side_by_side(
    monkeypatch, environment: str, episodes: int, threads: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
    with closing(make_environment(environment)) as made:
        assert threads_for(made, episodes) == threads


class Foreign(gymnasium.Wrapper):
    """A wrapper of which nothing is known."""


def wrapped_hopper() -> gymnasium.Env:
    return Foreign(gymnasium.make("Hopper-v5"))


def test_an_error_in_a_thread_ends_the_evaluation_and_closes_all(monkeypatch) -> None:
    closed: list[MujocoEnv] = []
    close, step = MujocoEnv.close, HopperEnv.step

    def close_and_tell(self) -> None:
        closed.append(self)
        close(self)

    def breaking(self, action):
        if self.data.time > 0.05:
            raise RuntimeError("a joint came off")
        return step(self, action)

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(MujocoEnv, "close", close_and_tell)
    monkeypatch.setattr(HopperEnv, "step", breaking)
    with pytest.raises(RuntimeError, match="a joint came off"):
        roll_out(lambda observation, step: EnvAction(np.zeros((1, 8, 3))), "Hopper-v5", 1, 8)
    assert len(set(closed)) == 8
