"""The toy problems: what their environments pay, and that their data are what they claim to be."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from diffcps.envs import toy


def make(environment: str) -> gymnasium.Env:
    return gymnasium.make(environment)


@pytest.mark.filterwarnings(
    "ignore:.*we recommend using a symmetric and normalized space"
)  # the ring has a radius of 1
@pytest.mark.parametrize("environment", [toy.NOISY_CIRCLE, toy.STITCHING])
def test_gymnasium_accepts_the_environment(environment):
    with make(environment) as made:
        check_env(made.unwrapped, skip_render_check=True)


def test_the_circle_pays_for_its_ring_alone():
    with make(toy.NOISY_CIRCLE) as bandit:
        for radius, paid in ((0.0, 0.0), (0.84, 0.0), (0.86, 1.0), (1.0, 1.0), (1.14, 1.0), (1.16, 0.0)):
            observation, _ = bandit.reset()
            assert observation.tolist() == [0.0]
            angle = 2.0
            action = np.array([radius * np.cos(angle), radius * np.sin(angle)], np.float32)
            _, reward, terminated, _, _ = bandit.step(action)
            assert (reward, terminated) == (paid, True), radius


def test_the_circle_s_data():
    data = toy.noisy_circle(20_000)
    action = data.action * toy.CIRCLE_BOUND
    radius, angle = np.linalg.norm(action, axis=1), np.arctan2(action[:, 1], action[:, 0])
    # Standard errors of 20,000 radii: 0.0004 (mean), 0.0003 (std). Noise across the radius adds 0.05^2 / 2 to the mean.
    assert abs(radius.mean() - (1 + 0.05**2 / 2)) < 0.002 and abs(radius.std() - 0.05) < 0.0015
    count, _ = np.histogram(angle, bins=36, range=(-np.pi, np.pi))
    assert np.all(np.abs(count - 20_000 / 36) < 5 * np.sqrt(20_000 / 36))  # five standard deviations of a bin
    assert np.all(data.terminal) and not np.any(data.timeout) and np.all(data.reward == 1)
    assert np.max(np.abs(data.action)) < 1  # nothing is cut off by the box
    again, other = toy.noisy_circle(20_000), toy.noisy_circle(20_000, seed=1)
    assert again.info.sha256 == data.info.sha256 != other.info.sha256


def test_the_square_is_crossed_in_twenty_steps_and_has_walls():
    with make(toy.STITCHING) as square:
        position, _ = square.reset()
        np.testing.assert_array_equal(position, toy.START)
        down, up = np.array([toy.DRIVE, -toy.DRIVE], np.float32), np.array([toy.DRIVE, toy.DRIVE], np.float32)
        total, ends = 0.0, []
        for step in range(toy.HORIZON):  # down the first arm to the crossing, up the second one to the goal, and on
            position, reward, terminated, truncated, _ = square.step(down if step < 10 else up)
            total += float(reward)
            ends.append((terminated, truncated))
            if step == 9:
                np.testing.assert_allclose(position, [0, 0], atol=1e-6)
        np.testing.assert_allclose(position, toy.GOAL, atol=1e-6)
        assert reward == pytest.approx(toy.REWARD_CONSTANT)
        assert ends == [(False, False)] * (toy.HORIZON - 1) + [(False, True)]
        data = toy.stitching()
        from_the_start = data.observation.reshape(-1, toy.HORIZON, 2)[:, 0, 1] > 0
        assert total > returns_of(data)[from_the_start].max() + 20  # no logged trajectory from there is nearly as good


def returns_of(data) -> np.ndarray:
    return np.asarray(data.reward, float).reshape(-1, toy.HORIZON).sum(axis=1)


def test_the_cross_s_data():
    data = toy.stitching()
    np.testing.assert_allclose(toy.moved(data.observation, data.action), data.next_observation, atol=1e-6)
    np.testing.assert_allclose(data.reward, toy.stitching_reward(data.next_observation), atol=1e-6)
    assert not np.any(data.terminal)
    assert np.flatnonzero(data.timeout).tolist() == list(range(toy.HORIZON - 1, data.size, toy.HORIZON))
    first = data.observation.reshape(-1, toy.HORIZON, 2)[:, 0]
    last = data.next_observation.reshape(-1, toy.HORIZON, 2)[:, -1]
    starts_above = first[:, 1] > 0
    assert starts_above.sum() == len(first) / 2
    # The first arm ends below and the second above: nobody who starts where the policy starts reaches the goal.
    assert np.all(last[starts_above, 1] < -0.5) and np.all(last[~starts_above, 1] > 0.5)
    assert np.all(np.abs(np.linalg.norm(last[~starts_above] - toy.GOAL, axis=1)) < 0.5)
