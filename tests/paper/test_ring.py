"""The ring's scores, on sets of actions whose scores are known."""

import numpy as np
import pytest

from diffcps.paper.ring import covered_angles, nearest_distances, ring_scores, share_within


def circle(count: int, radius: float = 1.0, turn: float = 2 * np.pi, phase: float = 0.001) -> np.ndarray:
    angle = phase + np.arange(count) * turn / count
    return radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def test_the_data_themselves_are_perfect():
    assert tuple(ring_scores(circle(720), circle(720))) == (1.0, 1.0, 1.0, 0.0, 1.0)


def test_a_collapsed_policy_is_precise_and_covers_nothing():
    scores = ring_scores(np.repeat(circle(720)[:1], 500, axis=0), circle(720))
    assert scores.on_data == 1.0 and scores.on_ring == 1.0
    assert scores.covered_angles == pytest.approx(1 / 36)
    # Neighbours lie 2 pi / 720 = 0.0087 apart: two on each side are nearer than 0.02, and the point itself.
    assert scores.covered_data == pytest.approx(5 / 720)


def test_a_policy_in_the_hole_is_inside_and_strays():
    scores = ring_scores(circle(360, radius=0.5), circle(720))
    assert tuple(scores) == (0.0, 0.0, 0.0, 1.0, 0.0)


def test_half_a_ring_covers_half_of_the_angles():
    assert covered_angles(circle(3600, turn=np.pi)) == pytest.approx(0.5)


def test_few_stray_actions_do_not_cover_a_bin():
    few = np.concatenate([circle(3600, turn=np.pi), -circle(18, turn=np.pi, phase=0.01)])  # one in each other bin
    assert covered_angles(few) == pytest.approx(0.5)
    assert covered_angles(np.concatenate([circle(3600, turn=np.pi), -circle(360, turn=np.pi)])) == 1.0


def test_nearest_distances_against_all_pairs():
    rng = np.random.default_rng(0)
    action, data = rng.normal(size=(1203, 2)), rng.normal(size=(77, 2))  # more than one block
    pairs = np.linalg.norm(action[:, None] - data[None], axis=2)
    to_data, to_action = nearest_distances(action, data)
    np.testing.assert_allclose(to_data, pairs.min(axis=1), atol=1e-12)
    np.testing.assert_allclose(to_action, pairs.min(axis=0), atol=1e-12)


def test_share_within_counts():
    np.testing.assert_array_equal(
        share_within(np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.05, 0.25, 1.0])), [0, 0.5, 1]
    )
