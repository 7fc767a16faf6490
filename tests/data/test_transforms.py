from __future__ import annotations

from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffcps.data import load_dataset
from diffcps.data import transforms as tf
from diffcps.data.scaling import Scaling
from diffcps.types import EnvObservation, UserError


def test_antmaze():
    reward = np.array([0, 1, 0.5], np.float32)
    assert tf.cql_antmaze(reward).tolist() == [-2, 2, 0]
    assert tf.iql_antmaze(reward).tolist() == [-1, 0, -0.5]
    assert tf.corl_antmaze(reward).tolist() == [-5, 5, 0]


def test_iql_locomotion():
    # Episodes (1, 2), (3, 4, 5), (-1): returns 3, 12, -1, so that everything is multiplied by 1000 / 13.
    reward = np.array([1, 2, 3, 4, 5, -1], np.float32)
    end = np.array([0, 1, 0, 0, 1, 0], bool)
    assert tf.episode_sums(reward, end).tolist() == [3, 12, -1]
    np.testing.assert_allclose(tf.iql_locomotion(reward, end), reward * 1000 / 13, rtol=1e-6)


def test_standardise():
    # Mean 2, variance (4 + 0 + 4) / 3.
    changed = tf.standardise(np.array([0, 2, 4], np.float32))
    np.testing.assert_allclose(changed, np.array([-2, 0, 2]) / np.sqrt(8 / 3), rtol=1e-6)


def test_min_max():
    assert tf.min_max(np.array([3, 1, 5, 2], np.float32)).tolist() == [0, -1, 1, -0.5]


def test_reward_transforms_of_a_file(rows, write_hdf5):
    # Kept rewards 1, 2, 3 | 4, 5 | 7 (see test_readers): returns 6, 9, 7; mean 22 / 6.
    path = write_hdf5(rows)
    reward = np.array([1, 2, 3, 4, 5, 7])
    expected = {
        "none": reward,
        "corl_antmaze": 10 * reward - 5,
        "cql_antmaze": 4 * reward - 2,
        "iql_antmaze": reward - 1,
        "iql_locomotion": reward * 1000 / 3,
        "min_max": (reward - 4) / 3,
        "standardise": (reward - 22 / 6) / np.sqrt(104 / 6 - (22 / 6) ** 2),
    }
    for name, value in expected.items():
        changed = load_dataset(path, reward=name)  # pyright: ignore[reportArgumentType]
        np.testing.assert_allclose(changed.reward, value, rtol=1e-5)
        assert changed.reward.dtype == np.float32
        assert changed.observation.shape == (6, 2)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("standardise", "all rewards are equal"),
        ("min_max", "all rewards are equal"),
        ("iql_locomotion", "needs episodes of different return"),
    ],
)
def test_undefined_reward_transforms(rows, write_hdf5, name, part):
    rows["rewards"][:] = 0
    path = write_hdf5(rows)
    with pytest.raises(UserError) as caught:
        load_dataset(path, reward=name)
    assert str(caught.value).startswith(f"{path}: reward transform {name} ")
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_normalise_observation(rows, write_hdf5):
    # Kept observations 0, 1, 2, 3, 4, 6 and ten times that: mean 16 / 6, variance 66 / 6 - (16 / 6)^2 = 35 / 9.
    path = write_hdf5(rows)
    raw, changed = load_dataset(path), load_dataset(path, normalise_observation=True)
    mean = np.array([16 / 6, 160 / 6])
    std = np.array([1, 10]) * np.sqrt(35 / 9)
    assert raw.info.observation_mean is None and raw.info.observation_std is None
    np.testing.assert_allclose(np.array(changed.info.observation_mean), mean, rtol=1e-6)
    np.testing.assert_allclose(np.array(changed.info.observation_std), std, rtol=1e-6)
    np.testing.assert_allclose(changed.observation, (raw.observation - mean) / std, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(changed.next_observation, (raw.next_observation - mean) / std, rtol=1e-5, atol=1e-6)
    assert changed.observation.dtype == changed.next_observation.dtype == np.float32
    with pytest.raises(UserError, match="already normalised"):
        tf.normalise_observation(changed)


def test_a_constant_observation_stays_harmless_when_it_moves_in_use(rows, write_hdf5):
    rows["observations"][:, 1] = 5
    changed = load_dataset(write_hdf5(rows), normalise_observation=True)
    assert changed.observation[:, 1].tolist() == [0] * 6
    moved = EnvObservation(np.array([[3.0, 5.01], [3.0, 6.0]]))
    assert Scaling.of(changed.info).observation(moved)[:, 1].tolist() == [0, 0]


def test_the_policy_can_repeat_the_normalisation_bit_for_bit(rows, write_hdf5):
    rows["observations"] = rows["observations"].astype(np.float32)
    path = write_hdf5(rows)
    raw, changed = load_dataset(path), load_dataset(path, normalise_observation=True)
    seen = Scaling.of(changed.info).observation(EnvObservation(np.asarray(raw.observation)))
    np.testing.assert_array_equal(seen, changed.observation)


@settings(max_examples=40, deadline=None)
@given(scale=st.floats(1e-9, 1e9), offset=st.floats(-1e9, 1e9), sign=st.sampled_from([1, -1]))
def test_scale_and_offset_of_observations_change_nothing_but_rounding(scale, offset, sign):
    """Normalised observations, ends found from them and what the policy sees are the same in any units."""
    rng = np.random.default_rng(0)
    state = rng.normal(size=(60, 3)).cumsum(axis=0)
    following = state + rng.normal(size=(60, 3))
    following[:-1][np.arange(59) % 10 != 9] = state[1:][np.arange(59) % 10 != 9]
    loaded = []
    for unit in (lambda x: x, lambda x: sign * scale * x + offset * scale):
        with TemporaryDirectory() as folder:
            np.savez(
                f"{folder}/data.npz",
                observations=unit(state),
                next_observations=unit(following),
                actions=np.zeros((60, 1)),
                rewards=np.arange(60.0),
                terminals=np.zeros(60, bool),
            )
            loaded.append(load_dataset(f"{folder}/data.npz", normalise_observation=True))
    (plain, other), signs = loaded, np.float32(sign)
    np.testing.assert_array_equal(plain.timeout, other.timeout)
    assert plain.timeout.sum() == 6
    # 1e9 deviations away from zero, float64 itself keeps 7 digits of a deviation.
    np.testing.assert_allclose(signs * other.observation, plain.observation, atol=2e-6)
    np.testing.assert_allclose(signs * other.next_observation, plain.next_observation, atol=2e-6)
    seen = Scaling.of(other.info).observation(EnvObservation(sign * scale * state + offset * scale))
    np.testing.assert_allclose(signs * seen, plain.observation, atol=2e-6)


def test_a_factor_on_the_rewards(rows, write_hdf5):
    path = write_hdf5(rows)
    assert load_dataset(path, reward_scale=0.5).reward.tolist() == [0.5, 1, 1.5, 2, 2.5, 3.5]
    assert load_dataset(path, reward="iql_antmaze", reward_scale=10).reward.tolist() == [0, 10, 20, 30, 40, 60]
    for scale in (0, -1, float("nan"), float("inf")):
        with pytest.raises(UserError, match="reward scale"):
            load_dataset(path, reward_scale=scale)
