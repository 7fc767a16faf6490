"""D4RL's robots: layouts, lengths, and rewards on states set by hand, beside the formulas of D4RL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

import numpy as np
import pytest
from gymnasium.envs.mujoco.ant_v4 import AntEnv

from diffcps.envs.make import EnvironmentSizes, environment_sizes, make_environment
from diffcps.tasks.references import reference_scores
from diffcps.types import UserError


@contextmanager
def made(environment_id: str, seed: int = 0) -> Iterator:
    with closing(make_environment(environment_id)) as environment:
        environment.reset(seed=seed)
        yield environment


def same_every_time(environment_id: str) -> bool:
    """Whether a seed fixes the observations of ten steps, and another one gives others."""

    def observations(seed: int) -> np.ndarray:
        with closing(make_environment(environment_id)) as environment:
            found = [environment.reset(seed=seed)[0]]
            rng = np.random.default_rng(0)
            size = environment.action_space.shape[0]  # pyright: ignore[reportOptionalSubscript]
            found += [environment.step(rng.uniform(-1, 1, size).astype(np.float32))[0] for _ in range(10)]
            return np.stack(found)

    first = observations(5)
    return np.array_equal(first, observations(5)) and not np.array_equal(first[0], observations(6)[0])


# --- Ant ---


def test_ant_has_111_numbers_of_which_84_are_zero():
    assert environment_sizes("diffcps/Ant-v2") == EnvironmentSizes(111, 8, (-1.0,) * 8, (1.0,) * 8, 1000)
    assert reference_scores("diffcps/Ant-v2") == (-325.6, 3879.7)
    with made("diffcps/Ant-v2", seed=3) as environment, closing(AntEnv()) as v4:
        v4.reset(seed=3)
        force = 0.0
        for action in np.random.default_rng(0).uniform(-1, 1, (20, 8)):
            observation, *rest, _ = environment.step(action)
            expected, *as_expected, _ = v4.step(action)
            np.testing.assert_array_equal(observation[:27], expected)
            np.testing.assert_array_equal(observation[27:], np.zeros(84))
            assert rest == as_expected
            force = max(force, np.abs(environment.unwrapped.data.cfrc_ext).max())
        assert force > 0  # there are contact forces; v2 did not see them


def test_ant_is_paid_as_in_v2():
    with made("diffcps/Ant-v2") as environment:
        data = environment.unwrapped.data
        for action in np.random.default_rng(1).uniform(-1, 1, (5, 8)):
            before = data.body("torso").xpos[0]
            _, reward, terminated, _, _ = environment.step(action)
            speed = (data.body("torso").xpos[0] - before) / 0.05
            assert reward == pytest.approx(speed - 0.5 * np.sum(action**2) + 1.0)
            assert not terminated
        position = data.qpos.copy()
        position[2] = 1.5
        environment.unwrapped.set_state(position, data.qvel.copy())
        assert environment.step(np.zeros(8))[2]  # higher than 1: the end


# --- Adroit ---

ADROIT = {"Pen": (45, 24, 100), "Hammer": (46, 26, 200), "Door": (39, 28, 200), "Relocate": (39, 30, 200)}


@pytest.mark.parametrize("name", ADROIT)
def test_adroit_layouts(name: str):
    pytest.importorskip("gymnasium_robotics")
    observation, action, steps = ADROIT[name]
    environment_id = f"diffcps/Adroit{name}-v1"
    expected = EnvironmentSizes(observation, action, (-1.0,) * action, (1.0,) * action, steps)
    assert environment_sizes(environment_id) == expected
    assert reference_scores(environment_id) is not None
    if name != "Hammer":  # its start is seen in the height of the board alone
        assert same_every_time(environment_id)


def test_a_dropped_pen_ends_the_episode():
    pytest.importorskip("gymnasium_robotics")
    with made("diffcps/AdroitPen-v1") as environment:
        hand = environment.unwrapped
        observation, reward, terminated, _, _ = environment.step(np.zeros(24))
        apart, along = np.linalg.norm(observation[39:42]), observation[33:36] @ observation[36:39]
        assert not terminated and reward == pytest.approx(along - apart)

        position = hand.data.qpos.copy()
        position[-6] += 0.3  # downwards, in the pen's own frame
        hand.set_state(position, hand.data.qvel.copy())
        observation, reward, terminated, truncated, _ = environment.step(np.zeros(24))
        apart, along = np.linalg.norm(observation[39:42]), observation[33:36] @ observation[36:39]
        assert observation[26] < 0.075
        assert terminated and not truncated and reward == pytest.approx(along - apart - 5.0)


def door_reward(observation: np.ndarray, velocity: np.ndarray, sign: float = -1.0) -> float:
    """D4RL's, from the observation: palm to handle is numbers 35 to 37, the hinge number 28."""
    angle = observation[28]
    reward = sign * 0.1 * np.linalg.norm(observation[35:38]) - 0.1 * (angle - 1.57) ** 2 - 1e-5 * np.sum(velocity**2)
    return reward + 2 * (angle > 0.2) + 8 * (angle > 1.0) + 10 * (angle > 1.35)


@pytest.mark.parametrize(("angle", "bonus"), [(0.0, 0.0), (0.5, 2.0), (1.2, 10.0), (1.5, 20.0)])
def test_door_reward(angle: float, bonus: float):
    pytest.importorskip("gymnasium_robotics")
    with made("diffcps/AdroitDoor-v1") as environment:
        hand = environment.unwrapped
        position = hand.data.qpos.copy()
        position[28] = angle
        hand.set_state(position, 0 * hand.data.qvel)
        observation, reward, terminated, _, _ = environment.step(np.zeros(28))
        assert reward == pytest.approx(door_reward(observation, hand.data.qvel))
        assert abs(reward - door_reward(observation, hand.data.qvel, sign=1.0)) > 0.01  # that of gymnasium-robotics
        assert bonus - 0.5 < reward < bonus + 0.01
        assert not terminated


@pytest.mark.parametrize(("apart", "bonus"), [(0.2, 0.0), (0.07, 10.0), (0.02, 30.0)])
def test_relocate_reward(apart: float, bonus: float):
    """Palm - ball, palm - target and ball - target are the last nine numbers."""
    pytest.importorskip("gymnasium_robotics")
    with made("diffcps/AdroitRelocate-v1") as environment:
        hand = environment.unwrapped
        hand.model.site("target").pos[:] = hand.data.body("Object").xpos + np.array([apart, 0.0, 0.0])
        observation, reward, terminated, _, _ = environment.step(np.zeros(30))
        expected = -0.1 * np.linalg.norm(observation[30:33]) + bonus  # the ball lies at 0.035: it is not lifted
        assert reward == pytest.approx(expected, abs=1e-6) and not terminated

        lifted = hand.data.qpos.copy()
        lifted[-4] += 0.3
        hand.set_state(lifted, 0 * hand.data.qvel)
        observation, reward, *_ = environment.step(np.zeros(30))
        near, to_target, ball_to_target = (np.linalg.norm(observation[i : i + 3]) for i in (30, 33, 36))
        assert reward == pytest.approx(-0.1 * near + 1.0 - 0.5 * to_target - 0.5 * ball_to_target)


@pytest.mark.parametrize(("left", "bonus"), [(0.05, 0.0), (0.015, 25.0), (0.004, 100.0)])
def test_hammer_reward(left: float, bonus: float):
    """Palm, hammer and nail are numbers 33, 36 and 42 on; head and goal are places in the model."""
    pytest.importorskip("gymnasium_robotics")
    with made("diffcps/AdroitHammer-v1") as environment:
        hand = environment.unwrapped
        goal, nail = hand.data.site("nail_goal").xpos.copy(), hand.data.site("S_target").xpos.copy()
        depth = hand.model.joint("nail_dir").qposadr[0]
        position = hand.data.qpos.copy()
        position[depth] += np.linalg.norm(goal - nail) - left
        hand.set_state(position, 0 * hand.data.qvel)
        observation, reward, terminated, _, _ = environment.step(np.zeros(26))
        data = hand.data
        rest = np.linalg.norm(data.site("S_target").xpos - data.site("nail_goal").xpos)
        expected = -0.1 * np.linalg.norm(observation[33:36] - observation[36:39])
        expected -= np.linalg.norm(data.site("tool").xpos - observation[42:45])
        expected -= 10 * rest + 0.01 * np.linalg.norm(data.qvel)
        lifted = observation[38] > 0.04 and data.site("tool").xpos[2] > 0.04
        assert reward == pytest.approx(expected + bonus + 2 * lifted) and not terminated


# --- Kitchen ---


def test_kitchen_layout():
    pytest.importorskip("gymnasium_robotics")
    goals = {}
    for name in ("complete", "partial", "mixed"):
        environment_id = f"diffcps/Kitchen-{name}-v0"
        assert environment_sizes(environment_id) == EnvironmentSizes(60, 9, (-1.0,) * 9, (1.0,) * 9, 280)
        assert reference_scores(environment_id) == (0.0, 4.0)
        with made(environment_id) as environment:
            observation, _ = environment.reset(seed=0)
            start = environment.unwrapped.data.qpos
            assert np.abs(observation[:9] - start[:9]).max() <= 0.01  # the noise on the robot
            assert 0 < np.abs(observation[:30] - start).max() <= 0.01
            goals[name] = observation[30:]
    assert np.array_equal(goals["complete"], goals["partial"])
    assert not goals["complete"][:9].any()
    kettle = [-0.23, 0.75, 1.62, 0.99, 0.0, 0.0, -0.06]
    np.testing.assert_array_equal(goals["complete"][9:], [0] * 8 + [-0.69, -0.05, 0.37, 0, 0, -0.75, *kettle])
    np.testing.assert_array_equal(
        goals["mixed"][9:], [0, 0, -0.88, -0.01, *[0] * 4, -0.69, -0.05, 0, 0, 0, -0.75, *kettle]
    )
    assert same_every_time("diffcps/Kitchen-complete-v0")


def test_kitchen_pays_each_task_once_and_ends_with_the_last():
    pytest.importorskip("gymnasium_robotics")
    with made("diffcps/Kitchen-complete-v0") as environment:
        kitchen = environment.unwrapped

        def put(places: dict[int, float]) -> tuple[float, bool]:
            position = kitchen.data.qpos.copy()
            position[list(places)] = list(places.values())
            kitchen.set_state(position, 0 * kitchen.data.qvel)
            _, reward, terminated, truncated, _ = environment.step(np.zeros(9))
            assert not truncated
            return reward, terminated

        assert put({}) == (0.0, False)
        assert put({22: -0.2}) == (0.0, False)  # the door of the microwave, not far enough
        assert put({22: -0.75}) == (1.0, False)
        assert put({22: -0.75}) == (0.0, False)
        assert put({17: -0.69, 18: -0.05, 19: 0.37}) == (2.0, False)
        assert put({11: -0.88, 12: -0.01}) == (0.0, False)  # a burner, which is no task here
        assert put({23: -0.23, 24: 0.75, 25: 1.62, 26: 0.99, 27: 0.0, 28: 0.0, 29: -0.06}) == (1.0, True)
        environment.reset(seed=1)
        assert put({22: -0.75}) == (1.0, False)  # and again after a reset


def test_kitchen_actions_are_velocities():
    pytest.importorskip("gymnasium_robotics")
    with made("diffcps/Kitchen-complete-v0") as environment:
        data = environment.unwrapped.data
        before, seen = data.qpos[:9].copy(), environment.unwrapped._seen[:9].copy()
        action = np.zeros(9)
        action[6] = 5.0  # beyond the box: taken for 1
        environment.step(action)
        assert data.ctrl[6] == pytest.approx(seen[6] + 2.0 * 0.08)
        assert 0.05 < data.qpos[6] - before[6] < 0.2  # on its way to 0.16
        assert np.abs(data.qpos[:6] - before[:6]).max() < 0.03


# --- OGBench ---

MEDIUM = "antmaze-medium-navigate-singletask-v0"


def test_ogbench_has_the_name_of_its_task_and_obeys_the_seed():
    pytest.importorskip("ogbench")
    assert environment_sizes(MEDIUM) == EnvironmentSizes(29, 8, (-1.0,) * 8, (1.0,) * 8, 1000)
    assert reference_scores(MEDIUM) is None
    np.random.seed(1)  # noqa: NPY002
    expected = np.random.random()  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    assert same_every_time(MEDIUM)
    assert np.random.random() == expected  # noqa: NPY002 (the generator of everybody else is left alone)
    with made(MEDIUM) as environment:
        package = environment.unwrapped  # without our wrapper the start differs: the negative control
        starts = [package.reset(seed=5)[0][:2] for _ in range(2)]
        assert not np.array_equal(*starts)


def test_ogbench_pays_minus_one_until_the_goal():
    pytest.importorskip("ogbench")
    with made(MEDIUM) as environment:
        maze = environment.unwrapped
        assert maze.cur_goal_xy == (20.0, 20.0)
        assert environment.step(np.zeros(8))[1:3] == (-1.0, False)
        maze.set_xy(np.array([20.0, 19.4]))
        assert environment.step(np.zeros(8))[1:3] == (-1.0, False)
        maze.set_xy(np.array([20.0, 19.8]))
        assert environment.step(np.zeros(8))[1:3] == (0.0, True)


# --- Missing packages ---


@pytest.mark.parametrize(
    ("environment_id", "package", "module", "extra"),
    [
        ("diffcps/AdroitDoor-v1", "gymnasium_robotics", "adroit", "robotics"),
        ("diffcps/Kitchen-mixed-v0", "gymnasium_robotics", "kitchen", "robotics"),
        (MEDIUM, "ogbench", "ogbench", "ogbench"),
    ],
)
def test_a_missing_package_is_named(environment_id: str, package: str, module: str, extra: str, monkeypatch):
    import sys

    for name in [name for name in sys.modules if name.split(".")[0] == package or name == f"diffcps.envs.{module}"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"pip install 'diffcps\[{extra}\]'"):
        make_environment(environment_id)
