"""The TriFinger environments: their own checks run where the extra `trifinger` is installed."""

from __future__ import annotations

import sys
from contextlib import closing

import numpy as np
import pytest

from diffcps.envs.make import environment_sizes, make_environment
from diffcps.evaluation.rollout import roll_out
from diffcps.readers.trifinger import TORQUE, observation_box
from diffcps.types import EnvAction, UserError

TASKS = {"push": "diffcps/TriFingerPush-v0", "lift": "diffcps/TriFingerLift-v0"}
CUBE, GOAL = slice(42, 45), slice(45, 48)
"""Where push's observation has the cube's position, and the position it shall reach."""


def test_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "trifinger_rl_datasets", None)
    with pytest.raises(UserError) as caught:
        make_environment("diffcps/TriFingerPush-v0")
    assert "pip install 'diffcps[trifinger]'" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("task", TASKS)
def test_spaces_are_those_that_the_reader_states(task):
    pytest.importorskip("trifinger_rl_datasets")
    spec = environment_sizes(TASKS[task])
    low, high = observation_box(task)
    assert (spec.observation_size, spec.action_size, spec.max_steps) == (len(low), 9, {"push": 750, "lift": 1500}[task])
    np.testing.assert_array_equal(spec.action_high, np.full(9, TORQUE, np.float32))
    np.testing.assert_array_equal(spec.action_low, np.full(9, -TORQUE, np.float32))
    with closing(make_environment(TASKS[task])) as environment:
        space = environment.observation_space
        np.testing.assert_array_equal(space.low, low)  # pyright: ignore[reportAttributeAccessIssue]
        np.testing.assert_array_equal(space.high, high)  # pyright: ignore[reportAttributeAccessIssue]
        assert space.contains(environment.reset(seed=0)[0])


def played(seed: int, steps: int = 10) -> tuple[np.ndarray, list[float]]:
    """Observations and rewards of the first steps under random torques that are the same for every seed."""
    torques = np.random.default_rng(0).uniform(-TORQUE, TORQUE, (steps, 9)).astype(np.float32)
    with closing(make_environment(TASKS["push"])) as environment:
        first, _ = environment.reset(seed=seed)
        steps_made = [environment.step(torque) for torque in torques]
    return np.stack([first, *(step[0] for step in steps_made)]), [float(step[1]) for step in steps_made]


def test_a_seed_fixes_the_episode_and_nothing_else():
    pytest.importorskip("trifinger_rl_datasets")
    np.random.seed(7)  # noqa: NPY002
    expected = np.random.random()  # noqa: NPY002
    np.random.seed(7)  # noqa: NPY002
    first, again, other = played(3), played(3), played(4)
    assert np.random.random() == expected  # noqa: NPY002
    np.testing.assert_array_equal(first[0], again[0])
    assert first[1] == again[1]
    assert (first[0][0, CUBE] != other[0][0, CUBE]).any() and (first[0][0, GOAL] != other[0][0, GOAL]).any()


def test_success_is_a_cube_within_two_centimetres_of_its_goal():
    pytest.importorskip("trifinger_rl_datasets")
    with closing(make_environment(TASKS["push"])) as environment:
        environment.reset(seed=0)
        simulation = environment.unwrapped._package.sim_env  # pyright: ignore[reportAttributeAccessIssue]
        for distance, expected in ((0.03, False), (0.019, True)):
            observation, *_ = environment.step(np.zeros(9, np.float32))
            simulation.active_goal.position = observation[CUBE] + np.array([distance, 0, 0])
            *_, info = environment.step(np.zeros(9, np.float32))
            assert info["success"] is expected


def test_episode_has_all_its_steps_and_says_whether_it_succeeded(monkeypatch):
    """The package counts a step of its own, made while it resets: the episode would be one step short."""
    package = pytest.importorskip("trifinger_rl_datasets")
    monkeypatch.setitem(package.task_params["push"]["trifinger_kwargs"], "episode_length", 5)
    episodes = roll_out(lambda observation, step: EnvAction(np.zeros((1, 2, 9))), TASKS["push"], 1, 2)
    assert episodes.lengths.tolist() == [[5, 5]]
    assert episodes.success_at_last_step is not None and set(episodes.success_at_last_step.ravel()) <= {0.0, 1.0}
